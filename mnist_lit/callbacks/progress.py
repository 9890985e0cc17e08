"""The progress bar, and the line that each epoch leaves behind."""

import logging
import shutil
import sys
from time import perf_counter
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from mnist_lit.module import Classifier

log = logging.getLogger(__name__)


class Progress(TQDMProgressBar):
    """A bar with loss, validation accuracy and images per second; a log line per epoch that measured anything.

    The bar is redrawn every `refresh_seconds`, since a redraw takes as long as a training step. It shows in a
    terminal only, so that log files stay readable, or wherever `always` is true.
    """

    NARROW = "{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}"  # a terminal of 80 characters has room for no more
    WIDE = "{desc} |{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    WIDE_FROM = 120

    def __init__(self, *, refresh_seconds: float, always: bool) -> None:
        if not refresh_seconds >= 0:
            raise ValueError(f"refresh_seconds must be at least 0, got {refresh_seconds}")
        super().__init__()
        self.is_wide = shutil.get_terminal_size().columns >= self.WIDE_FROM
        self.BAR_FORMAT = self.WIDE if self.is_wide else self.NARROW
        is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None where the shell has closed it
        if not (always or is_terminal):
            self.disable()
        self.refresh_seconds = refresh_seconds
        self.redrawn = 0.0
        self.started = 0.0
        self.images_before = 0
        self.step_before = 0

    def init_train_tqdm(self) -> Tqdm:
        """Return the only bar; it vanishes when training ends."""
        bar = super().init_train_tqdm()
        bar.leave = False
        return bar

    def init_validation_tqdm(self) -> Tqdm:
        """Return no bar: validation takes a few batches."""
        return Tqdm(disable=True)

    def init_test_tqdm(self) -> Tqdm:
        """Return no bar: the test takes a few batches."""
        return Tqdm(disable=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock of images per second."""
        super().on_train_start(trainer, pl_module)
        self._start_clock(pl_module)  # a resumed run may begin in the middle of an epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Name the epoch, counting from 1, and start the clock of its images per second."""
        self._start_clock(pl_module)
        self.step_before = trainer.global_step
        self.train_progress_bar.reset(int(self.total_train_batches))
        self.train_progress_bar.initial = 0
        self.train_progress_bar.set_description(self._epoch(trainer))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw the bar if it is time, once where Lightning's own draws it twice."""
        now = perf_counter()
        if self.is_enabled and (now - self.redrawn >= self.refresh_seconds or trainer.is_last_batch):
            self.redrawn = now
            self.train_progress_bar.n = batch_idx + 1
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave a line behind, if anything was measured in this epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Classifier)
        old = {tag for tag, points in pl_module.history.items() if points[-1][0] <= self.step_before}
        metrics = {name: value for name, value in self._metrics(pl_module).items() if name not in old}
        if metrics.keys() == {"images/s"}:  # as in most epochs of a single step
            return
        line = "  ".join(f"{name} {value}" for name, value in metrics.items())
        log.info("%s  %s", self._epoch(trainer), line)

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return what stands beside the bar, formatted; the validation loss only where there is room for it."""
        assert isinstance(pl_module, Classifier)
        metrics = self._metrics(pl_module)
        return {name: value for name, value in metrics.items() if self.is_wide or name != "val/loss"}

    def _start_clock(self, module: L.LightningModule) -> None:
        assert isinstance(module, Classifier)
        self.started, self.images_before = perf_counter(), module.images_seen

    def _metrics(self, module: Classifier) -> dict[str, str]:
        latest = {tag: points[-1][1] for tag, points in module.history.items()}
        images = module.images_seen - self.images_before
        return {
            **{name: f"{latest[name]:.4f}" for name in ("train/loss", "val/loss", "val/acc") if name in latest},
            "images/s": f"{images / (perf_counter() - self.started):,.0f}",
        }

    @staticmethod
    def _epoch(trainer: L.Trainer) -> str:
        last = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        return f"epoch {trainer.current_epoch + 1}{last}"
