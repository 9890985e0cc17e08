"""Squared errors: of the blog this project grew from, and of probabilities; other losses come from torch.nn by YAML."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class OneHotMSE(nn.Module):
    """Squared error between logits [B, C] and one-hot labels [B] (int64, 0..C-1), mean over batch AND classes.

    The mean over C = 10 classes is what `torch.nn.functional.mse_loss` does by default. It makes gradients
    ten times smaller than a sum over classes would, so good learning rates are about ten times larger.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, C] and labels [B] -> scalar."""
        return _mse(logits, labels)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [B, C] -> the closest probabilities [B, C]: at least 0, summing to 1.

        What is trained to one-hot labels by squared error estimates the probabilities themselves (Richard and
        Lippmann 1991), so a softmax would flatten them; the closest point of the simplex is found as by Duchi
        et al. (2008), figure 1.
        """
        excess = logits.sort(dim=1, descending=True).values.cumsum(dim=1) - 1
        ranks = torch.arange(1, logits.shape[1] + 1, device=logits.device)
        # What to subtract if the first 1, 2, ... stay above 0; the right number of them gives the largest.
        shift = (excess / ranks).amax(dim=1, keepdim=True)
        return (logits - shift).clamp(min=0)


class SoftmaxMSE(nn.Module):
    """Squared error between softmax probabilities of logits [B, C] and one-hot labels [B], mean over batch and classes.

    The score of Brier (1950), divided by C. Networks of the 1990s, too, squashed the outputs under their squared error.
    An image that is classified confidently and correctly adds nothing to it, where `OneHotMSE` keeps pulling outputs
    to exactly 0 and 1.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, C] and labels [B] -> scalar."""
        # In bfloat16, probabilities near 1 would be rounded to steps of 0.004.
        return _mse(logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32)), labels)


def _mse(outputs: Tensor, labels: Tensor) -> Tensor:
    """Outputs [B, C] and labels [B] -> scalar, mean over batch and classes."""
    # The labels' rows of the identity. `functional.one_hot` makes integers, and looks through the labels twice before.
    targets = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device).index_select(0, labels)
    return functional.mse_loss(outputs, targets)


def probabilities(loss: object, logits: Tensor) -> Tensor:
    """Turn logits [B, C] into probabilities [B, C] as `loss` means them: by its own method, else by softmax."""
    own = getattr(loss, "probabilities", None)
    return own(logits) if own else logits.softmax(dim=1)
