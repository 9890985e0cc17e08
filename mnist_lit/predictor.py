"""The trained network as its users need it: pixels in, probabilities out."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mnist_lit.errors import UserError


class Predictor(nn.Module):
    """A network with its normalisation before it and its probabilities after it.

    `mean` and `std` are those of the pixels / 255 that it was trained on, `probabilities` turns its logits
    [B, C] into probabilities [B, C], and `class_names` says what the C classes are.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        mean: float,
        std: float,
        probabilities: Callable[[Tensor], Tensor],
        class_names: Sequence[str],
    ) -> None:
        super().__init__()
        self.model = model
        self.mean = mean
        self.std = std
        self.probabilities = probabilities
        self.class_names = list(class_names)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Pixels uint8 [B, 28, 28], white on black as in MNIST -> probabilities float32 [B, C].

        Raises UserError for anything else, since pixels from 0 to 1 would all look black.
        """
        if not (isinstance(images, Tensor) and images.dtype == torch.uint8 and images.shape[1:] == (28, 28)):
            got = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise UserError(
                f"images={got}: must be a torch.uint8 tensor [B, 28, 28], pixels from 0 to 255, white on black; use "
                "torch.from_numpy, images[None] for a single one, images.squeeze(1) for one channel, "
                "(255 * images).to(torch.uint8) for pixels from 0 to 1"
            )
        pixels = images.to(next(self.model.parameters()))
        return self.probabilities(self.model((pixels - 255 * self.mean) / (255 * self.std)))
