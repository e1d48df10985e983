"""Models whose nearest adversarial point is known in closed form, and small ones that are quick to train."""

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.norms import NORMS


class Linear(nn.Module):
    """Three classes on flattened images: logits (-s/2, s/2, -9) with s = w.x + b; class 2 never matters.

    The distance of x to the boundary is |s| / ||w||_dual in any norm, as long as the box is not in the way.
    """

    def __init__(self, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        n = torch.Size(shape).numel()
        g = torch.Generator().manual_seed(seed)
        w = torch.randn(n, generator=g, dtype=torch.float64) + 0.1
        self.weight = nn.Parameter(w.to(dtype))
        self.bias = nn.Parameter(torch.zeros((), dtype=dtype))
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        s = x.flatten(1) @ self.weight + self.bias
        return torch.stack([-s / 2, s / 2, torch.full_like(s, -9)], 1)


def fewest(model: Linear, x: Tensor) -> Tensor:
    """The smallest number of values (B,) that must change, within [0, 1], for each row to cross the boundary."""
    w, flat = model.weight.detach().double(), x.flatten(1).double()
    s = flat @ w + model.bias.detach().double()
    # Each value can move s towards 0 by at most this much; take the largest first.
    gain = torch.where(((w > 0) == (s[:, None] > 0)), w.abs() * flat, w.abs() * (1 - flat))
    total = gain.sort(1, descending=True).values.cumsum(1)
    return (total <= s.abs()[:, None]).sum(1) + 1


def at_distance(model: Linear, norm: str, distance: float, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`n` images with their labels, each exactly `distance` (in `norm`) from the boundary of `model`."""
    g = torch.Generator().manual_seed(seed)
    w = model.weight.detach()
    x = 0.4 + 0.2 * torch.rand(n, w.numel(), generator=g).to(w)
    x = x - ((x @ w + model.bias.detach()) / (w @ w))[:, None] * w  # on the boundary
    side = torch.arange(n) % 2 * 2 - 1
    up = NORMS[norm].steepest(w.expand_as(x), x) if norm != "l1" else _largest(w).expand_as(x)
    x = x + distance * side[:, None] * up
    assert x.min() > 0 and x.max() < 1
    return x.view(n, *model.shape), (side > 0).long()


def _largest(w: Tensor) -> Tensor:
    """The unit vector of l1 along which w rises fastest."""
    top = w.abs().argmax()
    return torch.zeros_like(w).index_fill(0, top, 1.0) * w[top].sign()


class BatchNormNet(nn.Module):
    """A tiny convolutional classifier with batch norm and dropout, to see that attacks leave both alone."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            *(
                nn.Conv2d(1, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Dropout(0.3),
                nn.Flatten(),
                nn.Linear(144, num_classes),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits
