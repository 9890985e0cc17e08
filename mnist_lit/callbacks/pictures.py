"""Pictures of a run, as PNG files and in TensorBoard."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from mnist_lit.data import MNISTDataModule
from mnist_lit.data.dataset import Batch
from mnist_lit.module import Classifier

RIGHT, WRONG = "#222222", "#d62728"


class Pictures(L.Callback):
    """Draws training samples, the loss curve, the first layer's weights, predictions and the confusion matrix.

    Samples are drawn when the fit starts, curve and weights when it ends, the other two after the test
    (there, wrong predictions are red). `num_images` is how many samples, predictions and units are shown.
    PNG files go to `figures/` below `trainer.default_root_dir`, the same pictures to TensorBoard.
    """

    def __init__(self, *, num_images: int) -> None:
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        self.num_images = num_images
        self.predictions: list[Tensor] = []

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw training samples with their labels."""
        data = _datamodule(trainer)
        images, labels = (
            tensor.cpu() for tensor in data.train.__getitems__(range(min(self.num_images, len(data.train))))
        )
        titles = [data.class_names[label] for label in labels]
        _publish(trainer, "samples", draw_images(images.numpy(), titles))

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the loss curve and the first layer's weights."""
        assert isinstance(pl_module, Classifier)
        if pl_module.history:  # a run may end before its first point
            _publish(trainer, "loss_curve", draw_curves(pl_module.history))
        weights = _first_layer_images(pl_module.model)
        if weights is not None:
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
        self.predictions.append(torch.stack([outputs, batch[1]]))

    @rank_zero_only
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw predictions and the confusion matrix (of this process's share of the images)."""
        data = _datamodule(trainer)
        predicted, labels = torch.cat(self.predictions, dim=1).cpu()
        names = data.class_names
        shown = slice(self.num_images if trainer.world_size == 1 else 0)
        titles = [
            names[p] if p == label else f"{names[p]}, not {names[label]}"
            for p, label in zip(predicted[shown], labels[shown], strict=True)
        ]
        if titles:
            colours = [RIGHT if right else WRONG for right in predicted[shown] == labels[shown]]
            images = data.test.images[shown].cpu()
            _publish(trainer, "predictions", draw_images(images.numpy(), titles, colours))
        confusion = multiclass_confusion_matrix(predicted, labels, num_classes=len(names))
        _publish(trainer, "confusion_matrix", draw_confusion_matrix(confusion.numpy(), names))


def draw_images(
    images: np.ndarray[Any, Any],
    titles: Sequence[str] | None,
    colours: Sequence[str] | None = None,
    *,
    colour_map: str = "gray_r",
) -> Figure:
    """Lay images [N, H, W] out in a near-square grid, a title above each.

    uint8 images are shown over 0..255, others over a range that is symmetric around 0.
    """
    num_images, height, width = images.shape
    num_columns = math.ceil(math.sqrt(num_images))
    num_rows = math.ceil(num_images / num_columns)
    top = 10 if titles else 2  # pixels above each image, room for a title
    limits = (0, 255) if images.dtype == np.uint8 else (-np.abs(images).max(), np.abs(images).max())
    # One canvas and one axes: an axes per image would take ten times as long.
    canvas = np.full((num_rows * (height + top), num_columns * (width + 2)), np.nan, dtype=np.float32)
    figure = Figure(figsize=(num_columns * 0.85, num_rows * 0.85 * (height + top) / (width + 2)), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for index, image in enumerate(images):
        row, column = divmod(index, num_columns)
        y, x = row * (height + top) + top - 1, column * (width + 2) + 1
        canvas[y : y + height, x : x + width] = image
        if titles:
            colour = colours[index] if colours else RIGHT
            axes.text(x + width / 2, y - 2, titles[index], ha="center", va="bottom", fontsize=8, color=colour)
    axes.imshow(canvas, cmap=colour_map, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
    return figure


def draw_curves(history: dict[str, list[tuple[int, float]]]) -> Figure:
    """Draw training and validation loss, and below them validation accuracy, over optimiser steps."""
    panels = [tags for tags in (["train/loss", "val/loss"], ["val/acc"]) if any(tag in history for tag in tags)]
    figure = Figure(figsize=(7, 2.6 * max(len(panels), 1) + 0.4), dpi=100)
    # Fixed margins: finding them (layout="constrained") would draw everything twice.
    figure.subplots_adjust(left=0.08, right=0.98, top=0.97, bottom=0.1, hspace=0.1)
    for axes, tags in zip(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True):
        for tag in tags:
            if tag in history:
                steps, values = zip(*history[tag], strict=True)
                axes.plot(steps, values, label=tag, marker="o" if tag.startswith("val") else None, markersize=4)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.axes[-1].set_xlabel("step")
    return figure


def draw_confusion_matrix(confusion: np.ndarray[Any, Any], names: Sequence[str]) -> Figure:
    """Draw counts [C, C], row: the label, column: the prediction; colours show each row's shares."""
    figure = Figure(figsize=(6, 6), dpi=100)
    longest = max(map(len, names))
    margin = 0.08 + 0.013 * longest
    axes = figure.add_axes((margin, margin, 0.98 - margin, 0.98 - margin))
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    # The square root lifts the few mistakes out of the white.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(confusion):
        colour = "white" if shares[row, column] > 0.4 else WRONG if row != column else RIGHT
        axes.text(column, row, count or "", ha="center", va="center", fontsize=8, color=colour)
    rotation = 45 if longest > 2 else 0
    axes.set_xticks(range(len(names)), names, rotation=rotation)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    return figure


def _publish(trainer: L.Trainer, name: str, figure: Figure) -> None:
    """Write `figures/<name>.png` and send the same pixels to every TensorBoard."""
    folder = Path(trainer.default_root_dir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(str(folder / f"{name}.png"))
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(canvas.buffer_rgba())[..., :3]
            logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")


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
