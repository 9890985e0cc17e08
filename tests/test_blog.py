"""`experiment=blog` is the script that everybody copies, step for step."""

from typing import Any

import pytest
import torch
from conftest import Compose, Train
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from mnist_lit.data.idx import read_idx
from mnist_lit.data.sources import SAMPLE_DIR

BATCH_SIZE, EPOCHS = 100, 3


class Pictures(Dataset[tuple[Tensor, int]]):
    """What torchvision's MNIST does: one PIL image at a time, through its transforms."""

    def __init__(self) -> None:
        self.images = read_idx(SAMPLE_DIR / "train-images-idx3-ubyte.gz", num_dims=3, md5=None).numpy()
        self.labels = read_idx(SAMPLE_DIR / "train-labels-idx1-ubyte.gz", num_dims=1, md5=None).tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def plain_script(seed: int) -> tuple[list[float], dict[str, Any]]:
    """Return the loss of every step, and the weights at the end."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
    loader = DataLoader(Pictures(), batch_size=BATCH_SIZE, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(EPOCHS):
        for images, labels in loader:
            loss = functional.mse_loss(net(images), functional.one_hot(labels, 10).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, net.state_dict()


def test_every_step_has_the_plain_scripts_loss(train_run: Train) -> None:
    run = train_run(
        "experiment=blog", "seed=42", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "test=false"
    )
    losses, weights = plain_script(seed=42)
    assert [step for step, _ in run.history["train/loss"]] == list(range(1, EPOCHS * 20 + 1))
    assert run.values("train/loss") == pytest.approx(losses, abs=1e-6, rel=0)
    ours = [tensor for key, tensor in run.last["state_dict"].items() if key.startswith("model.")]
    for mine, theirs in zip(ours, weights.values(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_settings_are_the_scripts(make_config: Compose) -> None:
    config: Any = OmegaConf.to_container(make_config("experiment=blog", sample=False), resolve=True)
    data, optimizer = config["data"], config["optimizer"]
    assert (data["name"], data["val_size"], data["batch_size"]) == ("MNIST", 0, 512)
    assert (data["mean"], data["std"]) == (0.1307, 0.3081)
    assert (optimizer["_target_"], optimizer["lr"], optimizer["momentum"]) == ("torch.optim.SGD", 0.01, 0.9)
    assert (optimizer["nesterov"], optimizer["weight_decay"]) == (False, 0.0)
    assert config["model"]["hidden_sizes"] == [256, 64]
    assert (config["model"]["activation"], config["model"]["dropout"]) == ("ReLU", 0.0)
    assert config["loss"] == {"_target_": "mnist_lit.loss.OneHotMSE"}
    assert (config["trainer"]["max_epochs"], config["trainer"]["precision"]) == (3, "32-true")
    assert config["trainer"]["gradient_clip_val"] is None
    assert not config["scheduler"]
