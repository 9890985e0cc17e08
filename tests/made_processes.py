"""Trainings in processes of their own, started off one that has all imports already and runs nothing else.

A test's own process is not forked: it has threads, and what they hold in that moment stays held in the copy.
"""

import gc
import importlib
import multiprocessing
import os
import signal
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from torch import Tensor

import mnist_lit
from mnist_lit.module import Classifier
from mnist_lit.train import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["mnist_lit.sweep.preloaded", "mnist_lit.train", "mnist_lit.reports.report"])
MAX_SECONDS = 200  # many times what one of them takes


def in_child(*arguments: str, folder: Path, step: int = 0, number: int = signal.SIGTERM) -> ForkServerProcess:
    """Start `python -m mnist_lit.train` in `folder`; in the middle of a step, counted from 1, it gets a signal."""
    process = _CONTEXT.Process(target=_train, args=(arguments, folder, step, int(number)))
    process.start()
    return process


def script_in_child(script: str, folder: Path) -> tuple[int, str, str]:
    """Run `python -c SCRIPT` in `folder`; return its exit code, and what it printed to stdout and to stderr."""
    out, err = folder / "stdout", folder / "stderr"
    process = _CONTEXT.Process(target=_execute, args=(script, folder, out, err))
    process.start()
    return exit_code(process), out.read_text(), err.read_text()


def exit_code(process: ForkServerProcess) -> int:
    """Wait until a process has ended; it must not take long."""
    process.join(MAX_SECONDS)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def _execute(script: str, folder: Path, *files: Path) -> None:
    gc.freeze()
    for descriptor, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    importlib.reload(mnist_lit)  # importing its entry point has replaced the function `train`
    exec(script, {"__name__": "__main__"})


def _train(arguments: tuple[str, ...], folder: Path, step: int, number: int) -> None:
    gc.freeze()  # what the first process has imported, as in conftest.py
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.chdir(folder)
    training_step = Classifier.training_step
    sent: list[int] = []

    def patched(self: Classifier, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.global_step == step - 1 and not sent:  # several batches may make a step
            sent.append(number)
            os.kill(os.getpid(), number)
        return training_step(self, batch, batch_idx)

    if step:
        Classifier.training_step = patched  # type: ignore[method-assign]
    sys.argv = ["mnist-lit-train", *arguments]
    main()
