"""Random subset of a data set, keyed by a sample seed: the same for every model, and nested in its size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from adversarial_lightning.attacks.core.noise import Noise

Choice = Literal["random", "first"]


@dataclass(frozen=True)
class Samples:
    """Which `n` of the `of` images of a set an evaluation is about, and how they were `chosen`.

    Only a random choice (with its `seed`) says something about the whole set: the order of a set is not random, so the
    first images of it stand for themselves alone.
    """

    chosen: Literal["all", "random", "first"]
    seed: int | None
    n: int
    of: int


def random_subset(numbers: Tensor, n: int | None, seed: int = 0) -> Tensor:
    """Positions, ascending, of `n` of the samples `numbers` (int64 (N,)) drawn without replacement; all if n is None.

    Every sample has a random rank that depends on (seed, number) alone; the n lowest are taken. So the subset of 100
    lies in that of 1,000, and leaving a sample out of `numbers` changes no other's rank.
    """
    rank = Noise.keyed(seed, numbers).fork("subset").uniform(torch.empty(len(numbers), 1, dtype=torch.float64))[:, 0]
    return torch.argsort(rank, stable=True)[:n].sort().values


def random_numbers(numbers: Sequence[int] | NDArray[Any], n: int, seed: int = 0) -> list[int]:
    """The `random_subset` itself: at most `n` of these sample numbers, in their order."""
    whole = torch.as_tensor(numbers, dtype=torch.int64)
    chosen: list[int] = whole[random_subset(whole, n, seed)].tolist()
    return chosen


def random_images(images: Any, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Batch (x, y, index) of at most `n` of a set of numbered images, a `random_subset` of it."""
    batch: tuple[Tensor, Tensor, Tensor] = images.__getitems__(random_subset(images.indices, n, seed).tolist())
    return batch
