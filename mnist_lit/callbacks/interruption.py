"""Ending a fit between two steps when the user or the cluster asks for it.

Elsewhere a Ctrl-C or SIGTERM ends the program at once, as long as it imports (startup.py), or raises: run.py then
writes "interrupted" into the result, and train.py says how the run, or the sweep, goes on.
"""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(L.Callback):
    """On Ctrl-C or SIGTERM (a cluster's preemption), finishes the step, saves checkpoints/last.ckpt and ends the fit.

    From there a resumed fit continues to the same bits. If a validation is due after the step, as at an epoch's end, it
    comes first, and so do other checkpoints. A second Ctrl-C ends the fit at once. Where several processes train, each
    stops at its own step, so only the epoch's checkpoints stand.

    Raises SystemExit from `fit`, its code 128 + the signal's number, as shells do.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.has_waited = False
        self.handlers_before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over; only a process's main thread can."""
        self.received, self.has_waited = None, False
        if threading.current_thread() is threading.main_thread():
            self.handlers_before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and end, if a signal has come, the batch ends a step, which several may make, and nothing is due."""
        if self.received is None or (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.is_last_batch:
            return
        fetcher = trainer.fit_loop._data_fetcher
        is_due = fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
        if is_due and not self.has_waited:  # once: one may be due after every step
            self.has_waited = True
            return  # a resumed fit would not make up for it
        if trainer.world_size == 1:
            for callback in trainer.checkpoint_callbacks:  # which come after this one
                callback.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            trainer.save_checkpoint(Path(trainer.default_root_dir, "checkpoints", "last.ckpt"))
        self.end()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End, if a signal has come at the end of the epoch before."""
        self.end()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End, if a signal has come at the end of the last epoch."""
        self._give_back()
        self.end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def end(self) -> None:
        """Raise SystemExit if a signal has come."""
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)
        self.handlers_before = {}
