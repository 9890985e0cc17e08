"""Images and labels in memory, served a whole batch at a time."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

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

    def __getitems__(self, batch: Sequence[int]) -> Batch:
        """B positions in this data set -> images [B, 28, 28], labels [B]."""
        # torch.tensor(list) takes 78 us for 512 numbers, this 12 us.
        positions = torch.frombuffer(array("q", batch), dtype=torch.int64)
        indices = self.indices.index_select(0, positions.to(self.indices.device, non_blocking=True))
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)


def stratified_indices(labels: Tensor, size: int, seed: int) -> Tensor:
    """Draw `size` distinct indices of `labels` [N], every class with its share to within one, sorted."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    evenly_spaced = torch.arange(size) * len(labels) // max(size, 1)
    return by_class[evenly_spaced].sort().values
