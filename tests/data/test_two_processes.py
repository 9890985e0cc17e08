"""The data module under DDP on two CPU processes."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from mnist_lit.data import MNISTDataModule
from mnist_lit.data.dataset import Batch, ImageDataset
from mnist_lit.module import Classifier

TWO_PROCESSES = """
import gc
import json
import sys
import zlib
from pathlib import Path

gc.disable()  # importing takes a third less
import lightning as L
import torch

from mnist_lit.data import MNISTDataModule


class Recorder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.train_epochs, self.val_epochs = [], []

    def on_train_epoch_start(self):
        self.train_epochs.append([])

    def on_validation_epoch_start(self):
        self.val_epochs.append([])

    def training_step(self, batch, index):
        self.train_epochs[-1] += [zlib.crc32(image.numpy().tobytes()) for image in batch[0]]
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, index):
        self.val_epochs[-1] += [zlib.crc32(image.numpy().tobytes()) for image in batch[0]]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_fit_end(self):
        seen = {"train": self.train_epochs, "val": self.val_epochs}
        Path(f"{self.global_rank}.json").write_text(json.dumps(seen))


L.Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp_fork",
    max_epochs=2,
    num_sanity_val_steps=0,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
).fit(Recorder(), datamodule=MNISTDataModule(**json.loads(sys.argv[1])))
"""


def test_two_processes_share_every_epoch(tmp_path: Path, make_config: Compose) -> None:
    arguments: Any = OmegaConf.to_container(make_config().data, resolve=True)
    del arguments["_target_"]
    subprocess.run(
        [sys.executable, "-c", TWO_PROCESSES, json.dumps(arguments)],
        cwd=tmp_path,
        env=os.environ | {"MASTER_ADDR": "127.0.0.1"},
        timeout=120,
        check=True,
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    datamodule = MNISTDataModule(**arguments)
    datamodule.setup()
    for split, dataset in (("train", datamodule.train), ("val", datamodule.val)):
        images = datamodule.normalise(dataset.images[dataset.indices])
        expected = sorted(zlib.crc32(image.numpy().tobytes()) for image in images)
        assert len(set(expected)) == len(expected)
        assert len(first[split]) == len(second[split]) == 2
        for one, other in zip(first[split], second[split], strict=True):
            assert len(one) == len(other)
            assert sorted(one + other) == expected
    assert first["train"][0] != first["train"][1]


@pytest.mark.parametrize(("num_images", "num_processes"), [(7, 2), (8, 3), (9, 3), (6, 2), (4, 3)])
def test_of_several_processes_none_scores_anothers_image(num_images: int, num_processes: int) -> None:
    seen: list[int] = []

    class Recorder(Classifier):
        def _step(self, batch: Batch) -> tuple[Tensor, Tensor]:
            seen.extend(batch[1].tolist())
            return super()._step(batch)

    labels = torch.arange(num_images)
    dataset = ImageDataset(torch.zeros(num_images, 28, 28, dtype=torch.uint8), labels, labels)
    for rank in range(num_processes):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
        module = Recorder(
            model=model, loss=torch.nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, scheduler=None, num_classes=10
        )
        sampler: DistributedSampler[Batch] = DistributedSampler(dataset, num_processes, rank, shuffle=False)
        loader = DataLoader(dataset, batch_size=2, sampler=sampler, collate_fn=lambda batch: batch)
        for index, batch in enumerate(loader):
            module._eval_step(batch, index, loader)
    assert sorted(seen) == list(range(num_images))
