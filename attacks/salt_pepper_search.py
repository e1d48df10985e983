"""Search for the smallest density of salt-and-pepper noise that changes the decision."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind, Knowledge
from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.decisions import Decisions, check_budget
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import batch_view, distance


@dataclass(frozen=True)
class SaltAndPepperSearch(Attack):
    """Turn random pixels black or white, as few as needed for an adversarial image.

    The attack as in Foolbox (Rauber et al. 2017): the density grows until the image is misclassified, and is then
    reduced. Here a pattern is an order of the pixels with their new values, drawn once. Patterns grow in `steps` steps
    until one is adversarial; later patterns are tried at the least density so far. Each adversarial pattern is then
    reduced by bisection, down to single pixels. l0 counts values; a pixel has one for each channel.

    Args:
        norm: norm that is minimised.
        queries: forward passes for each image.
        steps: number of densities through which a pattern grows.
        votes: forward passes for one question, decided by their majority; more than 1 for stochastic models. Votes do
            not replace EOT: a suite for such models also needs a gradient attack with `eot_samples`.
        targeted: search for the class `y` instead of any other class than `y`.
    """

    kind: ClassVar[Kind] = "minimum-norm"
    knowledge: ClassVar[Knowledge] = "decisions"
    norm: Literal["l0"] = "l0"
    queries: int = 1000
    steps: int = 50
    votes: int = 1
    targeted: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, steps=self.steps)
        check_budget(self.queries, self.votes)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        length = partial(distance, self.norm)
        ask = Decisions(model, x, y, noise, length, self.targeted, queries=self.queries, votes=self.votes)
        halvings = math.ceil(math.log2(max(2, x[0, :1].numel() if x.ndim > 2 else x[0].numel())))
        like = x[:, :1] if x.ndim > 2 else x  # one draw a pixel
        high = x.new_ones(len(x))  # least density of an adversarial pattern
        while ask.open.any():
            order, colour = noise.uniform(like), (noise.uniform(like) < 0.5).to(x.dtype)

            def at(density: Tensor, order: Tensor = order, colour: Tensor = colour) -> Tensor:
                return torch.where(order < batch_view(density, x), colour, x)

            growing = ~ask.closest.found
            good, low = ask(at(high), ~growing), torch.zeros_like(high)
            for i in range(self.steps if growing.any() else 0):
                fooled = ask(at(torch.full_like(high, (i + 1) / self.steps)), growing & ~good)
                high = high.masked_fill(fooled, (i + 1) / self.steps)
                low, good = low.masked_fill(fooled, i / self.steps), good | fooled
            for _ in range(halvings if good.any() else 0):
                middle = (low + high) / 2
                fooled = ask(at(middle), good)
                high = torch.where(fooled, middle, high)
                low = torch.where(good & ~fooled, middle, low)
        return ask.closest.point
