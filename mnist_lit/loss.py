"""The loss of the blog this project grew from; others come from torch.nn by YAML."""

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
        targets = functional.one_hot(labels, logits.shape[1])
        return functional.mse_loss(logits, targets.to(logits.dtype))

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


def probabilities(loss: object, logits: Tensor) -> Tensor:
    """Turn logits [B, C] into probabilities [B, C] as `loss` means them: by its own method, else by softmax."""
    own = getattr(loss, "probabilities", None)
    return own(logits) if own else logits.softmax(dim=1)
