"""Where the images come from, and how they reach the network in batches."""

from mnist_lit.data.datamodule import MNISTDataModule

__all__ = ["MNISTDataModule"]
