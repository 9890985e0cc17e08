"""What joblib's worker processes have imported before they start; see `mnist_lit.sweep.workers`."""

import atexit
import os
import signal
import sys

from hydra.core.plugins import Plugins

from mnist_lit import startup

with startup.fast_imports():
    import torch.utils.tensorboard  # noqa: F401

    from mnist_lit import build, logger, loss, model  # noqa: F401
    from mnist_lit.callbacks import interruption, pictures, progress  # noqa: F401

    Plugins.instance()  # imports every plugin, joblib's launcher with them

if any("multiprocessing.forkserver" in argument for argument in sys.orig_argv):
    # The sweep waits for this process, which has nothing to clean up: torch's teardown takes 0.25 s.
    atexit.register(os._exit, 0)

signal.signal(signal.SIGINT, signal.default_int_handler)
