"""What lies around a digit and its sheet: desks, frames and bars do not matter, and thick strokes are no sheet."""

from collections.abc import Callable

import numpy as np
import pytest
from made_digits import difference, rendered
from PIL import Image, ImageDraw
from PIL.ImageFilter import GaussianBlur, MaxFilter

from mnist_lit.errors import UserError
from mnist_lit.photos.photo import Pixels, prepare


def on_desk(
    digit: Pixels,
    desk: int = 90,
    *,
    paper: int = 215,
    ink: int = 40,
    turned: float = 0,
    moved: tuple[int, int] = (0, 0),
) -> Pixels:
    """A digit written on a sheet of 300 x 260 that lies on a desk, with a photo's blur and noise."""
    sheet, share = Image.new("L", (360, 360), 0), np.zeros((360, 360))
    sheet.paste(255, (50, 30, 310, 330))
    place = np.asarray(sheet.rotate(turned, Image.Resampling.BICUBIC, translate=moved)) / 255
    share[110:250, 110:250] = np.asarray(Image.fromarray(digit).resize((140, 140), Image.Resampling.BICUBIC)) / 255
    share = np.roll(share, moved[::-1], (0, 1))
    photo = desk * (1 - place) + place * (paper + share * (ink - paper))
    noise = np.random.default_rng(0).normal(0, 3, photo.shape)
    return np.asarray(Image.fromarray((photo + noise).clip(0, 255).astype(np.uint8)).filter(GaussianBlur(1)))


def with_bars(digit: Pixels, width: int, *sides: str) -> Pixels:
    """A dark digit on white paper, with black bars along some edges of the picture."""
    large = Image.fromarray(digit).resize((140, 140), Image.Resampling.BICUBIC)
    picture = np.pad(255 - np.asarray(large), 40, constant_values=255)
    edges = {
        "top": picture[:width],
        "bottom": picture[-width:],
        "left": picture[:, :width],
        "right": picture[:, -width:],
    }
    for side in sides:
        edges[side][:] = 0
    return picture


@pytest.mark.parametrize(
    "scene",
    [
        lambda digit: on_desk(digit, 30),
        lambda digit: on_desk(digit, 170),
        lambda digit: on_desk(digit, turned=7),
        lambda digit: on_desk(digit, turned=-10),
        lambda digit: on_desk(digit, moved=(90, 0)),
        lambda digit: on_desk(digit, turned=6, moved=(85, -60)),
        lambda digit: on_desk(digit, 170, paper=50, ink=220),
        lambda digit: (on_desk(digit, 60) * np.linspace(1, 0.5, 360)).astype(np.uint8),
        lambda digit: with_bars(digit, 1, "top", "bottom", "left", "right"),
        lambda digit: with_bars(digit, 8, "top", "bottom", "left", "right"),
        lambda digit: 255 - with_bars(digit, 8, "top", "bottom", "left", "right"),
        lambda digit: with_bars(digit, 12, "top", "bottom"),
        lambda digit: with_bars(digit, 8, "left"),
    ],
    ids=[
        *("dark desk", "light desk", "turned", "turned back", "cut off", "turned and cut off", "board", "uneven light"),
        *("thin frame", "frame", "light frame", "two bars", "bar"),
    ],
)
def test_what_lies_around_the_sheet_does_not_matter(scene: Callable[[Pixels], Pixels], digit_images: Pixels) -> None:
    # Blurred, and its faintest ink lost; the sheet taken for the digit differs by 60 and more.
    assert max(difference(prepare(scene(digit)), prepare(with_bars(digit, 0))) for digit in digit_images[:10]) < 20


@pytest.mark.parametrize("turned", [0, 10, 30, 45])
@pytest.mark.parametrize(("desk", "paper"), [(90, 215), (40, 240), (215, 60)])
def test_a_sheet_without_ink_is_refused(desk: int, paper: int, turned: float) -> None:
    blank = np.zeros((28, 28), dtype=np.uint8)
    with pytest.raises(UserError, match="a blank sheet or a filled area"):
        prepare(on_desk(blank, desk, paper=paper, turned=turned))


@pytest.mark.parametrize("turned", [0, 10, 30])
def test_a_bar_is_a_digit(turned: float) -> None:
    one = Image.new("L", (300, 300), 0)
    one.paste(255, (90, 5, 200, 295))
    assert prepare(np.asarray(one.rotate(turned))).any()


@pytest.mark.parametrize("place", [(0, 0, 110, 110), (0, 90, 60, 210), (0, 0, 40, 300), (0, 0, 110, 300)])
@pytest.mark.parametrize("thing", [30, 255])
def test_what_lies_beside_the_digit_is_not_taken_for_the_sheet(
    place: tuple[int, int, int, int], thing: int, digit_images: Pixels
) -> None:
    photo = Image.new("L", (300, 300), 200)
    digit = Image.fromarray(digit_images[0]).resize((140, 140), Image.Resampling.BICUBIC)
    photo.paste(30, (130, 90), digit)
    alone = prepare(np.asarray(photo))
    photo.paste(thing, place)
    assert difference(prepare(np.asarray(photo)), alone) < 12


def test_faint_ink_on_a_sheet_is_ink(digit_images: Pixels) -> None:
    faint = prepare(on_desk(digit_images[0], paper=215, ink=170))
    assert difference(faint, prepare(on_desk(digit_images[0]))) < 12


def test_round_sheet_is_refused_rather_than_read() -> None:
    plate = Image.new("L", (300, 300), 60)
    ImageDraw.Draw(plate).ellipse((10, 10, 290, 290), fill=220)
    ImageDraw.Draw(plate).line([(120, 100), (180, 100), (140, 200)], fill=40, width=10)
    for picture in (np.asarray(plate), 255 - np.asarray(plate)):
        with pytest.raises(UserError, match=r"^a filled area or a frame where strokes should be: cut the picture to"):
            prepare(picture)


def ink_share(image: Pixels) -> float:
    """Return how much of its box a digit, white on black, fills."""
    rows, columns = np.nonzero(image > 127)
    return float(image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].mean() / 255)


@pytest.mark.parametrize("margin", [0, 10, 60])
def test_thick_strokes_are_no_sheet(margin: int) -> None:
    pictures = [rendered(digit, 120, "DejaVuSans-Bold", margin) for digit in "0123456789"]
    for digit in "0689":
        image = Image.fromarray(rendered(digit, 120, "DejaVuSans-Bold", 30))
        fat = np.asarray(image.filter(MaxFilter(5)))
        rows, columns = np.nonzero(fat)
        pictures.append(np.pad(fat[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], margin))
    zero = np.full((200, 110), 255, dtype=np.uint8)
    zero[25:-25, 25:-25] = 0  # of a seven-segment display
    if margin:
        pictures.append(np.pad(zero, margin))
    for picture in pictures:
        assert ink_share(prepare(picture)) == pytest.approx(ink_share(picture), abs=0.08)
        assert difference(prepare(255 - picture), prepare(picture)) < 2
