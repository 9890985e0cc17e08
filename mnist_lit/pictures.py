"""Drawings of digits, curves and mistakes, and how runs keep them: as PNG files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mnist_lit.notation import cut

MAX_NAME_LENGTH = 24  # of a class beside a picture that is to have room
RIGHT, WRONG = "#222222", "#d62728"


def draw_images(
    images: np.ndarray[Any, Any],
    titles: Sequence[str] | None,
    colours: Sequence[str] | None = None,
    *,
    colour_map: str = "gray_r",
) -> Figure:
    """Lay images [N, H, W] out in a near-square grid, a title of one or more lines above each.

    uint8 images are shown over 0..255, others over a range that is symmetric around 0.
    """
    num_images, height, width = images.shape
    num_columns = math.ceil(math.sqrt(num_images))
    num_rows = math.ceil(num_images / num_columns)
    top = 2 + 8 * max((title.count("\n") + 1 for title in titles or []), default=0)  # pixels above each image
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
            text = axes.text(x + width / 2, y - 2, titles[index], ha="center", va="bottom", fontsize=8, color=colour)
            text.set_parse_math(False)  # a file's name may have dollar signs
    axes.imshow(canvas, cmap=colour_map, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
    return figure


def draw_curves(history: dict[str, list[tuple[int, float]]]) -> Figure:
    """Draw training and validation loss, and below them validation accuracy, over optimiser steps."""
    panels = [tags for tags in (["train/loss", "val/loss"], ["val/acc"]) if any(tag in history for tag in tags)]
    height = 2.6 * len(panels) + 0.4
    figure = Figure(figsize=(7, height), dpi=100)
    # Fixed margins: finding them (layout="constrained") would draw everything twice.
    figure.subplots_adjust(left=0.1, right=0.98, top=1 - 0.15 / height, bottom=0.55 / height, hspace=0.1)
    for axes, tags in zip(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True):
        for tag in tags:
            if tag in history:
                steps, values = zip(*history[tag], strict=True)
                is_sparse = tag.startswith("val") or len(steps) == 1
                axes.plot(steps, values, label=tag, marker="o" if is_sparse else None, markersize=4)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.axes[-1].set_xlabel("step")
    figure.axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def draw_reliability(bins: Sequence[tuple[float, float, int]], calibration_error: float) -> Figure:
    """Draw each bin's accuracy over its mean confidence, on the diagonal if they agree, and below how full it is.

    Each of `bins` is (mean confidence, accuracy, number of images), over equal parts of 0..1; empty ones have no bar.
    Such diagrams are described by Guo et al. (2017), On Calibration of Modern Neural Networks, section 2.
    """
    width = 1 / len(bins)
    centres = [(index + 0.5) * width for index in range(len(bins))]
    confidences, accuracies, counts = zip(*bins, strict=True)
    figure = Figure(figsize=(5, 6), dpi=100)
    figure.subplots_adjust(left=0.13, right=0.97, top=0.98, bottom=0.09, hspace=0.08)
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    above.bar(centres, accuracies, width, color="#9ecae1", edgecolor="white")
    above.plot([0, 1], [0, 1], color=RIGHT, linewidth=1, linestyle="--", label="as sure as right")
    full = [index for index, count in enumerate(counts) if count]
    above.plot(
        [confidences[index] for index in full],
        [accuracies[index] for index in full],
        color=WRONG,
        marker="o",
        markersize=4,
        label=f"calibration error {calibration_error:.4f}",
    )
    above.set_ylabel("accuracy")
    above.set_ylim(0, 1)
    above.legend(loc="lower right")
    below.bar(centres, counts, width, color="#9ecae1", edgecolor="white")
    below.set_yscale("symlog")  # nearly all images are in the last bin
    below.set_ylabel("images")
    below.set_xlabel("confidence")
    below.set_xlim(0, 1)
    return figure


def draw_confusion_matrix(confusion: np.ndarray[Any, Any], names: Sequence[str]) -> Figure:
    """Draw counts [C, C], row: the label, column: the prediction; colours show each row's shares."""
    figure = Figure(figsize=(6, 6), dpi=100)
    names = [cut(name, MAX_NAME_LENGTH) for name in names]
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


def save(figure: Figure, path: Path) -> np.ndarray[Any, Any]:
    """Write a PNG file, making its folder, and return the same pixels uint8 [H, W, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(str(path), pil_kwargs={"compress_level": 1})  # a fifth larger, in half the time
    return np.asarray(canvas.buffer_rgba())[..., :3]
