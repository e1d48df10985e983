"""Losses and statistics of training against an adversary critic (Matyasko 2020, chapter 4), as pure functions."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

GanLoss = Literal["non_saturating", "saturating", "hinge", "least_squares"]
Cycle = Literal["squared_l2", "l2", "l1"]


class Losses(NamedTuple):
    """Losses as functions of the critic's logits (B,): the critic's on real and attacked images, the classifier's."""

    real: Callable[[Tensor], Tensor]
    attacked: Callable[[Tensor], Tensor]
    classifier: Callable[[Tensor], Tensor]


def _real(s: Tensor) -> Tensor:
    return F.softplus(-s)


# Eqs. 4.3 and 4.4 as losses to minimise. The signs printed there would train the critic to be wrong (4.3) and the
# classifier to be detected (4.4). The classifier of the public code minimises -log D (non-saturating).
GAN_LOSSES: dict[str, Losses] = {
    "non_saturating": Losses(_real, F.softplus, _real),
    "saturating": Losses(_real, F.softplus, lambda s: -F.softplus(s)),
    "hinge": Losses(lambda s: (1 - s).relu(), lambda s: (1 + s).relu(), lambda s: -s),
    "least_squares": Losses(lambda s: (s - 1).square(), lambda s: s.square(), lambda s: (s - 1).square()),
}


def running_confidence(before: Tensor, logits: Tensor, momentum: float = 0.5) -> Tensor:
    """New running means (K,) of the confidence in images PREDICTED as each class.

    Classes that are not predicted keep their value `before`. The mean is that of the joint batch of all processes.
    """
    p, predicted = logits.detach().softmax(1).max(1)
    sums = torch.zeros_like(before).index_add(0, predicted, p.to(before))
    counts = torch.zeros_like(before).index_add(0, predicted, torch.ones_like(p).to(before))
    sums, counts = total(torch.stack([sums, counts]))
    return torch.where(counts > 0, momentum * before + (1 - momentum) * sums / counts.clamp_min(1), before)


def total(value: Tensor) -> Tensor:
    """Sum of `value` over all processes, without a gradient."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
    return value


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of `values` (B,) over the rows where `where` (B,) is true, 0 if there is none.

    The divisor is the average number of such rows in a process: DDP then averages the gradients of all processes, and
    the result is the mean over all their rows.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    count = total(where.sum().to(values)) / world
    mean: Tensor = torch.where(where, values, 0).sum() / count.clamp_min(1 / world)
    return mean


def gradient_penalty(s: Tensor, x: Tensor, norm: float = 1.0) -> Tensor:
    """Two-sided gradient penalty (||grad_x s||_2 - norm)^2 (B,) for critic logits `s` (B,) at `x`.

    It is that of WGAN-GP (Gulrajani et al. 2017).
    """
    (gradient,) = torch.autograd.grad(s.sum(), x, create_graph=True)
    return (distance(gradient, "l2") - norm).square()


def distance(d: Tensor, kind: Cycle) -> Tensor:
    """Length (B,) of each row of `d` (B, ...)."""
    flat = d.flatten(1)
    if kind == "squared_l2":
        return flat.square().sum(1)
    sizes: Tensor = torch.linalg.vector_norm(flat, ord=2 if kind == "l2" else 1, dim=1)
    return sizes
