"""The LightningModule: network, loss, optimiser and schedule, one shared step, and what is measured."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DistributedSampler
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from mnist_lit.data.dataset import Batch
from mnist_lit.errors import DivergedError, UserError, in_one_line

# What validation and test measure beside the loss, by name: made of the number of classes, fed logits [B, C] and
# labels [B], one number in the end. Each becomes `val/NAME` and `test/NAME` everywhere.
METRICS: dict[str, Callable[[int], Metric]] = {
    "acc": partial(MulticlassAccuracy, average="micro", validate_args=False),
}
MONITORED = tuple(f"val/{name}" for name in (*METRICS, "loss"))  # what callbacks and schedules may go by


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule: how to build it from the optimiser, and when it moves.

    `interval` is "step" (after every optimiser step) or "epoch". `length_argument` names the constructor
    argument that takes the run's length in that unit (`total_steps`, `T_max`), filled in at the start. `monitor` is
    for `ReduceLROnPlateau`, which moves after each validation instead: what it goes by, such as `val/loss`.
    """

    scheduler: Callable[..., LRScheduler]
    interval: Literal["step", "epoch"] = "epoch"
    length_argument: str | None = None
    monitor: str | None = None


class Classifier(L.LightningModule):
    """Trains `model` to classify images by minimising `loss`.

    `loss(logits [B, C], labels [B])` is a scalar, mean over the batch. `optimizer(parameters)` builds the
    optimiser; `scheduler`, if any, its schedule.

    Scalars of training (`train/loss`, `lr`, `epoch`, `images_seen`) go straight to the loggers every
    `trainer.log_every_n_steps` steps: `self.log` on each step would cost a fifth of the training time.
    `history` keeps all scalars as lists of (step, value), and is part of the checkpoint.

    Raises DivergedError from `fit` when a loss that is looked at is NaN or infinite.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Schedule | None,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.build_optimizer = optimizer
        self.scheduler = scheduler
        # Fed by validation and test alike, which never run at the same time.
        self.eval_loss = MeanMetric(nan_strategy="disable")  # a NaN must show, not be left out
        self.eval_metrics = MetricCollection(
            {name: make(num_classes) for name, make in METRICS.items()}, compute_groups=False
        )
        self.plateau: ReduceLROnPlateau | None = None
        self.plateau_state: dict[str, Any] | None = None  # of the run that is resumed, as the next
        self.accumulate_grad_batches: int | None = None
        self.images_seen = 0
        self.history: dict[str, list[tuple[int, float]]] = {}
        # Of the last step, until it is recorded: loss, learning rate, batch_idx, number of images. A list, since
        # assigning an attribute of a module is slower.
        self.unrecorded: list[tuple[Tensor, float, int, int]] = []
        self.last_loss: list[Tensor] = []  # of the last step as well, recorded or not

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 28, 28] -> logits [B, C]."""
        logits: Tensor = self.model(images.to(self.dtype))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch; Lightning goes backward from it and lets the optimiser step (loop.py)."""
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]  # a schedule moves it before the step is logged
        loss, _ = self._step(batch)
        self.unrecorded[:] = [(loss.detach(), lr, batch_idx, len(batch[1]))]
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch to `val/loss`, `val/acc` and what else METRICS names."""
        self._eval_step(batch, batch_idx, self.trainer.val_dataloaders)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add one batch to the same of `test/`; return the predicted classes [B]."""
        return self._eval_step(batch, batch_idx, self.trainer.test_dataloaders).argmax(dim=1)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the logits [B, C] of one batch."""
        logits: Tensor = self(batch[0])
        return logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser, and the schedule over the run's length where there is one."""
        optimizer = self.build_optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        length = {}
        if self.scheduler.length_argument:
            num_steps = int(self.trainer.estimated_stepping_batches)
            num_epochs = self.trainer.max_epochs
            length = {self.scheduler.length_argument: num_steps if self.scheduler.interval == "step" else num_epochs}
        try:
            scheduler = self.scheduler.scheduler(optimizer, **length)
        except Exception as error:  # whatever torch's say to a length that is too short for them
            raise UserError(f"scheduler.scheduler, with {length or 'no length'}: {in_one_line(error)}") from error
        if isinstance(scheduler, ReduceLROnPlateau):
            # Lightning would tell it of a metric after the epoch's checkpoint, and not once more when a run resumes.
            self.plateau = scheduler
            if self.plateau_state is not None:
                scheduler.load_state_dict(self.plateau_state)
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": self.scheduler.interval},
        }

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Set the gradients to None directly: `Optimizer.zero_grad` takes 5 us longer."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def on_train_start(self) -> None:
        """Accumulate over as many batches as before a resume: a callback may have changed it when the epoch began."""
        if self.accumulate_grad_batches is not None:
            self.trainer.accumulate_grad_batches, self.accumulate_grad_batches = self.accumulate_grad_batches, None

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Every `log_every_n_steps` steps, log the scalars of training and look at the loss."""
        self._record_step()

    def on_train_epoch_end(self) -> None:
        """Look at the loss of the last step, which need be neither logged nor validated, before it is saved."""
        for loss in self.last_loss:
            # Of all processes, or those whose own is finite would wait for the others.
            mean: Tensor = self.trainer.strategy.reduce(loss, reduce_op="mean")
            self._stop_if_diverged("train/loss", mean.item())

    def on_validation_epoch_end(self) -> None:
        """Log what was measured, averaged over the images."""
        self._log_eval("val")

    def on_test_epoch_end(self) -> None:
        """Log what was measured, averaged over the images."""
        self._log_eval("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the curves, and the order of the images, need to go on after a resume."""
        self._record_step()  # callbacks save a step's checkpoint before the module's own hook at its end
        checkpoint["progress"] = {
            "images_seen": self.images_seen,
            # Tensors [points, 2], which take no longer to save as they grow; lists of points do.
            "history": {tag: torch.tensor(points, dtype=torch.float64) for tag, points in self.history.items()},
            "plateau": None if self.plateau is None else self.plateau.state_dict(),
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            "rng_state": torch.get_rng_state(),
            "device_rng_state": {name: device.get_rng_state() for name, device in self._accelerator().items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore all of that when a fit resumes (not for a test)."""
        if self.trainer.state.fn != "fit":
            return
        torch.set_rng_state(checkpoint["progress"]["rng_state"])
        for name, device in self._accelerator().items():
            if name in checkpoint["progress"]["device_rng_state"]:  # else it was trained elsewhere
                device.set_rng_state(checkpoint["progress"]["device_rng_state"][name])
        self.plateau_state = checkpoint["progress"]["plateau"]
        self.accumulate_grad_batches = checkpoint["progress"]["accumulate_grad_batches"]
        self.images_seen = checkpoint["progress"]["images_seen"]
        self.history = {
            tag: [(int(step), value) for step, value in points.tolist()]
            for tag, points in checkpoint["progress"]["history"].items()
        }

    def _accelerator(self) -> dict[str, Any]:
        """Return torch's module for the device that trains, by its name, if that has random numbers of its own."""
        name = self.trainer.strategy.root_device.type
        devices: dict[str, Any] = {"cuda": torch.cuda, "mps": torch.mps}
        return {name: devices[name]} if name in devices else {}

    def _step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images [B, 28, 28] and labels [B] -> loss (scalar), logits [B, C]."""
        images, labels = batch
        logits = self(images)
        return self.loss(logits, labels), logits

    def _eval_step(self, batch: Batch, batch_idx: int, loader: Any) -> Tensor:
        images, labels = batch
        if _ends_with_a_repetition(loader, batch_idx):
            images, labels = images[:-1], labels[:-1]
            if not len(labels):
                return labels.new_zeros(0, 1)
        loss, logits = self._step((images, labels))
        # A mean over images, not batches; this nan_strategy ignores MeanMetric's own weights.
        self.eval_loss.update(loss.expand(len(logits)))
        self.eval_metrics.update(logits, labels)
        return logits

    def _log_eval(self, split: str) -> None:
        # Computed over all processes, and averaged over images, not batches.
        computed = {"loss": self.eval_loss.compute(), **self.eval_metrics.compute()}
        metrics = {f"{split}/{name}": value.item() for name, value in computed.items()}
        self.eval_loss.reset()
        self.eval_metrics.reset()
        if self.trainer.sanity_checking:  # a few batches, before anything is learnt
            return
        # For callbacks; to the loggers by hand, since Lightning would write them a step too early.
        self.log_dict(metrics, logger=False, sync_dist=True)
        self._record(metrics)
        self._stop_if_diverged(f"{split}/loss", metrics[f"{split}/loss"])
        if split == "val" and self.plateau is not None:
            assert self.scheduler is not None
            self.plateau.step(metrics[str(self.scheduler.monitor)])

    def _record_step(self) -> None:
        """Count the last step, once, and log it if it is due."""
        if not self.unrecorded:
            return
        loss, lr, batch_idx, num_images = self.unrecorded.pop()
        self.last_loss[:] = [loss]
        trainer: Any = self.trainer
        self.images_seen += num_images * trainer.world_size
        step = trainer.global_step
        if step % trainer.log_every_n_steps:
            return
        # Several batches may make one step.
        if step > (self.history["train/loss"][-1][0] if "train/loss" in self.history else 0):
            # The mean over all processes, which stop together; an accelerator is waited for here.
            value = trainer.strategy.reduce(loss, reduce_op="mean").item()
            self._record(
                {
                    "train/loss": value,
                    "lr": lr,
                    "epoch": trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches,
                    "images_seen": self.images_seen,
                }
            )
            self._stop_if_diverged("train/loss", value)

    def _record(self, scalars: dict[str, float]) -> None:
        step = self.trainer.global_step
        for tag, value in scalars.items():
            self.history.setdefault(tag, []).append((step, value))
        for logger in self.loggers:
            logger.log_metrics(scalars, step)

    def _stop_if_diverged(self, tag: str, value: float) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"{tag} became {value} at step {self.trainer.global_step}: try a smaller optimizer.lr, "
                "or trainer.gradient_clip_val=1"
            )


def _ends_with_a_repetition(loader: Any, batch_idx: int) -> bool:
    """Return whether a batch's last image is another process's, too: each of several is given as many images."""
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or batch_idx < len(loader) - 1:
        return False
    num_left_over = len(sampler.dataset) % sampler.num_replicas  # type: ignore[arg-type]
    return 0 < num_left_over <= sampler.rank
