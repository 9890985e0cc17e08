"""Random distortions of training images, whole batches at a time, on whatever device they are."""

import math

import torch
from torch import Tensor
from torch.nn import functional

SIZE = 28  # pixels, width and height


class AffineElastic:
    """Distort each image by an affine map and an elastic field of its own, drawn anew at every call.

    Images [B, 28, 28], uint8 or float, black (0) around them -> float32 [B, 28, 28] over the same range of
    values, read between pixels by bilinear interpolation. Random numbers come from torch's global generator of
    the images' device, so `seed` fixes them and a resumed run goes on with the same ones.

    Affine, each uniform and symmetric: shifted by up to `translate` pixels across and down, width and height
    scaled by factors of their own in 1 +- `scale`, slanted by up to `shear` degrees, turned by up to `degrees`
    about the centre; in this order.

    Elastic (Simard, Steinkraus and Platt 2003, who take alpha 34 and sigma 4): every pixel moves across and down
    by a field of random numbers, uniform in +-`alpha` pixels, smoothed by a Gaussian of standard deviation `sigma`
    pixels. The displacement's standard deviation is alpha / (2 sigma sqrt(3 pi)) pixels, 1.4 for theirs.

    Raises ValueError for values out of range.
    """

    def __init__(
        self, *, degrees: float, scale: float, shear: float, translate: float, alpha: float, sigma: float
    ) -> None:
        if not 0 <= degrees <= 180:
            raise ValueError(f"degrees must be from 0 to 180, got {degrees}")
        if not 0 <= scale < 1:
            raise ValueError(f"scale must be at least 0 and below 1, got {scale}")
        if not 0 <= shear < 90:
            raise ValueError(f"shear must be at least 0 and below 90 degrees, got {shear}")
        if not 0 <= translate <= SIZE:
            raise ValueError(f"translate must be from 0 to {SIZE} pixels, got {translate}")
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha must be at least 0, got {alpha}")
        if not 1 <= sigma <= SIZE:
            raise ValueError(f"sigma must be from 1 to {SIZE} pixels, got {sigma}")
        # Half the widths of the six uniform distributions, in `_affine`'s order.
        self.ranges = torch.tensor(
            [math.radians(degrees), math.radians(shear), scale, scale, translate, translate]
        ).unsqueeze(1)
        self.displacement = alpha / (2 * sigma * math.sqrt(3 * math.pi))  # standard deviation, pixels
        self.smoothing = _smoothing(sigma)  # [28, M]
        centres = torch.arange(SIZE) - (SIZE - 1) / 2  # -13.5 ... 13.5, pixels
        across, down = centres.repeat(SIZE), centres.repeat_interleave(SIZE)
        self.pixels = torch.stack([across, down, torch.ones(SIZE * SIZE)])  # [3, 784]

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, 28, 28] -> distorted images float32 [B, 28, 28]."""
        positions = self.draw_positions(len(images), images.device)
        # From pixels to grid_sample's unit, where the image reaches from -1 to 1; as a view, which it reads faster.
        grid = positions.mul_(2 / SIZE).permute(0, 2, 3, 1)
        channels = images.unsqueeze(1).to(torch.float32)
        return functional.grid_sample(channels, grid, align_corners=False).squeeze(1)

    def draw_positions(self, num_images: int, device: torch.device) -> Tensor:
        """Draw where each pixel's value is read: [B, 2, 28, 28], across and down from the centre, in pixels."""
        if self.pixels.device != device:
            self.ranges, self.smoothing, self.pixels = (
                tensor.to(device) for tensor in (self.ranges, self.smoothing, self.pixels)
            )
        positions = (self._affine(num_images) @ self.pixels).view(num_images, 2, SIZE, SIZE)
        if self.displacement:
            num_nodes = self.smoothing.shape[1]
            noise = torch.empty(num_images, 2, num_nodes, num_nodes, device=device)
            noise.uniform_(-math.sqrt(3), math.sqrt(3))  # of standard deviation 1
            positions += self.smoothing @ (noise @ (self.displacement * self.smoothing.T))
        return positions

    def _affine(self, num_images: int) -> Tensor:
        """Draw maps from where a pixel is to where its value comes from: two rows per image, [2B, 3]."""
        drawn = torch.rand(len(self.ranges), num_images, device=self.ranges.device).mul_(2).sub_(1).mul_(self.ranges)
        angle, slant, wider, taller, right, below = drawn
        cos, sin, slope = angle.cos(), angle.sin(), slant.tan()
        # The inverses in inverse order: turned back, slanted back, scaled back, shifted back.
        rows = [
            (cos + slope * sin) / (1 + wider),
            (sin - slope * cos) / (1 + wider),
            -right,
            -sin / (1 + taller),
            cos / (1 + taller),
            -below,
        ]
        return torch.stack(rows, dim=1).view(2 * num_images, 3)


def _smoothing(sigma: float) -> Tensor:
    """Return the Gaussian [28, M] that spreads noise at M nodes over 28 pixels, and keeps its standard deviation.

    Nodes are `sigma` pixels apart, and go 3 `sigma` beyond the image, so that its edges move as much as its centre.
    Noise at every pixel would give a field of the same statistics for `sigma` squared times the random numbers: the
    variance between nodes ripples by a factor of 2 exp(-pi^2), one in ten thousand, before it is made even here.
    """
    pixels = torch.arange(SIZE).unsqueeze(1)
    nodes = torch.arange(math.ceil((SIZE - 1) / sigma) + 7) * sigma - 3 * sigma
    weights = torch.exp(-((pixels - nodes) ** 2) / (2 * sigma**2))
    return functional.normalize(weights, dim=1)
