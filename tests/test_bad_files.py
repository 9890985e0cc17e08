"""Damaged, missing and misplaced files, folders that cannot be written: one line, exit code 2, nothing lost."""

import gzip
import resource
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from conftest import Main, assert_refused

from mnist_lit.data.sources import FILES, SAMPLE_DIR, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS


@cache
def unpacked(name: str) -> bytes:
    return gzip.decompress((SAMPLE_DIR / f"{name}.gz").read_bytes())


def truncated(folder: Path) -> None:
    (folder / TRAIN_IMAGES).write_bytes(unpacked(TRAIN_IMAGES)[:-1])


def without_header(folder: Path) -> None:
    (folder / TRAIN_LABELS).write_bytes(unpacked(TRAIN_LABELS)[:5])


def empty(folder: Path) -> None:
    (folder / TRAIN_IMAGES).write_bytes(b"")


def of_other_magic(folder: Path) -> None:
    (folder / TRAIN_IMAGES).write_bytes(b"\0\0\x0d\x03" + unpacked(TRAIN_IMAGES)[4:])


def flipped(folder: Path) -> None:
    content = bytearray(unpacked(TRAIN_IMAGES))
    content[-1000] ^= 1
    (folder / TRAIN_IMAGES).write_bytes(content)


def cut_off_gzip(folder: Path) -> None:
    (folder / TRAIN_IMAGES).unlink()
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes((SAMPLE_DIR / f"{TRAIN_IMAGES}.gz").read_bytes()[:-100])


def missing(folder: Path) -> None:
    (folder / TEST_LABELS).unlink()


def labelled_10(folder: Path) -> None:
    content = bytearray(unpacked(TRAIN_LABELS))
    content[8 + 123] = 10
    (folder / TRAIN_LABELS).write_bytes(content)


def without_images(folder: Path) -> None:
    (folder / TRAIN_IMAGES).write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 0, 28, 28))
    (folder / TRAIN_LABELS).write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 0))


def one_label_short(folder: Path) -> None:
    labels = unpacked(TRAIN_LABELS)[8:-1]
    (folder / TRAIN_LABELS).write_bytes(struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + labels)


NO_CHECKSUMS = [f"data.checksums.{name}=null" for name in FILES]


@pytest.mark.parametrize(
    ("damage", "overrides", "said"),
    [
        (truncated, [], [TRAIN_IMAGES, "is truncated or padded: 1,568,015 of 1,568,016 bytes"]),
        (without_header, [], [TRAIN_LABELS, "is truncated: 5 bytes"]),
        (empty, [], [TRAIN_IMAGES, "is truncated: 0 bytes"]),
        (of_other_magic, [], [TRAIN_IMAGES, "its magic number is 0x00000d03, not 0x00000803"]),
        (flipped, [], [TRAIN_IMAGES, "is altered: its MD5 is", "9f55c10885a0e67d4aa53b75f66c60ce"]),
        (cut_off_gzip, [], [f"{TRAIN_IMAGES}.gz cannot be read"]),
        (missing, [], [f"{TEST_LABELS} is missing"]),
        (labelled_10, NO_CHECKSUMS, [TRAIN_LABELS, "holds label 10 at position 123: allowed are 0 to 9"]),
        (without_images, NO_CHECKSUMS, [TRAIN_LABELS, "holds 0 labels for 0 images"]),
        (one_label_short, NO_CHECKSUMS, [TRAIN_LABELS, "holds 1999 labels for 2000 images"]),
    ],
)
def test_damaged_file_is_refused_in_one_line(
    main: Main, tmp_path: Path, damage: Callable[[Path], None], overrides: list[str], said: list[str]
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(unpacked(name))
    damage(folder)
    outcome = main("data=sample", f"data.source_dir={folder}", *overrides)
    assert_refused(outcome, tmp_path, str(folder), "data.source_dir must hold the four IDX files", *said)


def test_undamaged_copies_of_the_files_are_taken(main: Main, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    shutil.copytree(SAMPLE_DIR, folder)
    assert main("debug=fast", f"data.source_dir={folder}", "callbacks.pictures=null", "logger=none").code == 0


def test_nothing_to_fetch_from_is_told_with_the_ways_out(main: Main, tmp_path: Path) -> None:
    outcome = main("data=mnist", "data.root=here", "data.fetch_from=[]")
    assert_refused(
        outcome, tmp_path, "MNIST is not in here/MNIST/raw", "copy the files", "data.source_dir=FOLDER", "data=sample"
    )


def test_root_that_is_a_file_is_refused(main: Main, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    outcome = main("data=mnist", "data.root=file", "data.fetch_from=[]")
    assert_refused(outcome, tmp_path, "data.root=file cannot be written", "set data.root=FOLDER")


def test_output_folder_below_a_file_is_refused(main: Main, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    outcome = main("data=sample", "hydra.run.dir=file/run")
    assert_refused(outcome, tmp_path, "error: hydra.run.dir=file/run: Not a directory; name another folder\n")
    (tmp_path / "outputs").write_text("", encoding="utf-8")
    outcome = main("data=sample")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.endswith(": Not a directory; cd to another folder, or name one, hydra.run.dir=FOLDER\n")


def test_outputs_that_is_a_file_is_refused(main: Main, tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("", encoding="utf-8")
    assert_refused(main("data=sample"), tmp_path, "outputs/train")


def test_folder_of_another_run_is_refused_untouched(main: Main, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("another's", encoding="utf-8")
    outcome = main("data=sample", "hydra.run.dir=run")
    assert_refused(outcome, tmp_path, "run belongs to another run: ", "name a new folder")
    assert (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8") == "another's"


# Room for so much in each file: not for the configuration, for a picture, for a checkpoint.
@pytest.mark.parametrize("room", [1000, 20_000, 500_000])
def test_full_disk_is_told_in_one_line(main: Main, room: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        outcome = main("debug=fast", "logger=none", "hydra.run.dir=run", "hydra.job_logging.root.level=ERROR")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert "File too large" in outcome.err
    assert outcome.err.count("\n") == 1
