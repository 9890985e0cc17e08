"""Many pictures: found by name, prepared one by one, the bad ones set apart."""

import glob
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mnist_lit.errors import UserError
from mnist_lit.photos import photo


@dataclass(frozen=True)
class Album:
    """Prepared pictures uint8 [N, 28, 28], the N files they came from, and why others were left out."""

    files: list[Path]
    images: photo.Pixels
    refused: dict[Path, str]


def find(name: str) -> list[Path]:
    """Return the files that a name stands for, sorted: a file, those in a folder (no hidden ones), those of a glob.

    Raises UserError if there are none.
    """
    path = Path(name)
    if path.is_dir():
        found = [file for file in path.iterdir() if not file.name.startswith(".")]
    else:  # a file's own name may hold the characters of a glob
        found = [path] if path.exists() else [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (absolute ones too)
    files = sorted(file for file in found if file.is_file())
    if not files:
        what = "a folder without files" if path.is_dir() else "no such file or folder, and no glob of any"
        raise UserError(f"images={name}: {what}; name a picture, a folder of pictures, or a quoted glob")
    return files


def load(files: Sequence[Path], prepare: Callable[[photo.Pixels], photo.Pixels] = photo.prepare) -> Album:
    """Read and `prepare` every file; those that are no picture, or that it refuses, are told apart, not raised."""
    # Reading lets other threads run: two cores do large photos in half the time, and small ones in no more.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # Pillow's, of metadata that are not used
        prepared = list(pool.map(partial(_prepared, prepare), files))
    good = [(file, image) for file, image in zip(files, prepared, strict=True) if not isinstance(image, str)]
    return Album(
        files=[file for file, _ in good],
        images=np.stack([image for _, image in good]) if good else np.empty((0, 28, 28), dtype=np.uint8),
        refused={file: reason for file, reason in zip(files, prepared, strict=True) if isinstance(reason, str)},
    )


def _prepared(prepare: Callable[[photo.Pixels], photo.Pixels], file: Path) -> photo.Pixels | str:
    """Return the prepared picture, or why there is none."""
    try:
        return prepare(photo.read(file))
    except UserError as error:
        return str(error)
