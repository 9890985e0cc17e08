"""Images and labels in memory, served a whole batch at a time."""

import math
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

Batch = tuple[Tensor, Tensor]


class ImageDataset(Dataset[Batch]):
    """Some of the images uint8 [N, 28, 28] with their labels int64 [N]: those at `indices` [M].

    Images, labels and indices are on one device. `__getitems__` is what torch's DataLoader calls with the
    indices of a batch: one `index_select` takes the place of 512 Python calls and a collate, and the
    sampling order stays torch's own.
    """

    def __init__(self, images: Tensor, labels: Tensor, indices: Tensor) -> None:
        assert len(images) == len(labels)
        self.images = images
        self.labels = labels
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Batch:
        return self.images[self.indices[index]], self.labels[self.indices[index]]

    def __getitems__(self, batch: Sequence[int] | Tensor) -> Batch:
        """B positions in this data set -> images [B, 28, 28], labels [B]."""
        # torch.tensor(list) takes 78 us for 512 numbers, this 12 us.
        positions = batch if isinstance(batch, Tensor) else torch.frombuffer(array("q", batch), dtype=torch.int64)
        indices = self.indices.index_select(0, positions.to(self.indices.device))
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)


class ShuffledBatches:
    """The batches that `DataLoader(shuffle=True)` draws from `num_images`, in its own order, as tensors [B].

    They are on `device`. torch's own makes a Python number of every position on the way: 60 us a batch of 512.
    """

    def __init__(self, num_images: int, batch_size: int, device: torch.device) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.device = device

    def __len__(self) -> int:
        return math.ceil(self.num_images / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        seed = int(torch.empty((), dtype=torch.int64).random_())  # drawn as RandomSampler draws it
        generator = torch.Generator().manual_seed(seed)
        # On the CPU, to be the same order everywhere; moved once, since each copy to an accelerator waits for it.
        yield from torch.randperm(self.num_images, generator=generator).to(self.device).split(self.batch_size)


class ResumableLoader(DataLoader[Batch]):
    """A DataLoader that knows how far it is, and can begin in the middle of an epoch, in the same order.

    `num_given` counts the batches of this epoch, `rng_state` is torch's at its start, from which the sampler
    draws the order. With `start` (num_given, rng_state), the first epoch leaves out as many batches, then
    goes on with torch's random numbers as they were found.
    """

    def __init__(self, *args: Any, start: tuple[int, Tensor] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.start = start
        self.num_given = 0
        self.rng_state = torch.get_rng_state()

    @property
    def _index_sampler(self) -> Any:
        # Worker processes are sent lists: tensors would go by shared memory, a file each. A distributed run, and
        # debug=overfit, get other samplers from Lightning.
        sampler, dataset = self.sampler, self.dataset
        if (
            isinstance(dataset, ImageDataset)
            and type(sampler) is RandomSampler
            and (sampler.generator, sampler.replacement, sampler.num_samples) == (None, False, len(dataset))
            and not self.drop_last
            and self.batch_size
            and not self.num_workers
        ):
            return ShuffledBatches(len(dataset), self.batch_size, dataset.indices.device)
        return super()._index_sampler

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch promises its own iterator's class
        if self.start is not None:
            (num_given, self.rng_state), self.start = self.start, None
            return self._from(num_given)
        self.rng_state = torch.get_rng_state()
        return self._counted(super().__iter__())

    def _from(self, num_given: int) -> Iterator[Batch]:
        # A generator, so that this runs at the first batch, when Lightning has set a distributed sampler's epoch.
        now = torch.get_rng_state()
        torch.set_rng_state(self.rng_state)
        batches = super().__iter__()
        for _ in range(num_given):
            next(batches)
        torch.set_rng_state(now)
        yield from self._counted(batches, num_given)

    def _counted(self, batches: Iterator[Batch], num_given: int = 0) -> Iterator[Batch]:
        self.num_given = num_given
        for batch in batches:
            self.num_given += 1
            yield batch


def stratified_indices(labels: Tensor, size: int, seed: int) -> Tensor:
    """Draw `size` distinct indices of `labels` [N], every class with its share to within one, sorted."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    evenly_spaced = torch.arange(size) * len(labels) // max(size, 1)
    return by_class[evenly_spaced].sort().values
