"""Files of pictures: formats, depths, orientations and sizes, and what is no picture."""

from pathlib import Path

import numpy as np
import pytest
from made_digits import difference, rendered
from PIL import Image, ImageOps

from mnist_lit.errors import UserError
from mnist_lit.photos.photo import Pixels, prepare, read


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.bmp", "x.gif", "x.webp", "x.tif"])
def test_formats_are_read(name: str, tmp_path: Path) -> None:
    digit = rendered("4")
    Image.fromarray(digit).convert("RGB").save(tmp_path / name)
    assert difference(prepare(read(tmp_path / name)), prepare(digit)) < 4


def test_deep_and_palette_pictures_are_read(digit_images: Pixels, tmp_path: Path) -> None:
    Image.fromarray(digit_images[0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(digit_images[0]).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(digit_images[0].astype(np.int32) * 1000).save(tmp_path / "deeper.tif")
    for name, tolerance in (("deep.png", 0), ("palette.png", 0), ("deeper.tif", 1)):
        assert np.abs(prepare(read(tmp_path / name)).astype(int) - digit_images[0]).max() <= tolerance
    Image.fromarray(np.full((50, 50), 7, dtype=np.int32)).save(tmp_path / "blank.tif")
    with pytest.raises(UserError, match=r"^blank: "):
        prepare(read(tmp_path / "blank.tif"))


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


@pytest.mark.parametrize("size", [300, 1500])
def test_large_photos_are_reduced(size: int, tmp_path: Path) -> None:
    Image.fromarray(rendered("6", size, margin=400)).save(tmp_path / "x.jpg")
    pixels = read(tmp_path / "x.jpg")
    assert 256 <= max(pixels.shape) < 512
    assert difference(prepare(pixels), prepare(rendered("6"))) < 5


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_what_is_no_picture_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(rendered("4")).save(path)
    path.write_bytes(path.read_bytes()[:400] if content is None else content)
    with pytest.raises(UserError, match="not a picture, or a damaged one"):
        read(path)


def test_a_lack_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        read(Path("x.png"))
