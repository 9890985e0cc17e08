"""One picture made MNIST's: what has to come back unchanged, what must not matter, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_digits import FONTS, rendered
from PIL import Image, ImageDraw, ImageOps
from PIL.ImageFilter import GaussianBlur, MaxFilter

from mnist_lit.data.idx import read_idx
from mnist_lit.data.sources import SAMPLE_DIR, TEST_IMAGES
from mnist_lit.errors import UserError
from mnist_lit.photos.photo import BOX, CENTRE, SIZE, Pixels, as_whole, is_prepared, preparation, prepare, read


@pytest.fixture(scope="module")
def digits() -> Pixels:
    images: Pixels = read_idx(SAMPLE_DIR / f"{TEST_IMAGES}.gz", num_dims=3, md5=None).numpy()
    return images


def difference(a: Pixels, b: Pixels) -> float:
    """Return the mean absolute difference, of 255."""
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def test_mnist_comes_back_to_the_bit(digits: Pixels) -> None:
    for image in digits:
        assert (prepare(image) == image).all()
        assert (prepare(255 - image) == image).all()


@pytest.mark.parametrize("font", FONTS)
@pytest.mark.parametrize("size", [30, 120, 700])
def test_a_digit_fills_the_box_and_its_mass_is_in_the_middle(font: str, size: int) -> None:
    for digit in "0123456789":
        image = prepare(rendered(digit, size, font))
        rows, columns = np.nonzero(image)
        assert image.shape == (SIZE, SIZE)
        assert image.dtype == np.uint8
        assert image.max() == 255
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == BOX
        for positions in (rows, columns):
            off = np.average(positions, weights=image[rows, columns]) - CENTRE
            # A flag of a "7" may weigh so much that its foot would leave the picture.
            assert abs(off) < 0.51 or positions.max() == SIZE - 1
        assert is_prepared(image) or digit == "7"


def test_aspect_is_kept() -> None:
    tall, wide = np.zeros((2, 300, 300), dtype=np.uint8)
    tall[100:200, 100:130] = wide[100:130, 100:200] = 255
    for image, shape in ((prepare(tall), (20, 6)), (prepare(wide), (6, 20))):
        rows, columns = np.nonzero(image)
        assert [np.ptp(rows) + 1, np.ptp(columns) + 1] == list(shape)


def test_margin_position_and_canvas_do_not_matter() -> None:
    digit = rendered("5", margin=0)
    expected = prepare(np.pad(digit, 30))
    for margins in (((5, 90), (70, 3)), ((100, 100), (100, 100)), ((0, 60), (0, 60))):
        assert difference(prepare(np.pad(digit, margins)), expected) < 3


def test_ink_may_be_dark_faint_or_coloured() -> None:
    digit = rendered("5")
    expected = prepare(digit)
    assert difference(prepare(255 - digit), expected) < 1
    assert difference(prepare((digit // 4 + 90).astype(np.uint8)), expected) < 3
    share = digit[..., None] / 255
    navy_on_yellow = (share * [0, 0, 128] + (1 - share) * [255, 240, 120]).astype(np.uint8)
    assert difference(prepare(navy_on_yellow), expected) < 3


@pytest.mark.parametrize("colour", [0, 255])
def test_ink_on_nothing(colour: int) -> None:
    digit = rendered("5")
    pixels = np.full((*digit.shape, 4), colour, dtype=np.uint8)
    pixels[..., 3] = digit
    assert difference(prepare(pixels), prepare(digit)) < 1
    opaque = np.stack([digit, digit, digit, np.full_like(digit, 255)], axis=-1)
    assert (prepare(opaque) == prepare(digit)).all()


def test_twice_the_size_is_the_same(digits: Pixels) -> None:
    digit = rendered("8")
    twice = np.asarray(Image.fromarray(digit).resize((2 * digit.shape[1], 2 * digit.shape[0])))
    assert difference(prepare(twice), prepare(digit)) < 4
    for image in digits[:100]:
        twice = np.asarray(Image.fromarray(image).resize((56, 56)))
        # Blurred, but no other digit: two test digits differ by 40.
        assert difference(prepare(twice), image) < 25


def test_uneven_paper_noise_and_specks_do_not_matter() -> None:
    digit = rendered("3", 200, margin=80).astype(np.float64)
    rng = np.random.default_rng(0)
    height, width = digit.shape
    light = np.linspace(230, 110, width) + np.linspace(0, -30, height)[:, None]
    paper = light * (1 - 0.7 * digit / 255) + rng.normal(0, 4, digit.shape)
    paper[10:14, 20:24] = 30
    expected = prepare(digit.astype(np.uint8))
    assert difference(prepare(paper.clip(0, 255).astype(np.uint8)), expected) < 5


def test_thin_pens_leave_strokes_as_wide_as_mnists() -> None:
    image = Image.new("L", (400, 400), 255)
    ImageDraw.Draw(image).line([(120, 60), (280, 60), (180, 340)], fill=0, width=3)
    seven = prepare(np.asarray(image))
    assert seven.max() == 255
    # The length of both lines in the box is 31 pixels.
    assert 1.3 * 31 < seven.sum() / 255 < 3 * 31


@pytest.mark.parametrize("pixels", [np.zeros((28, 28)), np.full((300, 200), 180), np.full((1, 1), 3), np.zeros((0, 5))])
def test_blank_pictures_are_refused(pixels: np.ndarray[Any, Any]) -> None:
    with pytest.raises(UserError, match=r"^blank: "):
        prepare(pixels.astype(np.uint8))


def test_noise_is_no_ink() -> None:
    noise = np.random.default_rng(0).normal(180, 6, (200, 300)).clip(0, 255).astype(np.uint8)
    with pytest.raises(UserError, match=r"^blank: "):
        prepare(noise)


@pytest.mark.parametrize("text", ["12", "1 7", "305"])
def test_digits_that_lie_apart_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=rf"^{len(text.replace(' ', ''))} marks that lie apart"):
        prepare(255 - rendered(text))


def test_strokes_that_nearly_meet_are_one_digit() -> None:
    five = np.zeros((200, 200), dtype=np.uint8)
    five[40:52, 75:130] = five[57:170, 70:82] = 255
    assert prepare(five).any()


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
def test_what_lies_around_the_sheet_does_not_matter(scene: Callable[[Pixels], Pixels], digits: Pixels) -> None:
    # Blurred, and its faintest ink lost; the sheet taken for the digit differs by 60 and more.
    assert max(difference(prepare(scene(digit)), prepare(with_bars(digit, 0))) for digit in digits[:10]) < 20


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
    place: tuple[int, int, int, int], thing: int, digits: Pixels
) -> None:
    photo = Image.new("L", (300, 300), 200)
    digit = Image.fromarray(digits[0]).resize((140, 140), Image.Resampling.BICUBIC)
    photo.paste(30, (130, 90), digit)
    alone = prepare(np.asarray(photo))
    photo.paste(thing, place)
    assert difference(prepare(np.asarray(photo)), alone) < 12


def test_faint_ink_on_a_sheet_is_ink(digits: Pixels) -> None:
    faint = prepare(on_desk(digits[0], paper=215, ink=170))
    assert difference(faint, prepare(on_desk(digits[0]))) < 12


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


def test_two_digits_in_light_from_one_side_are_still_two() -> None:
    paper = 255 - rendered("3  5") * np.float64(0.8)
    with pytest.raises(UserError, match=r"^2 marks that lie apart"):
        prepare((paper * np.linspace(1, 0.4, paper.shape[1])).astype(np.uint8))


def test_pictures_of_anything_are_taken_as_a_whole(digits: Pixels) -> None:
    coat = np.full((28, 28), 200, dtype=np.uint8)  # it fills its picture from edge to edge
    coat[:, 13:15] = 90
    for image in (coat, *digits[:5]):
        assert (as_whole(image) == image).all()
        assert (as_whole(np.stack([image] * 3, axis=-1)) == image).all()
        assert (as_whole(np.kron(image, np.ones((28, 28), dtype=np.uint8))[:, :560])[:, :4] == 0).all()
    corner = np.zeros((200, 100), dtype=np.uint8)
    corner[:50, :50] = 255
    for picture in (corner, 255 - corner):
        whole = as_whole(picture)
        assert (whole[:6, 7:13] == 255).all()
        assert not whole[:, :7].any()
        assert not whole[9:].any()
    on_nothing = np.full((60, 60, 4), 40, dtype=np.uint8)
    on_nothing[..., 3] = 0
    on_nothing[20:40, :, 3] = 255
    assert as_whole(on_nothing)[14].min() > 200
    assert not as_whole(on_nothing)[:8].any()
    for blank in (np.full((90, 90), 77, dtype=np.uint8), np.zeros((28, 28), dtype=np.uint8)):
        with pytest.raises(UserError, match=r"^blank: "):
            as_whole(blank)


def test_only_mnists_pictures_are_digits() -> None:
    assert preparation("MNIST") is prepare
    assert preparation("FashionMNIST") is preparation("KMNIST") is as_whole


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.bmp", "x.gif", "x.webp", "x.tif"])
def test_formats_are_read(name: str, tmp_path: Path) -> None:
    digit = rendered("4")
    Image.fromarray(digit).convert("RGB").save(tmp_path / name)
    assert difference(prepare(read(tmp_path / name)), prepare(digit)) < 4


def test_deep_and_palette_pictures_are_read(digits: Pixels, tmp_path: Path) -> None:
    Image.fromarray(digits[0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(digits[0]).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(digits[0].astype(np.int32) * 1000).save(tmp_path / "deeper.tif")
    for name, tolerance in (("deep.png", 0), ("palette.png", 0), ("deeper.tif", 1)):
        assert np.abs(prepare(read(tmp_path / name)).astype(int) - digits[0]).max() <= tolerance


def test_pictures_are_turned_as_the_camera_says(tmp_path: Path) -> None:
    digit = Image.fromarray(rendered("7"))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    exif[0x010F] = "a maker"
    digit.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "x.jpg", exif=exif, quality=95)
    content = (tmp_path / "x.jpg").read_bytes()
    maker = content.index(b"\x01\x0f\x00\x02")
    one_fraction = b"\x01\x0f\x00\x05\x00\x00\x00\x01"  # instead of a text of eight bytes
    (tmp_path / "y.jpg").write_bytes(content[:maker] + one_fraction + content[maker + 8 :])
    for name in ("x.jpg", "y.jpg"):
        assert difference(prepare(read(tmp_path / name)), prepare(np.asarray(digit))) < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_that_of_pillow(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rendered("7")).save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as file:
        assert (read(tmp_path / "x.png") == np.asarray(ImageOps.exif_transpose(file))).all()


def test_large_photos_are_reduced(tmp_path: Path) -> None:
    Image.fromarray(rendered("6", 1500, margin=400)).save(tmp_path / "x.jpg")
    pixels = read(tmp_path / "x.jpg")
    assert max(pixels.shape) < 512
    assert difference(prepare(pixels), prepare(rendered("6"))) < 5


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_what_is_no_picture_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(rendered("4")).save(path)
    path.write_bytes(path.read_bytes()[:400] if content is None else content)
    with pytest.raises(UserError, match="not a picture, or a damaged one"):
        read(path)
