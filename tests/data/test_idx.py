import gzip
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mnist_lit.data.idx import read_idx
from mnist_lit.data.sources import SAMPLE_DIR
from mnist_lit.errors import UserError

IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
CONTENT = gzip.decompress((SAMPLE_DIR / f"{IMAGES}.gz").read_bytes())
MD5 = hashlib.md5(CONTENT).hexdigest()


def test_images_and_labels_have_the_bytes_and_shapes_of_the_file() -> None:
    images = read_idx(SAMPLE_DIR / f"{IMAGES}.gz", num_dims=3, md5=MD5)
    assert images.shape == (500, 28, 28)
    assert images.dtype == torch.uint8
    assert images.flatten().tolist() == list(CONTENT[16:])
    labels = read_idx(SAMPLE_DIR / f"{LABELS}.gz", num_dims=1, md5=None)
    assert labels.shape == (500,)
    assert labels[:10].tolist() == [6, 3, 4, 9, 4, 7, 4, 1, 2, 4]


def test_plain_file_reads_as_the_gzip_one(tmp_path: Path) -> None:
    (tmp_path / IMAGES).write_bytes(CONTENT)
    plain = read_idx(tmp_path / IMAGES, num_dims=3, md5=MD5)
    assert torch.equal(plain, read_idx(SAMPLE_DIR / f"{IMAGES}.gz", num_dims=3, md5=MD5))


def test_what_was_read_may_be_written_to_and_leaves_the_file(tmp_path: Path) -> None:
    (tmp_path / IMAGES).write_bytes(CONTENT)
    read_idx(tmp_path / IMAGES, num_dims=3, md5=MD5).fill_(7)
    assert (tmp_path / IMAGES).read_bytes() == CONTENT


def test_file_without_images_is_an_empty_tensor(tmp_path: Path) -> None:
    (tmp_path / IMAGES).write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 28]))
    assert read_idx(tmp_path / IMAGES, num_dims=3, md5=None).shape == (0, 28, 28)


def _flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position:][1:]


FLIPPED = _flip(CONTENT, 5000)


@pytest.mark.parametrize("pack", [lambda content: content, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (CONTENT[:-1], "is truncated or padded: 392,015 of 392,016 bytes"),
        (CONTENT[: len(CONTENT) // 2], "is truncated or padded: 196,008 of 392,016 bytes"),
        (CONTENT + b"\0", "is truncated or padded: 392,017 of 392,016 bytes"),
        (CONTENT[:15], "is truncated: 15 bytes, the header alone takes 16"),
        (b"", "is truncated: 0 bytes, the header alone takes 16"),
        (FLIPPED, f"is altered: its MD5 is {hashlib.md5(FLIPPED).hexdigest()}, not {MD5} (data.checksums)"),
        (
            b"<html>Not here</html>",
            "is not an IDX file of 3 dimension(s): its magic number is 0x3c68746d, not 0x00000803",
        ),
        (
            _flip(CONTENT, 2),
            "is not an IDX file of 3 dimension(s): its magic number is 0x00000903, not 0x00000803",
        ),
    ],
    ids=["one byte short", "half", "padded", "short header", "empty", "flipped", "html", "other type"],
)
def test_damaged_file_is_refused_with_its_name_and_the_reason(
    tmp_path: Path, content: bytes, reason: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / (IMAGES if pack is not gzip.compress else f"{IMAGES}.gz")
    path.write_bytes(pack(content))
    with pytest.raises(UserError) as refused:
        read_idx(path, num_dims=3, md5=MD5)
    assert str(refused.value) == f"{path} {reason}"


def test_labels_in_the_place_of_images_are_refused() -> None:
    path = SAMPLE_DIR / f"{LABELS}.gz"
    with pytest.raises(UserError) as refused:
        read_idx(path, num_dims=3, md5=None)
    assert str(refused.value) == (
        f"{path} is not an IDX file of 3 dimension(s): its magic number is 0x00000801, not 0x00000803"
    )


def test_without_a_checksum_only_the_form_is_checked(tmp_path: Path) -> None:
    (tmp_path / IMAGES).write_bytes(FLIPPED)
    assert read_idx(tmp_path / IMAGES, num_dims=3, md5=None).flatten().tolist() == list(FLIPPED[16:])


@pytest.mark.parametrize("name", [IMAGES, f"{IMAGES}.gz"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as refused:
        read_idx(tmp_path / name, num_dims=3, md5=None)
    assert str(refused.value) == f"{tmp_path / name} is missing"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda packed: packed[: len(packed) // 2], "end-of-stream marker"),
        (lambda packed: packed[:-6], "end-of-stream marker"),
        (lambda packed: _flip(packed, -8), "CRC check failed"),
        (lambda packed: packed[:10] + b"\xff" * 100 + packed[110:], "Error -3 while decompressing data"),
        (lambda packed: b"MZ" + packed, "Not a gzipped file"),
    ],
    ids=["half", "without its end", "flipped", "overwritten", "not gzip"],
)
def test_damaged_gzip_is_refused_with_its_name_and_the_reason(
    tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(damage((SAMPLE_DIR / f"{IMAGES}.gz").read_bytes()))
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} cannot be read: .*{reason}"):
        read_idx(path, num_dims=3, md5=None)


def test_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path))} cannot be read: .*Is a directory"):
        read_idx(tmp_path, num_dims=3, md5=None)
