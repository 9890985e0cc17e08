"""The ink of a picture, told from the paper it is on."""

from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from mnist_lit.errors import UserError

Ink = np.ndarray[Any, np.dtype[np.float32]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Labels = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]

# Ink and paper that differ by less, of 255, are one blank page.
MIN_CONTRAST = 32
BLANK = "blank: no ink that stands out from the paper"
# The paper is estimated on a picture of this longer side; for paper darker than this, contrast is raised no further.
PAPER_SIDE, DARKEST_PAPER = 64, 64


def tell_ink(grey: Ink) -> tuple[Ink, Mask]:
    """Tell ink from paper: how much of it is in each pixel, float32 [H, W] from 0 to 1, and where it surely is.

    Raises UserError if there is none.
    """
    small = shrink(grey)
    side = max(min(small.shape) // 2, 3)
    # Strokes are narrow, so they stand out farther than what lies between them; the edge of a shadow does not.
    away = small - ndimage.gaussian_filter(small, min(small.shape) / 3, mode="nearest")
    if is_dark := bool((away**3).sum() < 0):
        grey, small = 255 - grey, 255 - small
    # What is left of it when everything narrower than half the picture is taken away (a top-hat transform).
    opened = ndimage.grey_opening(small, size=(side, side), mode="nearest")
    paper = np.asarray(Image.fromarray(opened).resize(grey.shape[::-1], Image.Resampling.BILINEAR))
    above = np.maximum(grey - paper, 0)
    if is_dark:  # ink takes away a share of the light, less of it in a shadow
        above *= 255 / np.maximum(255 - paper, DARKEST_PAPER)
    threshold = otsu_threshold(above)
    mask = above > threshold
    if not mask.any():
        raise UserError(BLANK)
    level = np.median(above[~mask])
    noise = 1.4826 * np.median(np.abs(above[~mask] - level))  # the standard deviation, if it is normal
    top = np.percentile(above[mask], 75)
    if top - level < max(MIN_CONTRAST, 8 * noise):
        raise UserError(BLANK)
    low = level + 3 * noise
    return np.clip((above - low) / (top - low), 0, 1), mask


def shrink(grey: Ink) -> Ink:
    """Shrink a picture [H, W] until no side is longer than PAPER_SIDE: paper is smooth, so a small one tells it."""
    scale = min(PAPER_SIDE / max(grey.shape), 1)
    height, width = (max(round(side * scale), 1) for side in grey.shape)
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BOX))


def otsu_threshold(values: Ink) -> float:
    """Return the level that parts values of 0 to 255 into the two classes that differ most (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256, range=(0, 256))
    below = counts.cumsum()
    above = below[-1] - below
    total = (counts * np.arange(256)).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(edges[np.nan_to_num(between).argmax() + 1])


def longest_side(labels: Labels) -> Labels:
    """Return the longer side of the box around each label from 1 on."""
    found = ndimage.find_objects(labels)
    return np.array([max(side.stop - side.start for side in box) for box in found])


def edge_of(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the pixels along the edge of a picture [H, W], those in the corners twice."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
