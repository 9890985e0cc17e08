"""What joblib's worker processes have imported before they start; see `mnist_lit.sweep.workers`."""

import signal

from mnist_lit import cli

with cli.fast_imports():
    from mnist_lit import build, logger  # noqa: F401

signal.signal(signal.SIGINT, signal.default_int_handler)
