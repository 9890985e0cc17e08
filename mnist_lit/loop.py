"""Lightning's loop over the batches of an epoch, less what a step does not need; its loop over epochs, mended."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

# The moments of a step that callbacks and the module may listen to, in their order.
MOMENTS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
# A module that overrides one of these has steps of its own kind.
OWN_STEP_HOOKS = (
    "backward",
    "configure_gradient_clipping",
    "on_after_batch_transfer",
    "on_before_batch_transfer",
    "on_train_batch_start",  # may end the epoch
    "optimizer_step",
    "transfer_batch_to_device",
)


class EpochLoop(_FitLoop):
    """Lightning's loop over epochs, that goes on from the end of one whether or not there is a `max_steps`."""

    def _iteration_based_training(self) -> bool:
        # Else Lightning 2.6.6 takes an epoch whose end is in the checkpoint for unfinished, and leaves out others.
        return False


class StepLoop(_TrainingEpochLoop):
    """Makes each step as Lightning 2.6.6 does, to the same bits, but calls only the hooks that are overridden.

    Lightning tells every callback, the module, the strategy and the profiler of every moment of a step: about fifty
    calls, nearly all to methods that do nothing. Without them a step of a tiny network and batch takes 0.31 instead of
    0.57 ms; a real one, which drives Python out of the processor's caches, gains more.

    Who listens is found out when an epoch starts. What is more than forward, backward and optimiser on one device is
    left to Lightning: several devices, scaled losses, manual optimisation, profilers, a module that overrides one of
    `OWN_STEP_HOOKS`, the first step after a resume, and of others the part that accumulates or clips gradients.

    It rests on parts of Lightning that are not public, one reason more for its version's upper bound.
    """

    @classmethod
    def install(cls, trainer: L.Trainer) -> None:
        """Give the trainer this loop, and an EpochLoop around it, instead of its own."""
        epochs, steps = trainer.fit_loop, trainer.fit_loop.epoch_loop
        trainer.fit_loop = EpochLoop(trainer, min_epochs=epochs.min_epochs, max_epochs=epochs.max_epochs)
        trainer.fit_loop.epoch_loop = cls(trainer, min_steps=steps.min_steps, max_steps=steps.max_steps)

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Find out who listens, and whether the steps are plain."""
        super().on_run_start(data_fetcher)
        self.is_plain = self._is_plain(data_fetcher)
        self.listeners = {moment: list(self._listeners(moment)) for moment in MOMENTS}

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Make one step."""
        if not self.is_plain or self.restarting or self.val_loop.restarting:
            super().advance(data_fetcher)
            return
        batch, _, _ = next(data_fetcher)
        self.batch_progress.is_last_batch = data_fetcher.done
        try:
            self._advance(batch)
        except StopIteration as error:  # of a network's or a callback's own; Lightning would end the epoch
            raise RuntimeError("StopIteration within a step") from error

    def _advance(self, batch: Any) -> None:
        trainer = self.trainer
        batch_idx = self.batch_idx + 1
        # By way of the strategy, which asks anew whose hooks to call, it would take 20 us longer.
        data = trainer.datamodule
        batch = data.on_before_batch_transfer(batch, 0)
        batch = data.transfer_batch_to_device(batch, trainer.strategy.root_device, 0)
        batch = data.on_after_batch_transfer(batch, 0)
        self.batch_progress.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        self._announce("on_train_batch_start", batch, batch_idx)
        self.batch_progress.increment_started()
        if trainer.accumulate_grad_batches == 1 and not trainer.gradient_clip_val:  # a callback may have changed them
            outputs = {"loss": self._step(batch, batch_idx)}
        else:
            arguments = self._build_kwargs(OrderedDict(), batch, batch_idx)
            outputs = self.automatic_optimization.run(trainer.optimizers[0], batch_idx, arguments)
        self.batch_progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._announce("on_train_batch_end", outputs, batch, batch_idx)
        is_logged_to = bool(self._results)  # by the `log` of somebody who listens
        if is_logged_to:
            trainer._logger_connector.on_batch_end()
        else:
            self._results.batch = self._results.batch_size = None
        self.batch_progress.increment_completed()
        if is_logged_to:
            trainer._logger_connector.update_train_step_metrics()

    def _step(self, batch: Any, batch_idx: int) -> Tensor:
        """Forward, backward, optimiser; return the loss."""
        trainer, module = self.trainer, self.trainer.lightning_module
        (optimizer,) = trainer.optimizers
        progress = self.automatic_optimization.optim_progress.optimizer
        losses: list[Tensor] = []

        def forward_and_backward() -> Tensor:
            with trainer.precision_plugin.train_step_context():
                loss: Tensor = self._call("training_step", module.training_step, batch, batch_idx)
            losses[:] = [loss.detach()]
            progress.zero_grad.increment_ready()
            self._announce("on_before_zero_grad", optimizer)
            progress.zero_grad.increment_started()
            module.optimizer_zero_grad(trainer.current_epoch, batch_idx, optimizer)
            progress.zero_grad.increment_completed()
            self._announce("on_before_backward", loss)
            loss.backward()
            self._announce("on_after_backward")
            self._announce("on_before_optimizer_step", optimizer)
            return losses[0]

        progress.step.increment_ready()
        optimizer.step(closure=forward_and_backward)
        progress.step.increment_completed()
        return losses[0]

    def _announce(self, moment: str, *arguments: Any) -> None:
        for listener in self.listeners[moment]:
            self._call(moment, listener, *arguments)

    def _call(self, hook: str, method: Callable[..., Any], *arguments: Any) -> Any:
        """Call a method, which may call `self.log` as the hook of that name."""
        # Past nn.Module.__setattr__, which would look whether it is a part of the network.
        state = vars(self.trainer.lightning_module)
        before, state["_current_fx_name"] = state["_current_fx_name"], hook
        returned = method(*arguments)
        state["_current_fx_name"] = before
        return returned

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
            and module.automatic_optimization
            and not self.automatic_optimization._skip_backward
            and not any(is_overridden(hook, module) for hook in OWN_STEP_HOOKS)
        )
