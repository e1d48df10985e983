"""Image filters without training: the baselines of RIDE and MALADE."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from adversarial_lightning.defenses.base import Purifier
from adversarial_lightning.errors import UserError


class MeanFilter(Purifier):
    """Mean over a square window (differentiable, deterministic); the border is replicated.

    Args:
        size: side of the window in pixels, odd.
    """

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise UserError(f"size must be odd and at least 1, not {size}")
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (self.size // 2,) * 4, mode="replicate")
        return F.avg_pool2d(padded, self.size, stride=1)


class Median(Purifier):
    """Median over a square window of each channel, with zeros around the image (RIDE's baseline, Lin et al. 2019).

    Differentiable almost everywhere: every output is one of the pixels, and passes its gradient to that one. Raises
    ValueError for images smaller than the window.

    Args:
        size: side of the window in pixels, odd; the paper tries 3 to 11 on ImageNet, 7 and 9 were best there.
    """

    MEMORY = 2**25  # values sorted at once: 128 MiB, and two images of ImageNet's size under the largest window

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        if size < 3 or size % 2 == 0:
            raise UserError(f"size must be odd and at least 3, not {size}")
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        k, r = self.size, self.size // 2
        if min(x.shape[2:]) < k:
            raise UserError(f"a window of {k} x {k} pixels is larger than images of {x.shape[2]} x {x.shape[3]}")
        images = max(1, self.MEMORY // (k * k * x[:1].numel() or 1))
        parts = [F.pad(z, (r, r, r, r)).unfold(2, k, 1).unfold(3, k, 1).flatten(4) for z in x.split(images)]
        return torch.cat([windows.median(4).values for windows in parts])


class JPEG(Purifier):
    """JPEG compression and decompression of pixels rounded to 8 bits (Dziugaite et al. 2016, Guo et al. 2018).

    Pillow's, on the CPU; colours at half the resolution (4:2:0). Not differentiable; the surrogate is the identity.
    Raises ValueError for images that have neither 1 nor 3 channels, and for images of NaN.

    Args:
        quality: 1 to 100; Guo et al. have 75.
    """

    differentiable = False

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        if not 1 <= quality <= 100:
            raise UserError(f"quality must be at least 1 and at most 100, not {quality}")
        self.quality = quality

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] not in (1, 3):
            raise UserError(f"JPEG images have 1 or 3 channels, not {x.shape[1]}")
        refuse_nan(x)
        pixels = (x.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
        z = torch.empty_like(pixels).permute(0, 2, 3, 1)
        for before, after in zip(pixels.permute(0, 2, 3, 1), z, strict=True):
            file = io.BytesIO()
            array = before.numpy()
            Image.fromarray(array[..., 0] if x.shape[1] == 1 else array).save(file, "JPEG", quality=self.quality)
            after.copy_(torch.as_tensor(np.array(Image.open(file))).view_as(after))
        return z.permute(0, 3, 1, 2).to(x) / 255


class BitDepth(Purifier):
    """Pixels rounded to 2^bits grey values, from black to white (Xu et al. 2018, Guo et al. 2018).

    Not differentiable: rounding has gradient zero; the surrogate is the identity.

    Args:
        bits: 1 to 8; Guo et al. have 3, Xu et al. 1 for MNIST and 5 for CIFAR-10.
    """

    differentiable = False

    def __init__(self, bits: int = 3) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise UserError(f"bits must be at least 1 and at most 8, not {bits}")
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        steps = int(2**self.bits) - 1
        return (x * steps).round() / steps


class RandomQuantizer(Purifier):
    """x + N(0, std^2), rounded to `levels` grey values (stochastic, not differentiable; BPDA surrogate: identity).

    Args:
        levels: number of grey values, at least 2.
        std: standard deviation of the noise before rounding, in pixels of [0, 1].
    """

    differentiable = False
    stochastic = True

    def __init__(self, levels: int = 4, std: float = 0.1) -> None:
        super().__init__()
        if levels < 2 or std < 0:
            raise UserError(f"levels must be at least 2 and std at least 0, not {levels} and {std}")
        self.levels, self.std = levels, std

    def forward(self, x: Tensor) -> Tensor:
        noisy = (x + self.std * self.own_noise(x).normal(x)).clamp(0, 1)
        return (noisy * (self.levels - 1)).round() / (self.levels - 1)


def refuse_nan(x: Tensor) -> None:
    """Raise ValueError for images with NaN, which a filter would turn into ordinary pixels."""
    if x.isnan().any():
        raise UserError(f"{int(x.flatten(1).isnan().any(1).sum())} of {len(x)} images hold NaN")
