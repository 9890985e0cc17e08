"""What plain torch makes of a checkpoint, to hold the project's own numbers to."""

from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn import functional


def network(checkpoint: dict[str, Any]) -> nn.Module:
    """Rebuild the network from nothing but a checkpoint."""
    model = instantiate(checkpoint["hyper_parameters"]["model"])
    assert isinstance(model, nn.Module)
    weights = {key.removeprefix("model."): value for key, value in checkpoint["state_dict"].items()}
    model.load_state_dict(weights)
    return model.eval()


def split(checkpoint: dict[str, Any], name: str) -> tuple[Tensor, Tensor]:
    """Return the images, normalised, and the labels that a checkpoint's run validated or tested on."""
    data = instantiate(checkpoint["hyper_parameters"]["data"])
    data.setup()
    images, labels = getattr(data, name).__getitems__(range(len(getattr(data, name))))
    return (images.float() / 255 - 0.1307) / 0.3081, labels


def scores(checkpoint: dict[str, Any], name: str) -> dict[str, Any]:
    """Measure a checkpoint on a split with plain torch."""
    images, labels = split(checkpoint, name)
    with torch.no_grad():
        logits = network(checkpoint)(images)
    mse = functional.mse_loss(logits, functional.one_hot(labels, 10).float()).item()
    acc = (logits.argmax(dim=1) == labels).float().mean().item()
    return {f"{name}/loss": pytest.approx(mse, abs=1e-6), f"{name}/acc": pytest.approx(acc, abs=1e-7)}
