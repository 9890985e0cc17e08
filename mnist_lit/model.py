"""The network: a multilayer perceptron over flattened images. Torch only."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mnist_lit.linear import Linear


class MLP(nn.Module):
    """A stack of linear layers with an activation (and dropout) between them and nothing after the last.

    Images [B, 28, 28] (any trailing shape with `in_features` elements), normalised floats, give logits
    [B, num_classes]. Weights and biases start as `torch.nn.Linear` leaves them: uniform in
    +-1/sqrt(fan_in).

    `activation` names a class of `torch.nn` ("ReLU", "Tanh", "GELU", ...); `dropout` is the probability
    in [0, 1) that a hidden unit is zeroed while training.

    Raises ValueError for no hidden layer, a width below 1, a dropout outside [0, 1) or an unknown
    activation.
    """

    def __init__(
        self,
        *,
        in_features: int,
        hidden_sizes: Sequence[int],
        activation: str,
        dropout: float,
        num_classes: int,
    ) -> None:
        super().__init__()
        if not hidden_sizes or min(hidden_sizes) < 1:
            raise ValueError(
                f"hidden_sizes must be one or more widths of at least 1, such as [256,64], got {list(hidden_sizes)}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        activation_class = getattr(nn.modules.activation, activation, None)
        if not (isinstance(activation_class, type) and issubclass(activation_class, nn.Module)):
            close = [name for name in nn.modules.activation.__all__ if name.lower() == activation.lower()]
            example = close[0] if close else "ReLU or Tanh"
            raise ValueError(f"activation must name an activation of torch.nn, such as {example}, got {activation}")

        # Linear is torch's own, computed faster where that is possible.
        widths = [in_features, *hidden_sizes]  # 784, 256, 64
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [Linear(fan_in, fan_out), activation_class()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers, Linear(widths[-1], num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, ...] -> logits [B, num_classes]."""
        logits: Tensor = self.layers(torch.flatten(images, start_dim=1))
        return logits
