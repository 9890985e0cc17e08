"""One picture made MNIST's: what has to come back unchanged, what must not matter, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FONTS, rendered
from PIL import Image, ImageDraw

from mnist_lit.data.idx import read_idx
from mnist_lit.data.photo import BOX, CENTRE, SIZE, Pixels, is_prepared, prepare, read
from mnist_lit.data.sources import SAMPLE_DIR, TEST_IMAGES
from mnist_lit.errors import UserError


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
    tall[100:200, 100:140] = wide[100:140, 100:200] = 255
    for image, shape in ((prepare(tall), (20, 8)), (prepare(wide), (8, 20))):
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
    with pytest.raises(UserError, match=rf"^{len(text.replace(' ', ''))} digits that lie apart"):
        prepare(255 - rendered(text))


def test_strokes_that_nearly_meet_are_one_digit() -> None:
    five = np.zeros((200, 200), dtype=np.uint8)
    five[40:52, 75:130] = five[57:170, 70:82] = 255
    assert prepare(five).any()


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
    digit.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "x.jpg", exif=exif, quality=95)
    assert difference(prepare(read(tmp_path / "x.jpg")), prepare(np.asarray(digit))) < 3


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
