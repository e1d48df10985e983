"""Attacks made of attacks: wrappers instead of flags."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import Attack, at_least
from attacks.noise import Noise
from attacks.objectives import ce, margin


def threat(attack: Attack) -> tuple[str | None, float | None]:
    """Norm and radius of an attack; None where it has none, or where the parts of a combination disagree."""
    parts = {threat(part) for part in members(attack)}
    if parts:
        return parts.pop() if len(parts) == 1 else (None, None)
    return getattr(attack, "norm", None), getattr(attack, "eps", None)


def members(attack: Attack) -> list[Attack]:
    """The attacks that `attack` is directly made of; empty for a plain one."""
    parts: list[Attack] = []
    for field in fields(attack):  # type: ignore[arg-type]
        value = getattr(attack, field.name)
        parts += [a for a in (value if isinstance(value, list | tuple) else [value]) if isinstance(a, Attack)]
    return parts


def scale_eps(attack: Attack, factor: float) -> Attack:
    """The same attack with every radius multiplied by `factor`, also inside combinations."""
    changes: dict[str, Any] = {}
    for field in fields(attack):  # type: ignore[arg-type]
        value = getattr(attack, field.name)
        if isinstance(value, Attack):
            changes[field.name] = scale_eps(value, factor)
        elif isinstance(value, list | tuple) and any(isinstance(a, Attack) for a in value):
            changes[field.name] = [scale_eps(a, factor) for a in value]
        elif field.name == "eps":
            changes[field.name] = value * factor
    return replace(attack, **changes)  # type: ignore[type-var]


def strongest(attacks: Sequence[Attack], model: nn.Module, x: Tensor, y: Tensor, noises: Sequence[Noise]) -> Tensor:
    """For each row the result with the largest margin (smallest for targeted attacks); the first of equals."""
    score = margin if y.ndim == 1 else ce
    best, best_score = x, x.new_full((len(x),), -torch.inf)
    for attack, noise in zip(attacks, noises, strict=True):
        z = attack.perturb(model, x, y, noise).detach().clamp(0, 1)
        with torch.no_grad():
            value = score(model(z), y)
        value = (-value if getattr(attack, "targeted", False) else value).nan_to_num(nan=-torch.inf)
        better = value > best_score
        best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), z, best)
        best_score = torch.where(better, value, best_score)
    return best


def _check_budget(attacks: Sequence[Attack]) -> None:
    if not attacks:
        raise ValueError("attacks must name at least one attack")
    if any(a.kind == "minimum-norm" for a in attacks):
        raise ValueError("combinations choose by margin, which means nothing for minimum-norm attacks")


@dataclass(frozen=True)
class Restarts(Attack):
    """The strongest of `n` runs of one attack with independent noise. Evaluation records each run by itself.

    Args:
        attack: the attack to repeat.
        n: number of runs.
    """

    attack: Attack
    n: int = 5

    def __post_init__(self) -> None:
        at_least(1, n=self.n)
        _check_budget([self.attack])

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return strongest([self.attack] * self.n, model, x, y, [noise.fork(i) for i in range(self.n)])


@dataclass(frozen=True)
class WorstOf(Attack):
    """For each image the strongest result of several attacks.

    Args:
        attacks: the attacks to choose from.
    """

    attacks: list[Attack]

    def __post_init__(self) -> None:
        _check_budget(self.attacks)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return strongest(self.attacks, model, x, y, [noise.fork(i) for i in range(len(self.attacks))])
