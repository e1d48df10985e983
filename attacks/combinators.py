"""Combinators: attacks made of other attacks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind, Knowledge
from adversarial_lightning.attacks.core.best_adversarial import VOTES, is_adversarial
from adversarial_lightning.attacks.core.checks import at_least
from adversarial_lightning.attacks.core.gradient import ce, margin
from adversarial_lightning.attacks.core.introspection import members, threat
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import batch_view, distance, no_numbers, or_image
from adversarial_lightning.attacks.core.radius import Radius
from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.eval_mode import stochastic


class Combination(Attack):
    """Abstract base of attacks made of attacks; kind, knowledge and the meaning of `y` follow from the parts."""

    aims_itself: ClassVar[bool] = False  # takes labels and chooses the targets of its parts

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        return members(self)[0].kind

    @property
    def knowledge(self) -> Knowledge:  # type: ignore[override]
        known = {part.knowledge for part in members(self)}
        return next(k for k in get_args(Knowledge) if k in known)

    @property
    def targeted(self) -> bool:  # type: ignore[override]
        return not self.aims_itself and any(part.targeted for part in members(self))


@dataclass(frozen=True)
class Restarts(Combination):
    """Best result of `n` runs of one attack with independent noise; an evaluation records each run separately.

    Args:
        attack: the attack to repeat.
        n: number of runs.
    """

    attack: Attack
    n: int = 5

    def __post_init__(self) -> None:
        at_least(1, n=self.n)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return best_of([self.attack] * self.n, model, x, y, [noise.fork(i) for i in range(self.n)])


@dataclass(frozen=True)
class WorstOf(Combination):
    """Best result of several attacks for each image.

    Args:
        attacks: the attacks to choose from.
    """

    attacks: list[Attack]

    def __post_init__(self) -> None:
        _check_parts(self.attacks)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return best_of(self.attacks, model, x, y, [noise.fork(i) for i in range(len(self.attacks))])


@dataclass(frozen=True)
class Within(Combination):
    """Minimum-norm attack at one radius: its result where the perturbation is no longer than `eps`, x itself elsewhere.

    Args:
        attack: the minimum-norm attack.
        eps: radius, in pixels of [0, 1] (l0: a whole number of values).
    """

    attack: Attack
    eps: Radius

    def __post_init__(self) -> None:
        at_least(0, eps=self.eps)
        if threat(self.attack)[0] == "l0" and self.eps % 1:
            raise UserError(f"eps must be a whole number of values for norm l0, not {self.eps}")
        if self.attack.kind != "minimum-norm":
            raise UserError(f"Within judges minimum-norm attacks; {type(self.attack).__name__} has its own eps")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return self.attack.images(model, x, y, noise)


def best_of(attacks: Sequence[Attack], model: nn.Module, x: Tensor, y: Tensor, noises: Sequence[Noise]) -> Tensor:
    """Best result for each row; among equal results the first. NaN where no attack returns numbers.

    For budget attacks the result with the largest margin (if targeted, with the smallest margin of the target), for
    minimum-norm attacks the nearest adversarial point. For a stochastic model the margin is the mean and the decision
    the majority of `VOTES` draws.
    """
    votes = VOTES if stochastic(model) else 1
    best, best_score = x, x.new_full((len(x),), -torch.inf)
    broken = torch.ones_like(best_score, dtype=torch.bool)
    for attack, noise in zip(attacks, noises, strict=True):
        z = attack.images(model, x, y, noise)
        missing, z = no_numbers(z), or_image(z, x)
        with torch.no_grad():
            value = _score(attack, torch.stack([model(z) for _ in range(votes)]), z - x, y)
        better = value > best_score
        best = torch.where(batch_view(better, x), z, best)
        best_score, broken = torch.where(better, value, best_score), broken & missing
    return best.masked_fill(batch_view(broken, x), torch.nan)


def _score(attack: Attack, logits: Tensor, d: Tensor, y: Tensor) -> Tensor:
    """Score (B,), larger is better, of the perturbations `d`, from the `logits` (draws, B, K) at x + d."""
    if attack.kind == "minimum-norm":
        length = distance(str(threat(attack)[0]), d).to(logits.dtype)
        fooled = torch.stack([is_adversarial(draw, y, attack.targeted) for draw in logits]).double().mean(0)
        return torch.where(fooled > 0.5, -length, -torch.inf)
    # A NaN is no success, but scores above a point that is classified correctly.
    values = torch.stack([margin(draw, y) if y.ndim == 1 else ce(draw, y) for draw in logits]).nan_to_num(nan=0.0)
    return -values.mean(0) if attack.targeted else values.mean(0)


def _check_parts(attacks: Sequence[Attack]) -> None:
    if not attacks:
        raise UserError("attacks must name at least one attack")
    if len({a.kind for a in attacks}) > 1:
        raise UserError("budget attacks are compared by margin, minimum-norm ones by length: combine one kind only")
    if len({a.targeted for a in attacks}) > 1:
        raise UserError("targeted attacks are given targets and the others labels: combine one of the two only")
