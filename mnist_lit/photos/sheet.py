"""The sheet of paper that a digit is on, told from the desk, the frame or the bars around it."""

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial import ConvexHull

from mnist_lit.errors import UserError
from mnist_lit.photos.ink import MIN_CONTRAST, PAPER_SIDE, Ink, Mask, edge_of, longest_side, otsu_threshold, shrink

# A sheet's shares of its convex hull and of the smallest rectangle around it: 0.96 and 0.88 were the least of sheets
# turned by 0 to 45 degrees, seen from aside or cut off by the picture's edge. Ellipses, such as a filled "0", have
# 0.79 of their rectangle, and the fattest "5" and "8" of DejaVu's fonts, outlined, 0.87.
SOLID, RECTANGULAR = 0.95, 0.88
# What a sheet has room for, in widths of its strokes: 1.6 at the least with the thickest MNIST digits, their 4 pixels
# of margin around them. A bar is less wide than a loop: "0" and "8" of a seven-segment display stay digits until their
# strokes are wider than a third of them.
ROOM = 1.5
# In shares of the sheet's longer side: what is smaller is no digit.
SMALLEST_INK = 0.1
# In shares of its length: a narrower rectangle without ink may be a "1". In grey values of the small picture: a deeper
# mark may be a thin pen's.
NARROWEST, DEEPEST_BLANK = 0.4, 5


def cut_out_sheet(grey: Ink) -> Ink:
    """Cut out the sheet that the digit is on: grey values float32 [H, W], or [h, w] where something lies around it.

    Corners of these that are not of the sheet repeat what is next to them. Raises UserError for a sheet without ink.
    """
    small = shrink(grey)
    for light in (small, 255 - small):
        # Of ink on the sheet nothing is left; the desk, which runs out of the picture, remains.
        filled = _filled(light)
        bright = filled > otsu_threshold(filled)
        if not bright.any() or bright.all():
            continue
        marks, _ = ndimage.label(bright)
        sheet = marks == np.bincount(marks[bright]).argmax()
        inside = ndimage.binary_erosion(sheet, iterations=2, border_value=1)  # without the blurred edge
        if not inside.any() or not _ends_at_a_step(sheet, inside, filled):
            continue
        solid, rectangular, width = _shape(sheet)
        if rectangular < RECTANGULAR:
            continue
        depth = filled - light
        # The digit may lie beside a smaller one, and what runs along the picture's edge may be all that it leaves.
        is_most = sheet.mean() > 0.5 > edge_of(sheet).mean()
        if is_most and depth[inside].max() < DEEPEST_BLANK and width >= NARROWEST:
            raise UserError("a blank sheet or a filled area: no ink stands out from it")
        if solid >= SOLID and _has_digit(sheet, inside, filled, depth):
            inside = np.asarray(Image.fromarray(inside).resize(grey.shape[::-1]))
            box = ndimage.find_objects(inside.astype(int))[0]
            nearest = ndimage.distance_transform_edt(~inside[box], return_distances=False, return_indices=True)
            return np.asarray(grey[box][tuple(nearest)])
    return grey


def _filled(light: Ink) -> Ink:
    """Raise every hollow to where it would run over, as water does, and at last out of the picture."""
    level = np.full_like(light, 255)
    while True:
        lower = np.maximum(light, ndimage.minimum_filter(level, 3, mode="constant", cval=0))
        if (lower == level).all():
            return level
        level = lower


def _ends_at_a_step(sheet: Mask, inside: Mask, filled: Ink) -> bool:
    """Say whether it is lighter than what is around it: evenly lit from one side, paper has no such edge."""
    around = ndimage.binary_dilation(sheet, iterations=2) & ~sheet
    return bool(np.median(filled[sheet & ~inside]) - np.median(filled[around]) >= MIN_CONTRAST / 2)


def _shape(area: Mask) -> tuple[float, float, float]:
    """Return an area's [H, W] shares of its convex hull and of the smallest rectangle around it, and how wide that is.

    The rectangle may be turned by any angle; its width is in shares of its length.
    """
    # Of each pixel the middles of its sides, so that turned areas are as large as they were.
    hull = ConvexHull(np.concatenate([np.argwhere(area) + half for half in np.vstack([np.eye(2), -np.eye(2)]) / 2]))
    angles = np.radians(np.arange(0, 180, 3))
    widths = np.ptp(hull.points[hull.vertices] @ [np.cos(angles), np.sin(angles)], axis=0)
    sides = np.sort([widths[:30], widths[30:]], axis=0)
    shorter, longer = sides[:, sides.prod(axis=0).argmin()]
    size = np.count_nonzero(area)
    return size / hull.volume, size / (shorter * longer), shorter / longer


def _has_digit(sheet: Mask, inside: Mask, filled: Ink, depth: Ink) -> bool:
    """Say whether a sheet [H, W] has a digit on it: `depth` is that of its ink, `filled` the sheet without."""
    deepest = depth[inside].max()
    ink = depth > deepest / 2
    # What crosses its edge is cut by a shadow's, not by the sheet's.
    if deepest < MIN_CONTRAST / 2 or (ink & sheet & ~inside).any():
        return False
    ink &= inside
    if longest_side(ink.astype(int))[0] < SMALLEST_INK * longest_side(sheet.astype(int))[0]:
        return False
    # Between strokes that are lighter still, the "ink" is what they enclose.
    above = np.where(inside, filled, 255)
    if (above - ndimage.grey_opening(above, (PAPER_SIDE // 6, PAPER_SIDE // 6), mode="nearest")).max() > 0.9 * deepest:
        return False
    room, stroke = (ndimage.distance_transform_edt(np.pad(part, 1)).max() for part in (inside & ~ink, ink))
    return bool(room > ROOM * stroke)
