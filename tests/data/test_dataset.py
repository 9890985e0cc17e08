import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from mnist_lit.composition import PACKAGE
from mnist_lit.data.dataset import Batch, ImageDataset, ResumableLoader, stratified_indices
from mnist_lit.data.idx import read_idx
from mnist_lit.data.sources import SAMPLE_DIR, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS


def read_sample(name: str) -> Tensor:
    return read_idx(SAMPLE_DIR / f"{name}.gz", num_dims=3 if "images" in name else 1, md5=None)


@pytest.fixture
def dataset() -> ImageDataset:
    return ImageDataset(read_sample(TEST_IMAGES), read_sample(TEST_LABELS).long(), torch.arange(499, -1, -3))


def test_items_are_the_images_and_labels_at_the_indices(dataset: ImageDataset) -> None:
    assert len(dataset) == 167
    image, label = dataset[1]
    assert torch.equal(image, read_sample(TEST_IMAGES)[496])
    assert label == read_sample(TEST_LABELS)[496]


@pytest.mark.parametrize("batch", [[0], [5, 3, 5, 166], list(range(167))], ids=["one", "repeated", "all"])
def test_batch_of_items_is_the_items_stacked(dataset: ImageDataset, batch: list[int]) -> None:
    images, labels = dataset.__getitems__(batch)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.equal(images, torch.stack([dataset[i][0] for i in batch]))
    assert torch.equal(labels, torch.stack([dataset[i][1] for i in batch]))


def test_images_and_labels_of_different_counts_are_refused() -> None:
    with pytest.raises(AssertionError):
        ImageDataset(torch.zeros(3, 28, 28), torch.zeros(2), torch.arange(2))


UNEVEN = torch.tensor([0] * 700 + [1] * 250 + [2] * 49 + [3])


@pytest.mark.parametrize("size", [1, 3, 10, 333, 999, 1000])
@pytest.mark.parametrize("labels", [read_sample(TRAIN_LABELS)[:1000], UNEVEN], ids=["digits", "uneven"])
def test_drawn_indices_are_distinct_sorted_and_stratified(labels: Tensor, size: int) -> None:
    drawn = stratified_indices(labels, size, seed=0)
    assert drawn.dtype == torch.int64
    assert len(drawn) == size
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert drawn[0] >= 0
    assert drawn[-1] < len(labels)
    counts = torch.bincount(labels[drawn], minlength=int(labels.max()) + 1)
    shares = torch.bincount(labels) * size / len(labels)
    assert ((counts - shares).abs() < 1).all()


def test_draw_depends_on_the_seed_only() -> None:
    labels = read_sample(TRAIN_LABELS)
    first = stratified_indices(labels, 400, seed=0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(stratified_indices(labels, 400, seed=0), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(stratified_indices(labels, 400, seed=1), first)


def test_draw_is_random_within_each_class() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    drawn = stratified_indices(labels, 500, seed=0)
    # Evenly spaced ones would leave gaps of two only.
    assert len(set(drawn.diff().tolist())) > 2


def test_draw_of_nothing_is_empty() -> None:
    drawn = stratified_indices(read_sample(TRAIN_LABELS), 0, seed=0)
    assert drawn.shape == (0,)
    assert drawn.dtype == torch.int64


@pytest.mark.parametrize(
    ("images", "labels", "size"), [(TRAIN_IMAGES, TRAIN_LABELS, 2000), (TEST_IMAGES, TEST_LABELS, 500)]
)
def test_packaged_sample_is_the_documented_draw(images: str, labels: str, size: int) -> None:
    raw = Path(os.environ.get("MNIST_LIT_DATA", PACKAGE.parent / "data")) / "MNIST" / "raw"
    if not (raw / images).exists():
        pytest.skip("the full MNIST is neither in data/ nor in the folder that MNIST_LIT_DATA names")
    all_labels = read_idx(raw / labels, num_dims=1, md5=None)
    drawn = stratified_indices(all_labels, size, seed=0)
    assert torch.equal(read_sample(labels), all_labels[drawn])
    assert torch.equal(read_sample(images), read_idx(raw / images, num_dims=3, md5=None)[drawn])


def everything(loader: DataLoader[Batch]) -> list[list[int]]:
    torch.manual_seed(0)
    return [labels.tolist() for _ in range(2) for _, labels in loader]


@pytest.mark.parametrize(
    "asked",
    [
        {"shuffle": True},
        {"shuffle": True, "drop_last": True},
        {"shuffle": True, "generator": 1},
        {"shuffle": True, "batch_size": 1000},
        {"sampler": {"replacement": True}},
        {"sampler": {"num_samples": 40}},
        {"sampler": {"num_samples": 140}},
        {"sampler": {"generator": 1}},
        {"shuffle": False},
    ],
)
def test_batches_are_those_of_torchs_own_loader(asked: dict[str, Any]) -> None:
    numbers = ImageDataset(torch.zeros(100, 28, 28, dtype=torch.uint8), torch.arange(100), torch.arange(100))
    batches = []
    for kind in (ResumableLoader, DataLoader):
        options = {"batch_size": 30, **asked}
        for group in (options, options.get("sampler", {})):
            if "generator" in group:
                group["generator"] = torch.Generator().manual_seed(1)
        if "sampler" in options:
            options["sampler"] = RandomSampler(numbers, **options["sampler"])
        loader: DataLoader[Batch] = kind(numbers, collate_fn=lambda batch: batch, **options)
        batches.append(everything(loader))
        assert len(batches[-1]) == 2 * len(loader)
    assert batches[0] == batches[1]
