"""Decision-based attacks: query budget, adversarial starting points, bisection to the boundary.

A decision tells whether a point is adversarial; logits and gradients are not seen. The decision of a stochastic model
is that of one draw, or of the majority of `votes` draws. Votes do not count as EOT (Athalye et al. 2018b): they say
nothing about attackers with gradients, so a headline number also needs an attack that averages gradients over
`eot_samples`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.best_adversarial import BestAdversarial
from adversarial_lightning.attacks.core.checks import at_least
from adversarial_lightning.attacks.core.noise import Noise, noise_for
from adversarial_lightning.attacks.core.norms import NORMS, batch_view
from adversarial_lightning.networks.eval_mode import stochastic


class Majority(nn.Module):
    """Number of votes for each class (B, K) in `votes` passes through `model`; NaN where a logit is not finite."""

    def __init__(self, model: nn.Module, votes: int) -> None:
        super().__init__()
        self.model, self.votes = model, votes

    def forward(self, x: Tensor) -> Tensor:
        counts = x.new_zeros(())
        for _ in range(self.votes):
            logits = self.model(x)
            vote = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
            counts = counts + vote.masked_fill(~logits.isfinite().all(1, keepdim=True), torch.nan)
        return counts


class Decisions:
    """Query budget of a batch: ``ask(z)`` tells which rows of `z` are adversarial, (B,).

    `closest` keeps the adversarial point nearest to `x` for each row. A row has at most `queries` forward passes, those
    for `x` included; each question costs `votes` passes (their majority decides, for stochastic models). Rows that are
    misclassified without an attack and rows without passes left are not asked again; their answer is false. The numbers
    that a stochastic model draws for a row depend on the row's `noise` and the number of passes it has used, never on
    the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        noise: Noise,
        distance: Callable[[Tensor], Tensor],
        targeted: bool,
        *,
        queries: int,
        votes: int = 1,
    ) -> None:
        self.model, self.noise, self.queries, self.votes = Majority(model, votes), noise.fork("queries"), queries, votes
        with noise_for(self.model, self.noise.fork("clean")):
            self.closest = BestAdversarial(self.model, x, y, distance, targeted, votes=1)
        self.used = torch.full_like(self.noise.key, votes)
        self.stochastic = stochastic(model)

    @property
    def open(self) -> Tensor:
        """Rows (B,) that have passes left and are not misclassified without an attack."""
        return ~self.closest.done & (self.used + self.votes <= self.queries)

    def __call__(self, z: Tensor, where: Tensor | None = None) -> Tensor:
        """Query the rows `where` (B,) of `z` (B, ...) in [0, 1]; for other rows the answer is false, at no cost."""
        asked = self.open if where is None else self.open & where
        rows = asked.nonzero()[:, 0]
        if not len(rows):
            return asked
        with torch.no_grad(), self._draws(rows):
            answer = self.model(z[rows])
        self.used[rows] += self.votes
        logits = answer.new_full((len(z), answer.shape[1]), torch.nan).index_copy(0, rows, answer)
        return self.closest.update(z, logits)

    def _draws(self, rows: Tensor) -> AbstractContextManager[None]:
        """Context in which a stochastic model draws from a stream for each of the `rows` and each pass."""
        if not self.stochastic:
            return nullcontext()
        return noise_for(self.model, Noise(self.noise.key[rows] ^ Noise.keyed(0, self.used[rows]).key))


def check_budget(queries: int, votes: int) -> None:
    """Raise ValueError for budgets that allow no query besides the one for the image itself."""
    at_least(1, votes=votes)
    at_least(2 * votes, queries=queries)


StartName = Literal["uniform", "varied"]


def squares(like: Tensor, noise: Noise, side: int) -> Tensor:
    """Random black and white images in squares of `side` pixels (vectors: runs), each image with a random mean."""
    z, mean = noise.uniform(like), noise.uniform(like.flatten(1)[:, :1])[:, 0]
    for axis in range(2, like.ndim) if like.ndim > 2 else [1]:
        z = z.index_select(axis, torch.arange(like.shape[axis], device=like.device) // side * side)
    return (z < batch_view(mean, like)).to(like.dtype)


def find_start(ask: Decisions, noise: Noise, tries: int, start: StartName) -> Tensor:
    """Search for an adversarial point among `tries` random images; returns the rows (B,) that have one.

    The points are then in `ask.closest.point`. With start uniform all images are uniform noise, which most networks
    assign to one and the same class; with start varied the second half of them are `squares`.
    """
    x = ask.closest.x
    for i in range(tries):
        plain = start == "uniform" or 2 * i < tries
        ask(noise.uniform(x) if plain else squares(x, noise, 2 ** (i % 4)), ~ask.closest.found)
    return ask.closest.found & ~ask.closest.done


def interpolate(norm: Literal["l2", "linf"], x: Tensor, z: Tensor, share: Tensor) -> Tensor:
    """Point nearest to `z` within `share` (B,) of its distance to `x`: on the line (l2) or by clipping (linf)."""
    if norm == "l2":
        return torch.lerp(x, z, batch_view(share, x))
    radius = batch_view(share * NORMS["linf"].distance(z - x), x)
    return x + (z - x).clamp(-radius, radius)


def bisect(ask: Decisions, norm: Literal["l2", "linf"], z: Tensor, where: Tensor, halvings: int) -> Tensor:
    """Move the adversarial points `z` towards x, up to the boundary, by `halvings` queries; they remain adversarial."""
    x, low, high = ask.closest.x, z.new_zeros(len(z)), z.new_ones(len(z))
    for _ in range(halvings):
        middle = (low + high) / 2
        fooled = ask(interpolate(norm, x, z, middle), where)
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
    return interpolate(norm, x, z, high)
