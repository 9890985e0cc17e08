from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import Compose as Chain
from torchvision.transforms import Normalize, ToTensor

from mnist_lit.data import MNISTDataModule
from mnist_lit.data.dataset import Batch
from mnist_lit.data.idx import read_idx
from mnist_lit.data.sources import SAMPLE_DIR, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, load
from mnist_lit.errors import UserError

Arguments = Callable[..., dict[str, Any]]
Make = Callable[..., MNISTDataModule]


def read_sample(name: str) -> Tensor:
    return read_idx(SAMPLE_DIR / f"{name}.gz", num_dims=3 if "images" in name else 1, md5=None)


@pytest.fixture
def arguments(make_config: Callable[..., DictConfig]) -> Arguments:
    def of_sample(**changes: object) -> dict[str, Any]:
        config = OmegaConf.to_container(make_config().data, resolve=True)
        assert isinstance(config, dict)
        del config["_target_"]
        return {str(key): value for key, value in config.items()} | changes

    return of_sample


@pytest.fixture
def make(arguments: Arguments) -> Make:
    """Set up the sample as if by a trainer on `device`, or without one."""

    def set_up(*, device: str | None = None, **changes: object) -> MNISTDataModule:
        datamodule = MNISTDataModule(**arguments(**changes))
        if device is not None:
            datamodule.trainer = trainer_on(device)
        datamodule.prepare_data()
        datamodule.setup()
        return datamodule

    return set_up


def trainer_on(device: str) -> Any:
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))


def joined(loader: DataLoader[Batch]) -> Batch:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def devices(datamodule: MNISTDataModule) -> set[str]:
    return {
        tensor.device.type
        for dataset in (datamodule.train, datamodule.val, datamodule.test)
        for tensor in (dataset.images, dataset.labels, dataset.indices)
    }


# --- Splits


def test_train_and_val_are_disjoint_and_together_the_training_images(make: Make) -> None:
    datamodule = make(val_size=400)
    train, val = datamodule.train.indices.tolist(), datamodule.val.indices.tolist()
    assert (len(train), len(val)) == (1600, 400)
    assert sorted(train + val) == list(range(2000))
    assert (train, val) == (sorted(train), sorted(val))
    assert torch.equal(datamodule.train.images, read_sample(TRAIN_IMAGES))
    assert torch.equal(datamodule.val.labels, read_sample(TRAIN_LABELS))


def test_val_is_stratified_and_the_same_for_the_same_split_seed(make: Make) -> None:
    torch.manual_seed(1)
    first, second, other = (make(split_seed=seed).val for seed in (0, 0, 1))
    assert torch.equal(first.indices, second.indices)
    assert not torch.equal(first.indices, other.indices)
    shares = read_sample(TRAIN_LABELS).bincount() * 400 / 2000
    for val in (first, other):
        assert ((val.labels[val.indices].bincount() - shares).abs() < 1).all()


def test_val_size_0_leaves_all_images_to_train_in_file_order(make: Make) -> None:
    datamodule = make(val_size=0)
    assert datamodule.train.indices.tolist() == list(range(2000))
    assert torch.equal(datamodule.train.labels, read_sample(TRAIN_LABELS))
    assert len(datamodule.val) == 0
    assert datamodule.val_dataloader() == []


def test_test_and_predict_are_the_official_test_images_in_file_order(make: Make) -> None:
    datamodule = make(eval_batch_size=200)
    for loader in (datamodule.test_dataloader(), datamodule.predict_dataloader()):
        assert [len(labels) for _, labels in loader] == [200, 200, 100]
        images, labels = joined(loader)
        assert torch.equal(images, read_sample(TEST_IMAGES))
        assert torch.equal(labels, read_sample(TEST_LABELS).long())


def test_val_batches_are_in_file_order(make: Make) -> None:
    datamodule = make(eval_batch_size=300)
    loader = datamodule.val_dataloader()
    assert isinstance(loader, DataLoader)
    images, labels = joined(loader)
    assert [len(labels) for _, labels in loader] == [300, 100]
    assert torch.equal(images, read_sample(TRAIN_IMAGES)[datamodule.val.indices])
    assert torch.equal(labels, read_sample(TRAIN_LABELS)[datamodule.val.indices].long())


def test_second_setup_changes_nothing(make: Make) -> None:
    datamodule = make()
    before = (datamodule.train, datamodule.val, datamodule.test)
    datamodule.split_seed += 1
    for stage in (None, "fit", "test"):
        datamodule.setup(stage)
    after = (datamodule.train, datamodule.val, datamodule.test)
    assert [new is old for new, old in zip(after, before, strict=True)] == [True] * 3


def test_prepare_data_and_setup_read_the_files_once(arguments: Arguments) -> None:
    for _ in range(2):
        datamodule = MNISTDataModule(**arguments())
        datamodule.prepare_data()
        datamodule.setup()
    assert load.cache_info().misses == 1


def test_prepare_data_refuses_a_folder_without_the_files(tmp_path: Path, arguments: Arguments) -> None:
    datamodule = MNISTDataModule(**arguments(source_dir=str(tmp_path)))
    with pytest.raises(UserError, match=f"{TRAIN_IMAGES} is missing; data.source_dir must hold"):
        datamodule.prepare_data()


# --- Batches


def test_every_image_comes_once_per_epoch_and_in_another_order_the_next(make: Make) -> None:
    datamodule = make(batch_size=300)
    torch.manual_seed(0)
    loader = datamodule.train_dataloader()
    assert [len(labels) for _, labels in loader] == [300] * 5 + [100]
    expected = Counter(
        image.numpy().tobytes() + bytes([int(label)])
        for image, label in (datamodule.train[i] for i in range(len(datamodule.train)))
    )
    assert set(expected.values()) == {1}
    epochs = [joined(loader) for _ in range(2)]
    for images, labels in epochs:
        seen = Counter(
            image.numpy().tobytes() + bytes([int(label)]) for image, label in zip(images, labels, strict=True)
        )
        assert seen == expected
    assert not torch.equal(epochs[0][1], epochs[1][1])
    assert not torch.equal(epochs[0][1], datamodule.train.labels[datamodule.train.indices])


def test_order_is_that_of_torchs_own_shuffling(make: Make) -> None:
    datamodule = make(batch_size=150)  # the last one is smaller
    torch.manual_seed(3)
    theirs: DataLoader[Tensor] = DataLoader(range(1600), batch_size=150, shuffle=True)  # type: ignore[arg-type]
    expected = [torch.cat(list(theirs)) for _ in range(2)]
    torch.manual_seed(3)
    ours = datamodule.train_dataloader()
    for positions in expected:
        images, labels = joined(ours)
        indices = datamodule.train.indices[positions]
        assert torch.equal(images, read_sample(TRAIN_IMAGES)[indices])
        assert torch.equal(labels, read_sample(TRAIN_LABELS)[indices].long())


def test_validation_draws_no_random_numbers(make: Make) -> None:
    datamodule = make()
    before = torch.get_rng_state()
    for loader in (datamodule.val_dataloader(), datamodule.test_dataloader()):
        assert len(list(loader)) >= 1
    assert torch.equal(torch.get_rng_state(), before)
    list(datamodule.train_dataloader())
    assert not torch.equal(torch.get_rng_state(), before)


# Python 3.12 warns of what torch's loader does by itself.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_worker_processes_give_the_same_batches(make: Make) -> None:
    epochs: list[list[Batch]] = []
    for num_workers in (0, 2):
        loader = make(num_workers=num_workers, batch_size=300).train_dataloader()
        assert loader.num_workers == num_workers
        torch.manual_seed(0)
        epochs.append([*loader, *loader])
    assert len(epochs[0]) == len(epochs[1]) == 12
    for (images, labels), (worker_images, worker_labels) in zip(*epochs, strict=True):
        assert torch.equal(worker_images, images)
        assert torch.equal(worker_labels, labels)


def test_normalisation_is_torchvisions(make: Make) -> None:
    datamodule = make()
    raw = read_sample(TEST_IMAGES)
    theirs = Chain([ToTensor(), Normalize(datamodule.mean, datamodule.std)])
    expected = torch.cat([theirs(image.numpy()) for image in raw])
    images, labels = datamodule.on_after_batch_transfer((raw, read_sample(TEST_LABELS)), 0)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
    assert torch.equal(labels, read_sample(TEST_LABELS))
    assert torch.equal(raw, read_sample(TEST_IMAGES))
    distorted = raw.float()  # as an augmentation gives them
    torch.testing.assert_close(datamodule.normalise(distorted), images, rtol=0, atol=1e-6)
    assert torch.equal(distorted, raw.float())


# --- Devices


def test_images_are_moved_to_the_trainers_device_once(make: Make) -> None:
    assert devices(make(device="meta", device_resident=True)) == {"meta"}


@pytest.mark.parametrize(
    ("device", "changes"),
    [
        ("meta", {"num_workers": 2}),
        ("meta", {"device_resident": False}),
        ("cpu", {}),
        (None, {}),
    ],
    ids=["workers", "not resident", "cpu trainer", "no trainer"],
)
def test_images_stay_in_host_memory(make: Make, device: str | None, changes: dict[str, Any]) -> None:
    datamodule = make(device=device, **({"device_resident": True} | changes))
    assert devices(datamodule) == {"cpu"}
    assert not datamodule.train_dataloader().pin_memory


def test_images_in_host_memory_are_pinned_for_a_gpu_only(make: Make) -> None:
    datamodule = make(device="cuda", device_resident=False)
    assert devices(datamodule) == {"cpu"}
    loaders = (datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader())
    assert [loader.pin_memory for loader in loaders if isinstance(loader, DataLoader)] == [True] * 3
    resident = make(device="meta")
    resident.trainer = trainer_on("cuda")
    assert not resident.train_dataloader().pin_memory


def test_batch_is_moved_only_from_another_device(make: Make) -> None:
    datamodule = make()
    batch = (torch.zeros(2, 28, 28), torch.zeros(2))
    stayed = datamodule.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert stayed[0] is batch[0]
    assert stayed[1] is batch[1]
    moved = datamodule.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert [tensor.device.type for tensor in moved] == ["meta", "meta"]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=needs_gpu)])
def test_an_epochs_order_is_all_that_is_copied_to_the_device_of_resident_images(make: Make, device: str) -> None:
    datamodule = make(device=device, batch_size=300)
    loader = datamodule.train_dataloader()
    assert not loader.pin_memory
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True, acc_events=True) as profile:
        batches = [datamodule.transfer_batch_to_device(batch, torch.device(device), 0) for batch in loader]
    assert {tensor.device.type for batch in batches for tensor in batch} == {device}
    copied = [event.input_shapes[0] for event in profile.events() if event.name == "aten::_to_copy"]
    assert copied == [[1600]]


@needs_gpu
def test_gpu_batches_are_those_of_the_cpu(make: Make) -> None:
    on_gpu, on_cpu = make(device="cuda"), make()
    assert devices(on_gpu) == {"cuda"}
    torch.manual_seed(0)
    expected = joined(on_cpu.train_dataloader())
    torch.manual_seed(0)
    images, labels = joined(on_gpu.train_dataloader())
    assert torch.equal(images.cpu(), expected[0])
    assert torch.equal(labels.cpu(), expected[1])
    torch.testing.assert_close(on_gpu.normalise(images).cpu(), on_cpu.normalise(expected[0]), rtol=0, atol=1e-6)


# --- Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1 and below 2147483648, got 0"),
        ({"eval_batch_size": -3}, "eval_batch_size must be at least 1 and below 2147483648, got -3"),
        ({"val_size": -1}, "val_size must be at least 0, got -1"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"split_seed": -1}, "split_seed must be at least 0, got -1"),
        ({"std": 0.0}, "std must be above 0, and mean a number: got 0.0 and 0.1307"),
        ({"std": -0.3}, "std must be above 0, and mean a number: got -0.3 and 0.1307"),
        ({"fetch_from": ["mirrors", "ftp"]}, "fetch_from must list some of mirrors, npm, got ftp"),
    ],
)
def test_value_out_of_range_is_refused(arguments: Arguments, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        MNISTDataModule(**arguments(**changes))


@pytest.mark.parametrize("val_size", [2000, 5000])
def test_val_size_that_leaves_nothing_to_train_on_is_refused(make: Make, val_size: int) -> None:
    with pytest.raises(UserError) as refused:
        make(val_size=val_size)
    assert str(refused.value) == f"data.val_size={val_size}: must be below the 2000 training images"


def test_all_but_one_image_may_validate(make: Make) -> None:
    assert len(make(val_size=1999).train) == 1
