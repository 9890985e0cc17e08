"""Pictures of a run, as PNG files and in TensorBoard."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DistributedSampler
from torchmetrics.functional.classification import multiclass_confusion_matrix

from mnist_lit.data import MNISTDataModule
from mnist_lit.data.dataset import Batch
from mnist_lit.module import Classifier
from mnist_lit.pictures import RIGHT, WRONG, draw_confusion_matrix, draw_curves, draw_images, save

NAMES = ("samples", "augmented", "loss_curve", "first_layer_weights", "predictions", "confusion_matrix")


class Pictures(L.Callback):
    """Draws training samples, the loss curve, the first layer's weights, predictions and the confusion matrix.

    Samples, and the same as augmentation distorts them, are drawn when the fit starts, curve and weights when it
    ends, predictions and confusion matrix after the test (there, wrong predictions are red). `draw` names those that
    are wanted. `num_images` is how many samples, predictions and units are shown. PNG files go to `figures/` below
    `trainer.default_root_dir`, the same pictures to TensorBoard.
    """

    def __init__(self, *, draw: Sequence[str], num_images: int) -> None:
        if unknown := [name for name in draw if name not in NAMES]:
            raise ValueError(f"draw must name some of {', '.join(NAMES)}, got {', '.join(unknown)}")
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        self.draw = frozenset(draw)
        self.num_images = num_images
        self.predictions: list[Tensor] = []

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw training samples with their labels, and the same as `augmentation` distorts them."""
        if not self.draw & {"samples", "augmented"}:
            return
        data = _datamodule(trainer)
        images, labels = (
            tensor.cpu() for tensor in data.train.__getitems__(range(min(self.num_images, len(data.train))))
        )
        titles = [data.class_names[label] for label in labels]
        if "samples" in self.draw:
            _publish(trainer, "samples", draw_images(images.numpy(), titles))
        if "augmented" in self.draw and data.augmentation is not None:
            with isolate_rng(include_cuda=False):  # drawing must not change what the run draws
                augmented = data.augmentation(images).clamp(0, 255).to(torch.uint8)
            _publish(trainer, "augmented", draw_images(augmented.numpy(), titles))

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the loss curve and the first layer's weights."""
        assert isinstance(pl_module, Classifier)
        if "loss_curve" in self.draw and pl_module.history:  # a run may end before its first point
            _publish(trainer, "loss_curve", draw_curves(pl_module.history))
        weights = _first_layer_images(pl_module.model)
        if "first_layer_weights" in self.draw and weights is not None:
            weights = weights[: self.num_images]
            _publish(trainer, "first_layer_weights", draw_images(weights.numpy(), None, colour_map="RdBu_r"))

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the predictions of an earlier test."""
        self.predictions.clear()

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the predicted classes and the labels."""
        # Of several processes, one may have left out an image.
        self.predictions.append(torch.stack([outputs, batch[1][: len(outputs)]]))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw predictions and the confusion matrix."""
        mine = torch.cat(self.predictions, dim=1).cpu()
        shares = [mine]
        if isinstance(getattr(trainer.test_dataloaders, "sampler", None), DistributedSampler):
            shares = [mine] * trainer.world_size
            torch.distributed.all_gather_object(shares, mine)
        if not trainer.is_global_zero:
            return
        predicted, labels = in_order(shares)
        data = _datamodule(trainer)
        names = data.class_names
        gap = "\n" if max(map(len, names)) > 2 else " "  # two words of clothing are wider than a picture
        shown = slice(self.num_images)
        titles = [
            names[p] if p == label else f"{names[p]},{gap}is {names[label]}"
            for p, label in zip(predicted[shown], labels[shown], strict=True)
        ]
        if "predictions" in self.draw and titles:
            colours = [RIGHT if right else WRONG for right in predicted[shown] == labels[shown]]
            images = data.test.images[shown].cpu()
            _publish(trainer, "predictions", draw_images(images.numpy(), titles, colours))
        if "confusion_matrix" in self.draw:
            confusion = multiclass_confusion_matrix(predicted, labels, num_classes=len(names))
            _publish(trainer, "confusion_matrix", draw_confusion_matrix(confusion.numpy(), names))


def in_order(shares: Sequence[Tensor]) -> Tensor:
    """Put the shares [2, n] of several processes together, which a distributed sampler has dealt out in turn."""
    whole = shares[0].new_empty(2, sum(share.shape[1] for share in shares))
    for rank, share in enumerate(shares):
        whole[:, rank :: len(shares)] = share
    return whole


def _publish(trainer: L.Trainer, name: str, figure: Figure) -> None:
    """Write `figures/<name>.png` and send the same file to every TensorBoard."""
    path = Path(trainer.default_root_dir) / "figures" / f"{name}.png"
    height, width, num_colours = save(figure, path).shape
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            from tensorboard.compat.proto.summary_pb2 import Summary

            # `add_image` would compress it a second time.
            image = Summary.Image(
                height=height, width=width, colorspace=num_colours, encoded_image_string=path.read_bytes()
            )
            summary = Summary(value=[Summary.Value(tag=name, image=image)])
            logger.experiment._get_file_writer().add_summary(summary, trainer.global_step)


def _first_layer_images(model: nn.Module) -> Tensor | None:
    """Return the weights [units, side, side] of the first linear layer, or None where they are not square."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            side = math.isqrt(layer.in_features)
            if side * side == layer.in_features:
                return layer.weight.detach().float().cpu().reshape(-1, side, side)
            break
    return None


def _datamodule(trainer: L.Trainer) -> MNISTDataModule:
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(datamodule, MNISTDataModule)
    return datamodule
