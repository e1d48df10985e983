"""Two tiny purifiers, one of each kind of the contract: a smooth filter, and rounding of noisy pixels."""

import torch.nn.functional as F
from torch import Tensor

from defenses.base import Purifier


class MeanFilter(Purifier):
    """Mean over a square window (differentiable, deterministic); the border is replicated.

    Args:
        size: side of the window in pixels, odd.
    """

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size must be odd and at least 1, not {size}")
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        r = self.size // 2
        return F.avg_pool2d(F.pad(x, (r, r, r, r), mode="replicate"), self.size, stride=1)


class RandomQuantizer(Purifier):
    """Rounds x + N(0, std^2) to `levels` grey values (stochastic, not differentiable; BPDA surrogate: identity).

    Args:
        levels: number of grey values, at least 2.
        std: standard deviation of the noise before rounding, in pixels of [0, 1].
    """

    differentiable = False
    stochastic = True

    def __init__(self, levels: int = 4, std: float = 0.1) -> None:
        super().__init__()
        if levels < 2 or std < 0:
            raise ValueError(f"levels must be at least 2 and std at least 0, not {levels} and {std}")
        self.levels, self.std = levels, std

    def forward(self, x: Tensor) -> Tensor:
        noisy = (x + self.std * self.draws(x).normal(x)).clamp(0, 1)
        return (noisy * (self.levels - 1)).round() / (self.levels - 1)
