"""Random subset of a data set, keyed by a sample seed: the same for every model, and nested in its size."""

import torch
from torch import Tensor

from adversarial_lightning.attacks.core.noise import Noise


def random_subset(numbers: Tensor, n: int | None, seed: int = 0) -> Tensor:
    """Positions, ascending, of `n` of the samples `numbers` (int64 (N,)) drawn without replacement; all if n is None.

    Every sample has a random rank that depends on (seed, number) alone; the n lowest are taken. So the subset of 100
    lies in that of 1,000, and leaving a sample out of `numbers` changes no other's rank.
    """
    rank = Noise.keyed(seed, numbers).fork("subset").uniform(torch.empty(len(numbers), 1, dtype=torch.float64))[:, 0]
    return torch.argsort(rank, stable=True)[:n].sort().values
