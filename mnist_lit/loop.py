"""Lightning's loop over the batches of an epoch, less what a step of this project does not need."""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

# The moments of a step that Lightning announces to callbacks and module, in their order.
MOMENTS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
# Hooks by which a module makes the step another one.
REPLACEMENTS = (
    "backward",
    "configure_gradient_clipping",
    "on_after_batch_transfer",
    "on_before_batch_transfer",
    "on_train_batch_start",
    "optimizer_step",
    "transfer_batch_to_device",
)


class StepLoop(_TrainingEpochLoop):
    """Makes each step as Lightning does, to the same bits, but announces it only to those who listen.

    Lightning tells every callback, the module, the strategy and the profiler of every moment of a step, about fifty
    calls, nearly all to methods that do nothing; that takes longer than this network's step at a batch size of 128.
    What is more than forward, backward and optimiser is left to Lightning: several devices, accumulated or clipped
    gradients, scaled losses, profilers, optimisers that want a closure, a module that overrides one of `REPLACEMENTS`.

    It rests on parts of Lightning that are not public, one reason more for its version's upper bound.
    """

    @classmethod
    def install(cls, trainer: L.Trainer) -> None:
        """Give the trainer this loop in the place of its own."""
        before = trainer.fit_loop.epoch_loop
        trainer.fit_loop.epoch_loop = cls(trainer, min_steps=before.min_steps, max_steps=before.max_steps)

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Find out, once an epoch, who listens, and whether the steps are plain."""
        super().on_run_start(data_fetcher)
        self.is_plain = self._is_plain(data_fetcher)
        self.listeners = {moment: list(self._listeners(moment)) for moment in MOMENTS}

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Make one step."""
        if self.restarting or not self.is_plain:
            super().advance(data_fetcher)
            return
        connector, device = self.trainer._logger_connector, self.trainer.strategy.root_device
        batch, _, _ = next(data_fetcher)
        batch_idx = self.batch_idx + 1
        self.batch_progress.is_last_batch = data_fetcher.done
        data = self.trainer.datamodule
        batch = data.transfer_batch_to_device(data.on_before_batch_transfer(batch, 0), device, 0)
        batch = data.on_after_batch_transfer(batch, 0)
        self.batch_progress.increment_ready()
        connector.on_batch_start(batch)
        self._announce("on_train_batch_start", batch, batch_idx)
        self.batch_progress.increment_started()
        loss = self._step(batch, batch_idx)
        self.batch_progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._announce("on_train_batch_end", {"loss": loss}, batch, batch_idx)
        was_logged_to = bool(self._results)  # by some callback's `log`
        if was_logged_to:
            connector.on_batch_end()
        self.batch_progress.increment_completed()
        if was_logged_to:
            connector.update_train_step_metrics()

    def _step(self, batch: Any, batch_idx: int) -> Tensor:
        """Forward, backward, optimiser; return the loss."""
        trainer, module = self.trainer, self.trainer.lightning_module
        (optimizer,) = trainer.optimizers
        progress = self.automatic_optimization.optim_progress.optimizer
        progress.step.increment_ready()
        with trainer.precision_plugin.train_step_context():
            loss: Tensor = module.training_step(batch, batch_idx)
        progress.zero_grad.increment_ready()
        self._announce("on_before_zero_grad", optimizer)
        progress.zero_grad.increment_started()
        module.optimizer_zero_grad(trainer.current_epoch, batch_idx, optimizer)
        progress.zero_grad.increment_completed()
        self._announce("on_before_backward", loss)
        loss.backward()
        self._announce("on_after_backward")
        self._announce("on_before_optimizer_step", optimizer)
        optimizer.step()
        progress.step.increment_completed()
        return loss.detach()

    def _announce(self, moment: str, *arguments: Any) -> None:
        if self.listeners[moment]:
            # What `self.log` looks up; set past nn.Module, which would take it for a part of the network first.
            state = vars(self.trainer.lightning_module)
            state["_current_fx_name"] = moment
            for listener in self.listeners[moment]:
                listener(*arguments)
            state["_current_fx_name"] = None

    def _listeners(self, moment: str) -> Iterator[Callable[..., Any]]:
        """Yield the methods to call at a moment, the callbacks' in their order, then the module's."""
        module = self.trainer.lightning_module
        for callback in self.trainer.callbacks:
            if is_overridden(moment, callback):
                yield partial(getattr(callback, moment), self.trainer, module)
        if is_overridden(moment, module):
            yield getattr(module, moment)

    def _is_plain(self, data_fetcher: _DataFetcher) -> bool:
        """Return whether a step is forward, backward and optimiser on one device, and nothing else."""
        trainer, module = self.trainer, self.trainer.lightning_module
        precision = trainer.precision_plugin
        return (
            not isinstance(data_fetcher, _DataLoaderIterDataFetcher)
            and type(trainer.strategy) is SingleDeviceStrategy
            and type(precision) in (Precision, MixedPrecision)
            and getattr(precision, "scaler", None) is None
            and type(trainer.profiler) is PassThroughProfiler
            and trainer.accumulate_grad_batches == 1
            and not trainer.gradient_clip_val
            and not any(is_overridden(hook, module) for hook in REPLACEMENTS)
            and inspect.signature(trainer.optimizers[0].step).parameters["closure"].default is None
        )
