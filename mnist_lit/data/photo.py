"""One picture of a digit, made into 28 x 28 pixels the way MNIST's were."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from mnist_lit.errors import UserError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Ink = np.ndarray[Any, np.dtype[np.float32]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Labels = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]

# The picture, the box that the digit is scaled to fit, and the pixel that its centre of mass is moved to: "The
# MNIST database of handwritten digits" (Y. LeCun, C. Cortes, C. Burges), and section III.A of LeCun et al. 1998,
# "Gradient-based learning applied to document recognition". In all 70,000 images the longer side of what is not
# black has 19 or 20 pixels and the centre of mass lies within 0.52 pixels of pixel (14, 14): measured.
SIZE, BOX, CENTRE, OFF_CENTRE = 28, 20, 14, 0.52

# Larger pictures are reduced until their longer side is below twice this: a digit that fills a tenth still has 25.
MAX_SIDE = 256
# Ink and paper that differ by less, of 255, are one blank page.
MIN_CONTRAST = 32
BLANK = "blank: no ink that stands out from the paper"
# The paper is estimated on a picture of this longer side; for paper darker than this, contrast is raised no further.
PAPER_SIDE, DARKEST_PAPER = 64, 64
# In shares of the longest stroke's and digit's side: strokes that lie closer are one digit, smaller marks are specks.
# Of 100 pairs of test digits, 75 were refused 2 pixels apart (of 20), and all 3 pixels apart; of 100 single ones none.
GAP, SPECK = 0.06, 0.3
# The share of ink from which on a pixel counts as the digit's when its box is measured.
EDGE = 0.2
# Thinner strokes, in pixels of the 20, are thickened to this: lines of 0.4 pixels are then read right 94 times in 100
# (without, 59), by a network that reads 97 of the same test digits as they are.
THINNEST_STROKE = 2.0


def read(path: Path) -> Pixels:
    """Read a picture as it is meant to be seen: uint8 [H, W] grey, or [H, W, 4] with its colours and alpha.

    Large ones come reduced by a whole factor. Raises UserError for what is no picture, or a damaged one.
    """
    try:
        with Image.open(path) as file:
            file.draft(None, (2 * MAX_SIDE, 2 * MAX_SIDE))  # lets JPEG decode a fraction of its pixels
            file.load()
            image = ImageOps.exif_transpose(file)
    except Image.DecompressionBombError as error:
        raise UserError(str(error)) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError("not a picture, or a damaged one") from error
    return _pixels(image)


def _pixels(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(((values - values.min()) * 255 / max(np.ptp(values), 1e-9)).astype(np.uint8))
    if image.mode != "L":
        image = image.convert("L" if image.mode == "1" else "RGBA")
    factor = max(image.size) // MAX_SIDE
    return np.asarray(image.reduce(factor) if factor > 1 else image)


def prepare(pixels: Pixels) -> Pixels:
    """Preprocess one digit, uint8 [H, W] grey or [H, W, 3 or 4] colour, as MNIST's were: uint8 [28, 28].

    Dark on light or light on dark; of uneven paper, noise, specks and margins nothing is left. The ink is scaled
    to fit 20 x 20 pixels, its aspect kept, and moved until its centre of mass is the picture's middle, or as far as
    it stays within the picture. What is so already, as every image of MNIST is, comes back as it is (inverted, if it
    is dark on light).

    Raises UserError for a blank picture, and for several digits that lie apart.
    """
    grey = _grey(pixels)
    if not grey.size or np.ptp(grey) < MIN_CONTRAST:
        raise UserError(BLANK)
    for light_on_dark in (grey, 255 - grey):
        if is_prepared(light_on_dark):
            return light_on_dark
    return _centred(_scaled(_only_digit(*_ink(grey.astype(np.float32)))))


def is_prepared(pixels: Pixels) -> bool:
    """Say whether grey pixels are 28 x 28 with light ink that fits the box, centred, on pure black."""
    if pixels.shape != (SIZE, SIZE):
        return False
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0 or max(np.ptp(rows), np.ptp(columns)) + 1 not in (BOX - 1, BOX):
        return False
    return bool(np.abs(_centre_of_mass(pixels) - CENTRE).max() <= OFF_CENTRE)


def _grey(pixels: Pixels) -> Pixels:
    """Return luminance (ITU-R 601-2, as Pillow's); what is transparent becomes black or white, unlike what is not."""
    if pixels.ndim == 2:
        return pixels
    grey: Pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels[..., :3])).convert("L"))
    if pixels.shape[2] == 3 or (pixels[..., 3] == 255).all():
        return grey
    alpha = pixels[..., 3] / 255
    background = 255 if (alpha * grey).sum() < 127.5 * alpha.sum() else 0
    return np.asarray((alpha * grey + (1 - alpha) * background).round(), dtype=np.uint8)


def _ink(grey: Ink) -> tuple[Ink, Mask]:
    """Tell ink from paper: how much of it is in each pixel, float32 [H, W] from 0 to 1, and where it surely is.

    Raises UserError if there is none.
    """
    # The paper is smooth, so a small picture tells it.
    small = np.asarray(Image.fromarray(grey).resize(_within(grey.shape, PAPER_SIDE), Image.Resampling.BOX))
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


def otsu_threshold(values: Ink) -> float:
    """Return the level that parts values of 0 to 255 into the two classes that differ most (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256, range=(0, 256))
    below = counts.cumsum()
    above = below[-1] - below
    total = (counts * np.arange(256)).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(edges[np.nan_to_num(between).argmax() + 1])


def _only_digit(ink: Ink, mask: Mask) -> Ink:
    """Cut out the one digit: ink [H, W], nothing else in it.

    Raises UserError if there are several.
    """
    marks, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    reach = max(round(GAP * _longest_side(marks).max()), 1)
    # Strokes of one digit may stop short of each other.
    groups, _ = ndimage.label(ndimage.maximum_filter(mask, size=2 * reach + 1))
    groups *= mask
    sides = _longest_side(groups)
    is_digit = sides >= SPECK * sides.max()
    if is_digit.sum() > 1:  # a table's edge or a shadow runs out of the picture
        border = np.concatenate([groups[0], groups[-1], groups[:, 0], groups[:, -1]])
        inside = is_digit & ~np.isin(np.arange(1, len(sides) + 1), border)
        is_digit = inside if inside.any() else is_digit
    if is_digit.sum() > 1:
        raise UserError(f"{is_digit.sum()} digits that lie apart: cut them into pictures of their own")
    digit, side = groups == is_digit.argmax() + 1, sides[is_digit.argmax()]
    rows, columns = ndimage.find_objects(digit.astype(int))[0]
    # With the paler rim that belongs to it.
    rim = max(round(side / 2 / BOX), 1)
    around = tuple(slice(max(part.start - 2 * rim, 0), part.stop + 2 * rim) for part in (rows, columns))
    digit = digit[around]
    ink = np.where(ndimage.maximum_filter(digit, size=2 * rim + 1), ink[around], 0)
    # A line's width is twice its area over its outline; the grid's edges are 4 / pi as long (Crofton's formula).
    edges = sum(np.count_nonzero(np.diff(np.pad(digit, 1), axis=axis)) for axis in (0, 1))
    width = 2 * np.count_nonzero(digit) / (edges * np.pi / 4) * BOX / side
    if (growth := round((THINNEST_STROKE - width) * side / BOX)) > 0:
        ink = ndimage.maximum_filter(np.pad(ink, growth), size=growth + 1)
    return ink


def _longest_side(labels: Labels) -> Labels:
    """Return the longer side of the box around each label from 1 on."""
    found = ndimage.find_objects(labels)
    return np.array([max(side.stop - side.start for side in box) for box in found])


def _scaled(ink: Ink) -> Ink:
    rows, columns = (np.flatnonzero((ink > EDGE).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX / max(ink.shape)
    height, width = (max(round(side * scale), 1) for side in ink.shape)
    return np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.BOX))


def _within(shape: tuple[int, ...], longest: int) -> tuple[int, int]:
    """Return the size (width, height) of a picture [H, W] shrunk until no side is longer."""
    scale = min(longest / max(shape), 1)
    return max(round(shape[1] * scale), 1), max(round(shape[0] * scale), 1)


def _centred(ink: Ink) -> Pixels:
    top, left = np.floor(CENTRE + 0.5 - _centre_of_mass(ink)).astype(int)
    height, width = ink.shape
    top, left = min(max(top, 0), SIZE - height), min(max(left, 0), SIZE - width)
    canvas = np.zeros((SIZE, SIZE), dtype=np.uint8)
    canvas[top : top + height, left : left + width] = (ink * 255).round()
    return canvas


def _centre_of_mass(pixels: Pixels | Ink) -> Ink:
    """Return row and column, counted from 0."""
    masses = [pixels.sum(axis=1, dtype=np.float32), pixels.sum(axis=0, dtype=np.float32)]
    return np.array([(mass * np.arange(len(mass))).sum() / mass.sum() for mass in masses])
