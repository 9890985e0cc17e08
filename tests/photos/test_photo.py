"""One picture made MNIST's: what has to come back unchanged, what must not matter, and what is refused."""

from typing import Any

import numpy as np
import pytest
from made_digits import FONTS, difference, rendered
from PIL import Image, ImageDraw

from mnist_lit.errors import UserError
from mnist_lit.photos.ink import otsu_threshold
from mnist_lit.photos.photo import BOX, CENTRE, SIZE, Pixels, as_whole, is_prepared, preparation, prepare


def test_mnist_comes_back_to_the_bit(digit_images: Pixels) -> None:
    for image in digit_images:
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


def test_twice_the_size_is_the_same(digit_images: Pixels) -> None:
    digit = rendered("8")
    twice = np.asarray(Image.fromarray(digit).resize((2 * digit.shape[1], 2 * digit.shape[0])))
    assert difference(prepare(twice), prepare(digit)) < 4
    for image in digit_images[:100]:
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


def test_threshold_lies_between_the_classes() -> None:
    assert 10.5 <= otsu_threshold(np.array([10.5] * 9 + [200.5], dtype=np.float32)) < 200.5


def test_noise_is_no_ink() -> None:
    noise = np.random.default_rng(0).normal(180, 6, (200, 300)).clip(0, 255).astype(np.uint8)
    with pytest.raises(UserError, match=r"^blank: "):
        prepare(noise)


@pytest.mark.parametrize("text", ["12", "1 7", "305"])
def test_digits_that_lie_apart_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=rf"^{len(text.replace(' ', ''))} marks that lie apart"):
        prepare(255 - rendered(text))


def test_digits_that_both_run_out_of_the_picture_are_refused() -> None:
    with pytest.raises(UserError, match=r"^2 marks that lie apart"):
        prepare(255 - rendered("12", margin=0))


def test_strokes_that_nearly_meet_are_one_digit() -> None:
    five = np.zeros((200, 200), dtype=np.uint8)
    five[40:52, 75:130] = five[57:170, 70:82] = 255
    assert prepare(five).any()


def test_two_digits_in_light_from_one_side_are_still_two() -> None:
    paper = 255 - rendered("3  5") * np.float64(0.8)
    with pytest.raises(UserError, match=r"^2 marks that lie apart"):
        prepare((paper * np.linspace(1, 0.4, paper.shape[1])).astype(np.uint8))


def test_pictures_of_anything_are_taken_as_a_whole(digit_images: Pixels) -> None:
    coat = np.full((28, 28), 200, dtype=np.uint8)  # it fills its picture from edge to edge
    coat[:, 13:15] = 90
    for image in (coat, *digit_images[:5]):
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
    assert as_whole(np.pad(np.full((80, 80), 255, dtype=np.uint8), 10))[14, 14] == 255  # however much it fills
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
