import math

import pytest
import torch
from torch import nn

from mnist_lit.loss import OneHotMSE, SoftmaxMSE, probabilities
from mnist_lit.model import MLP


def make(**changes: object) -> MLP:
    arguments: dict[str, object] = {
        "in_features": 784,
        "hidden_sizes": [256, 64],
        "activation": "ReLU",
        "dropout": 0.0,
        "num_classes": 10,
    }
    return MLP(**(arguments | changes))  # type: ignore[arg-type]


def test_default_network_is_the_blogs() -> None:
    layers = list(make().layers)
    assert [type(layer).__name__ for layer in layers] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Linear)] == [
        (256, 784),
        (64, 256),
        (10, 64),
    ]


def test_forward_flattens_and_ends_without_an_activation() -> None:
    torch.manual_seed(0)
    model = make()
    images = torch.randn(5, 28, 28)
    logits = model(images)
    assert logits.shape == (5, 10)
    assert (logits < 0).any()
    torch.testing.assert_close(model(images.unsqueeze(1)), logits)


def test_dropout_and_activation_stand_between_the_layers_only() -> None:
    names = [type(layer).__name__ for layer in make(dropout=0.5, activation="Tanh", hidden_sizes=[8]).layers]
    assert names == ["Linear", "Tanh", "Dropout", "Linear"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_sizes": []}, "hidden_sizes must be"),
        ({"hidden_sizes": [8, 0]}, "hidden_sizes must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"activation": "Linear"}, "activation must name"),
    ],
)
def test_what_makes_no_network_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_one_hot_mse_is_the_mean_over_batch_and_classes() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    labels = torch.tensor([0, 2])
    assert OneHotMSE()(logits, labels).item() == pytest.approx((0 + 3.0**2 + 1.0**2) / 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_softmax_mse_is_the_squared_error_of_probabilities(dtype: torch.dtype) -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, 6.0, 0.0]], dtype=dtype)  # the second: 0.9951 for its class
    labels = torch.tensor([0, 1])
    sure = math.exp(6) / (math.exp(6) + 2)
    expected = ((1 / 3 - 1) ** 2 + 2 * (1 / 3) ** 2 + (1 - sure) ** 2 + 2 * ((1 - sure) / 2) ** 2) / 6
    loss = SoftmaxMSE()(logits, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(probabilities(SoftmaxMSE(), logits), logits.softmax(dim=1))


def test_probabilities_for_squared_error_are_the_closest_there_are() -> None:
    torch.manual_seed(0)
    logits = torch.randn(200, 4)
    ours = probabilities(OneHotMSE(), logits)
    assert ours.min() >= 0
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(200))
    assert torch.equal(ours.argmax(dim=1), logits.argmax(dim=1))
    candidates = torch.distributions.Dirichlet(torch.full((4,), 0.5)).sample(torch.Size([2000]))
    assert ((ours - logits).norm(dim=1) <= torch.cdist(logits, candidates).min(dim=1).values).all()
    already = torch.tensor([[0.7, 0.1, 0.2, 0.0]])
    torch.testing.assert_close(probabilities(OneHotMSE(), already), already)


def test_probabilities_for_other_losses_are_the_softmax() -> None:
    logits = torch.tensor([[1.0, 2.0]])
    assert torch.equal(probabilities(torch.nn.CrossEntropyLoss(), logits), logits.softmax(dim=1))
