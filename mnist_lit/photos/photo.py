"""One picture, made into the 28 x 28 pixels of a data set: a digit the way MNIST's were, anything else as a whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from scipy import ndimage

from mnist_lit.errors import UserError
from mnist_lit.photos.ink import BLANK, MIN_CONTRAST, Ink, Mask, edge_of, longest_side, tell_ink
from mnist_lit.photos.sheet import cut_out_sheet

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

# The picture, the box that the digit is scaled to fit, and the pixel that its centre of mass is moved to: "The
# MNIST database of handwritten digits" (Y. LeCun, C. Cortes, C. Burges), and section III.A of LeCun et al. 1998,
# "Gradient-based learning applied to document recognition". In all 70,000 images the longer side of what is not
# black has 19 or 20 pixels and the centre of mass lies within 0.52 pixels of pixel (14, 14): measured.
SIZE, BOX, CENTRE, OFF_CENTRE = 28, 20, 14, 0.52

# By Exif's tag of the orientation. ImageOps.exif_transpose also rewrites all other tags, and fails at a damaged one.
TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Larger pictures are reduced until their longer side is below twice this: a digit that fills a tenth still has 25.
MAX_SIDE = 256
# In shares of the longest stroke's and digit's side: strokes that lie closer are one digit, smaller marks are specks.
# Of 100 pairs of test digits, 75 were refused 2 pixels apart (of 20), and all 3 pixels apart; of 100 single ones none.
GAP, SPECK = 0.06, 0.3
# In shares of the square of the digit's longer side, and of the picture's edge: a mark that covers more of them is a
# sheet, or a desk or frame all around, that was not told as such. A round sheet covers 0.68, one MNIST digit in 1,000
# more than 0.6.
MOST_INK, ALONG_EDGE = 0.65, 0.9
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
            turn = TURNS.get(file.getexif().get(ExifTags.Base.Orientation))
            image = file if turn is None else file.transpose(turn)
    except Image.DecompressionBombError as error:
        raise UserError(str(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes one of Pillow's decoders raise
        raise UserError("not a picture, or a damaged one") from error
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

    Dark on light or light on dark; of uneven paper, noise, specks and margins nothing is left, nor of a desk, a frame
    or bars around the sheet that the digit is on, if that is roughly rectangular. The ink is scaled to fit
    20 x 20 pixels, its aspect kept, and moved until its centre of mass is the picture's middle, or as far as it stays
    within the picture. What is so already, as every image of MNIST is, comes back as it is (inverted, if it is dark on
    light).

    Raises UserError for a blank picture or sheet, for several digits that lie apart, and for a filled area or a frame
    instead of strokes.
    """
    grey = _grey(pixels)
    for light_on_dark in (grey, 255 - grey):
        if is_prepared(light_on_dark):
            return light_on_dark
    return _centred(_scaled(_only_digit(*tell_ink(cut_out_sheet(grey.astype(np.float32))))))


def as_whole(pixels: Pixels) -> Pixels:
    """Fit a picture of anything, uint8 [H, W] grey or [H, W, 3 or 4] colour, into uint8 [28, 28], light on black.

    Pixels that are 28 x 28 stay as they are, only grey. Others are inverted if the median of those at the picture's
    edge is light, resized until the longer side is 28, and centred.

    Raises UserError for a blank picture.
    """
    grey = _grey(pixels)
    if grey.shape == (SIZE, SIZE):
        return grey
    if np.median(edge_of(grey)) > 127:
        grey = 255 - grey
    height, width = (max(round(side * SIZE / max(grey.shape)), 1) for side in grey.shape)
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    canvas = np.zeros((SIZE, SIZE), dtype=np.uint8)
    resized = Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR)
    canvas[top : top + height, left : left + width] = np.asarray(resized)
    return canvas


def preparation(data_name: str) -> Callable[[Pixels], Pixels]:
    """Return what makes pictures those of a data set, by its name: `prepare` for MNIST's digits, else `as_whole`."""
    return prepare if data_name == "MNIST" else as_whole


def is_prepared(pixels: Pixels) -> bool:
    """Say whether grey pixels are 28 x 28 with light ink that fits the box, centred, on pure black."""
    if pixels.shape != (SIZE, SIZE):
        return False
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0 or max(np.ptp(rows), np.ptp(columns)) + 1 not in (BOX - 1, BOX):
        return False
    return bool(np.abs(np.array(ndimage.center_of_mass(pixels)) - CENTRE).max() <= OFF_CENTRE)


def _grey(pixels: Pixels) -> Pixels:
    """Return the luminance of a picture; raises UserError for a blank one."""
    grey = _luminance(pixels)
    if not grey.size or np.ptp(grey) < MIN_CONTRAST:
        raise UserError(BLANK)
    return grey


def _luminance(pixels: Pixels) -> Pixels:
    """Return luminance (ITU-R 601-2, as Pillow's); transparent pixels become black or white, unlike the rest."""
    if pixels.ndim == 2:
        return pixels
    grey: Pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels[..., :3])).convert("L"))
    if pixels.shape[2] == 3 or (pixels[..., 3] == 255).all():
        return grey
    alpha = pixels[..., 3] / 255
    background = 255 if (alpha * grey).sum() < 127.5 * alpha.sum() else 0
    return np.asarray((alpha * grey + (1 - alpha) * background).round(), dtype=np.uint8)


def _only_digit(ink: Ink, mask: Mask) -> Ink:
    """Cut out the one digit: ink [H, W], nothing else in it.

    Raises UserError if there are several, or something else instead.
    """
    marks, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    reach = max(round(GAP * longest_side(marks).max()), 1)
    # Strokes of one digit may stop short of each other.
    groups, _ = ndimage.label(ndimage.maximum_filter(mask, size=2 * reach + 1))
    groups *= mask
    sides = longest_side(groups)
    is_digit = sides >= SPECK * sides.max()
    if is_digit.sum() > 1:  # a table's edge or a shadow runs out of the picture
        inside = is_digit & ~np.isin(np.arange(1, len(sides) + 1), edge_of(groups))
        is_digit = inside if inside.any() else is_digit
    if is_digit.sum() > 1:
        raise UserError(f"{is_digit.sum()} marks that lie apart: if they are digits, cut each into a picture")
    digit, side = groups == is_digit.argmax() + 1, sides[is_digit.argmax()]
    rows, columns = ndimage.find_objects(digit.astype(int))[0]
    if np.count_nonzero(digit) > MOST_INK * side**2 or edge_of(digit).mean() > ALONG_EDGE:
        raise UserError("a filled area or a frame where strokes should be: cut the picture to the digit and its paper")
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


def _scaled(ink: Ink) -> Ink:
    rows, columns = (np.flatnonzero((ink > EDGE).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX / max(ink.shape)
    height, width = (max(round(side * scale), 1) for side in ink.shape)
    return np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.BOX))


def _centred(ink: Ink) -> Pixels:
    top, left = np.floor(CENTRE + 0.5 - np.array(ndimage.center_of_mass(ink))).astype(int)
    height, width = ink.shape
    top, left = min(max(top, 0), SIZE - height), min(max(left, 0), SIZE - width)
    canvas = np.zeros((SIZE, SIZE), dtype=np.uint8)
    canvas[top : top + height, left : left + width] = (ink * 255).round()
    return canvas
