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
from mnist_lit.errors import DivergedError, UserError, in_one_line, interruption_behind
from mnist_lit.run import Run, quiet

NUM_STEPS = 12
NUM_WARM = 2  # steps before those that count: the first may start worker processes, or compile
MAX_SECONDS = 1.0  # of a large network's steps


def fit_seconds(run: Run) -> float | None:
    """Make a run's first steps, without its callbacks and loggers; return the seconds that all its steps will take.

    Validations, checkpoints and callbacks come on top. Infinite where only a callback ends the run; None if its images
    have yet to be fetched. The run is of no use afterwards.

    Raises UserError for images that cannot be used or tested, and for whatever fails in the steps but a loss that is no
    number.
    """
    source = run.datamodule.source
    try:
        load(source)
    except UserError:
        if source.source_dir is None and source.problems():
            return None
    run.prepare()  # which says more of what cannot be loaded
    most = run.timer.time_remaining()
    trainer: Any = run.trainer
    trainer.callbacks, trainer.loggers = [stopwatch := _Stopwatch()], []
    trainer.profiler = PassThroughProfiler()  # others write files
    try:
        with quiet(), suppress(_EnoughStepsError, DivergedError):
            trainer.fit(run.module, datamodule=run.datamodule)
    except UserError:
        raise
    except Exception as error:  # whatever a network or an optimiser of the user's raises
        if (end := interruption_behind(error)) is not None:
            raise end from None
        raise UserError(f"its first steps fail: {in_one_line(error)}") from error
    steps = [b - a for a, b in pairwise(stopwatch.times)]
    return min(median(steps[NUM_WARM:] or steps) * stopwatch.num_batches, math.inf if most is None else most)


class _EnoughStepsError(Exception):
    pass


class _Stopwatch(L.Callback):
    """Notes when steps end, and ends the fit after some."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        by_epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.num_training_batches * trainer.max_epochs
        by_steps = math.inf if trainer.max_steps == -1 else trainer.max_steps * trainer.accumulate_grad_batches
        self.num_batches = min(by_epochs, by_steps)
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
        num_steps = len(self.times) - 1
        if num_steps == NUM_STEPS or (num_steps > NUM_WARM and self.times[-1] - self.times[NUM_WARM] > MAX_SECONDS):
            raise _EnoughStepsError
