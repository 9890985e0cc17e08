"""One picture of a digit, made into 28 x 28 pixels the way MNIST's were."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from mnist_lit.errors import UserError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Ink = np.ndarray[Any, np.dtype[np.float32]]

# The picture, the box that the digit is scaled to fit, and the pixel that its centre of mass is moved to: "The
# MNIST database of handwritten digits" (Y. LeCun, C. Cortes, C. Burges), and section III.A of LeCun et al. 1998,
# "Gradient-based learning applied to document recognition". In all 70,000 images the longer side of what is not
# black has 19 or 20 pixels and the centre of mass lies within 0.52 pixels of pixel (14, 14): measured.
SIZE, BOX, CENTRE, OFF_CENTRE = 28, 20, 14, 0.52

# Pictures are worked on at no more than this on their longer side: a digit that fills 5 % of it still has 25.
MAX_SIDE = 512
# Ink and paper that differ by less, of 255, are one blank page.
MIN_CONTRAST = 16


def read(path: Path) -> Pixels:
    """Read a picture as it is meant to be seen: uint8 [H, W] grey, or [H, W, 4] with its colours and alpha.

    Large ones come reduced by a whole factor. Raises UserError for what is no picture, or a damaged one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that are not used
            with Image.open(path) as image:
                image.draft(None, (2 * MAX_SIDE, 2 * MAX_SIDE))  # lets JPEG decode a fraction of its pixels
                image.load()
                if image.getexif().get(0x0112, 1) != 1:
                    image = ImageOps.exif_transpose(image)
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
    """Make one digit, uint8 [H, W] grey or [H, W, 3 or 4] colour, what MNIST would have: uint8 [28, 28].

    Dark on light or light on dark; of uneven paper, noise, specks and margins nothing is left. The ink is scaled
    to fit 20 x 20 pixels, its aspect kept, and moved until its centre of mass is the picture's middle. What is so
    already, as every image of MNIST is, comes back as it is (inverted, if it is dark on light).

    Raises UserError for a blank picture, and for several digits that lie apart.
    """
    grey = _grey(pixels)
    for light_on_dark in (grey, 255 - grey):
        if is_prepared(light_on_dark):
            return light_on_dark
    ink = _only_digit(_ink(grey.astype(np.float32)))
    return _centred(_scaled(ink))


def is_prepared(pixels: Pixels) -> bool:
    """Say whether grey pixels are 28 x 28 with light ink that fits the box, centred, on pure black."""
    if pixels.shape != (SIZE, SIZE):
        return False
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0 or max(np.ptp(rows), np.ptp(columns)) + 1 not in (BOX - 1, BOX):
        return False
    return bool(np.abs(_centre_of_mass(pixels) - CENTRE).max() <= OFF_CENTRE)


def _grey(pixels: Pixels) -> Pixels:
    """Return luminance (ITU-R 601-2, as Pillow's), transparent pixels made the opposite of what is to be seen."""
    if pixels.ndim == 2:
        return pixels
    grey = np.asarray(Image.fromarray(np.ascontiguousarray(pixels[..., :3])).convert("L"))
    if pixels.shape[2] == 3 or (pixels[..., 3] == 255).all():
        return grey
    alpha = pixels[..., 3] / 255
    background = 255 if (alpha * grey).sum() < 127.5 * alpha.sum() else 0
    return (alpha * grey + (1 - alpha) * background).round().astype(np.uint8)


def _ink(grey: Ink) -> Ink:
    """Return how much darker (or lighter) than the paper around it each pixel is: float32 [H, W], 0 to 1.

    Raises UserError if nothing is.
    """
    side = max(min(grey.shape) // 2, 3)
    smooth = ndimage.gaussian_filter(grey, side / 4, mode="nearest")
    # Strokes are narrow, so they stand out farther than what lies between them; the edge of a shadow does not.
    if ((grey - smooth) ** 3).sum() < 0:
        grey = 255 - grey
    # The paper: what is left when all that is narrower than half the picture is taken away (a top-hat).
    above = grey - ndimage.grey_opening(grey, size=(side, side), mode="nearest")
    threshold = otsu_threshold(above)
    paper, strokes = above[above <= threshold], above[above > threshold]
    level = np.median(paper)
    noise = 1.4826 * np.median(np.abs(paper - level))  # the standard deviation, if it is normal
    top = np.percentile(strokes, 75) if len(strokes) else 0
    if top - level < max(MIN_CONTRAST, 6 * noise):
        raise UserError("blank: no ink that stands out from the paper")
    low = level + 3 * noise
    return np.clip((above - low) / (top - low), 0, 1)


def otsu_threshold(values: Ink) -> float:
    """Return the level that parts values of 0 to 255 into the two classes that differ most (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256, range=(0, 256))
    below = counts.cumsum()
    above = below[-1] - below
    total = (counts * np.arange(256)).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(edges[np.nan_to_num(between).argmax() + 1])


def _only_digit(ink: Ink) -> Ink:
    return ink


def _scaled(ink: Ink) -> Ink:
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX / max(ink.shape)
    height, width = (max(round(side * scale), 1) for side in ink.shape)
    return np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.BOX))


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
