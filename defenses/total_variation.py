"""Total-variation denoising (Rudin et al. 1992) in front of a classifier (Guo et al. 2018).

Rudin, Osher and Fatemi, "Nonlinear Total Variation Based Noise Removal Algorithms", Physica D 1992; Guo, Rana, Cisse
and van der Maaten, "Countering Adversarial Images using Input Transformations", ICLR 2018.
"""

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from adversarial_lightning.attacks.core.checks import at_least, between
from adversarial_lightning.defenses.base import Purifier
from adversarial_lightning.defenses.filters import MeanFilter, refuse_nan


class TotalVariation(Purifier):
    """Abstract base: total-variation denoising of each channel by scikit-image, on the CPU.

    Not differentiable; the surrogate is the mean of 3 x 3 pixels, through which PGD found a little more than through
    the identity (2 to 7 points on 60 held-out digits). Channels are denoised one by one because scikit-image's
    Bregman starts each where the one before it ended. Raises ValueError for images of NaN.

    Args:
        weight: above 0, for pixels in [0, 1].
        steps: at most so many iterations.
    """

    differentiable = False

    def __init__(self, weight: float, steps: int) -> None:
        super().__init__()
        between(0, math.inf, weight=weight)
        at_least(1, steps=steps)
        self.weight, self.steps = weight, steps

    @abstractmethod
    def denoise(self, channel: Any) -> Any:
        """Denoise one channel, an array (H, W) of floats."""

    def forward(self, x: Tensor) -> Tensor:
        refuse_nan(x)
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32  # numpy has no bfloat16
        z = x.detach().clamp(0, 1).to("cpu", exact).clone(memory_format=torch.contiguous_format)
        for channel in z.flatten(0, 1):
            channel.copy_(torch.as_tensor(self.denoise(channel.numpy())))
        return z.to(x).clamp(0, 1)

    def surrogate(self, x: Tensor) -> Tensor:
        smooth: Tensor = MeanFilter(3)(x)
        return smooth


class TVBregman(TotalVariation):
    """Total-variation denoising by split Bregman (Goldstein and Osher 2009): a SMALLER weight smooths MORE.

    The weight is that of the distance to the image. Lin et al. 2019 sweep 0.075 to 0.75 and take larger for smoother,
    which holds for `TVChambolle` only; their MNIST demo has 10.

    Args:
        weight: above 0, for pixels in [0, 1].
        steps: at most so many iterations.
    """

    def __init__(self, weight: float = 10.0, steps: int = 100) -> None:
        super().__init__(weight, steps)

    def denoise(self, channel: Any) -> Any:
        from skimage.restoration import denoise_tv_bregman  # a second to import, and no other defense needs it

        return denoise_tv_bregman(channel, self.weight, self.steps)


class TVChambolle(TotalVariation):
    """Total-variation denoising by Chambolle's projections (2004): a larger weight smooths more.

    The weight is that of the total variation. Lin et al. 2019 sweep 0.25 to 1.75.

    Args:
        weight: above 0, for pixels in [0, 1].
        steps: at most so many iterations.
    """

    def __init__(self, weight: float = 0.25, steps: int = 200) -> None:
        super().__init__(weight, steps)

    def denoise(self, channel: Any) -> Any:
        from skimage.restoration import denoise_tv_chambolle

        return denoise_tv_chambolle(channel, self.weight, max_num_iter=self.steps)
