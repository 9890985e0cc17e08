"""Reading IDX, the format of MNIST's four files (plain or gzip)."""

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from mnist_lit.errors import UserError

# Third byte of the magic number: 0x08 means unsigned bytes, the only type MNIST's files use
# (format: http://yann.lecun.com/exdb/mnist/, "the IDX file format").
UINT8 = 0x08


def read_idx(path: Path, *, num_dims: int, md5: str | None) -> Tensor:
    """Return the uint8 tensor in an IDX file: [N, 28, 28] for images, [N] for labels.

    `md5` is the checksum of the unpacked bytes, or None where none is known; then only the header and the
    length are checked.

    Raises UserError, naming the file, if it is missing, truncated, altered or not IDX.
    """
    try:
        # A bytearray, since torch warns about read-only memory.
        if path.suffix == ".gz":
            content = bytearray(gzip.decompress(path.read_bytes()))
        else:
            content = bytearray(path.stat().st_size)
            with path.open("rb") as file:
                file.readinto(content)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error

    header_size = 4 + 4 * num_dims
    if len(content) < header_size:
        raise UserError(f"{path} is truncated: {len(content)} bytes, the header alone takes {header_size}")
    expected_magic = bytes([0, 0, UINT8, num_dims])
    if content[:4] != expected_magic:
        raise UserError(
            f"{path} is not an IDX file of {num_dims} dimension(s): its magic number is 0x{content[:4].hex()}, "
            f"not 0x{expected_magic.hex()}"
        )
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header_size, 4)]
    expected_size = header_size + math.prod(shape)
    if len(content) != expected_size:
        raise UserError(f"{path} is truncated or padded: {len(content):,} of {expected_size:,} bytes")
    if md5 and (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise UserError(f"{path} is altered: its MD5 is {found}, not {md5} (data.checksums)")
    # Sliced, since torch refuses an offset at the end: a file of no images.
    return torch.frombuffer(content, dtype=torch.uint8)[header_size:].reshape(shape)
