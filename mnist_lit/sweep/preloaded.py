"""What a worker process imports before its first job."""

from mnist_lit import cli

with cli.fast_imports():
    from mnist_lit import build, logger  # noqa: F401
