"""How long a run's fit will take, told by its first steps."""

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from statistics import median
from typing import Any

import lightning as L
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor

from mnist_lit.data.sources import load
from mnist_lit.errors import DivergedError, UserError, in_one_line
from mnist_lit.run import Run, quiet

NUM_STEPS = 12
MAX_SECONDS = 1.0  # of a large network's steps


def fit_seconds(run: Run) -> float | None:
    """Make a run's first steps, without its callbacks and loggers; return the seconds that all of them will take.

    Infinite where only a callback ends the run; None if its images are not here. The run is of no use afterwards.
    Raises UserError for whatever fails in the steps, but for a loss that is no number.
    """
    try:
        load(run.datamodule.source, num_classes=len(run.datamodule.class_names))
    except UserError:  # which to fetch would take longer than to be told so
        return None
    most = run.timer.time_remaining() or math.inf
    trainer: Any = run.trainer
    trainer.callbacks, trainer.loggers = [stopwatch := _Stopwatch()], []
    trainer.profiler = PassThroughProfiler()  # others write files
    try:
        with quiet(), suppress(_EnoughStepsError, DivergedError):
            trainer.fit(run.module, datamodule=run.datamodule)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as error:  # whatever a network or an optimiser of the user's raises
        raise UserError(f"its first steps fail: {in_one_line(error)}") from error
    return min(median(b - a for a, b in pairwise(stopwatch.times)) * stopwatch.num_batches, most)


class _EnoughStepsError(Exception):
    pass


class _Stopwatch(L.Callback):
    """Notes when steps end, and ends the fit after some."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.num_batches = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
        self.times = [time.perf_counter()]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if isinstance(outputs, Mapping):
            outputs["loss"].item()  # an accelerator is waited for here
        self.times.append(time.perf_counter())
        if len(self.times) > NUM_STEPS or self.times[-1] - self.times[0] > MAX_SECONDS:
            raise _EnoughStepsError
