"""What decision-based attacks see of a model: whether a point fools it, for a price. No logits, no gradients.

Of a stochastic model they see one draw a question, or the majority of `votes`. With enough votes an attack without
gradients is as strong as it can be; that says nothing about attackers with gradients, so votes do not count as EOT
(Athalye et al. 2018): a headline number still needs an attack that averages gradients over `eot_samples`.
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
    """`model` asked `votes` times: the number of votes for each class, (B, K); NaN where a logit was not finite."""

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
    """``ask(z)``: which rows of `z` fool the model (B,); `closest` keeps the nearest point to `x` that did.

    Each row has a budget of its own: at most `queries` forward passes, the look at `x` included; a question costs
    `votes` of them (the majority counts, for stochastic models). Rows that `closest` found misclassified and rows
    whose budget is spent are asked no more, and answer false. The numbers that a stochastic model draws for a row are
    a function of the row's `noise` and of the passes it has used, so rows stay independent of their batch.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        noise: Noise,
        *,
        distance: Callable[[Tensor], Tensor],
        targeted: bool,
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
        """Rows (B,) that can still be asked."""
        return ~self.closest.done & (self.used + self.votes <= self.queries)

    def __call__(self, z: Tensor, where: Tensor | None = None) -> Tensor:
        """Ask about the rows `where` (B,) of `z` (B, ...) in [0, 1]; the others answer false and pay nothing."""
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
        """Streams for a stochastic model, one for each of the `rows` and each pass."""
        if not self.stochastic:
            return nullcontext()
        return noise_for(self.model, Noise(self.noise.key[rows] ^ Noise.keyed(0, self.used[rows]).key))


def check_budget(queries: int, votes: int) -> None:
    """Raise ValueError for budgets that buy no question besides the look at the image."""
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
    """Look for a point that fools, among `tries` random images; returns which rows have one (B,).

    The points themselves are then `ask.closest.point`. The first half of the images of a varied start, and all of a
    uniform one, are uniform noise, which most networks see as one and the same class; the other half are `squares`.
    """
    x = ask.closest.x
    for i in range(tries):
        plain = start == "uniform" or 2 * i < tries
        ask(noise.uniform(x) if plain else squares(x, noise, 2 ** (i % 4)), ~ask.closest.found)
    return ask.closest.found & ~ask.closest.done


def between(norm: Literal["l2", "linf"], x: Tensor, z: Tensor, share: Tensor) -> Tensor:
    """The point nearest to `z` within `share` (B,) of its distance to `x`: on the line (l2), or clipped (linf)."""
    if norm == "l2":
        return torch.lerp(x, z, batch_view(share, x))
    radius = batch_view(share * NORMS["linf"].distance(z - x), x)
    return x + (z - x).clamp(-radius, radius)


def bisect(ask: Decisions, norm: Literal["l2", "linf"], z: Tensor, where: Tensor, halvings: int) -> Tensor:
    """Towards x from the fooling points `z` until the boundary: fooling points, by `halvings` questions."""
    x, low, high = ask.closest.x, z.new_zeros(len(z)), z.new_ones(len(z))
    for _ in range(halvings):
        middle = (low + high) / 2
        fooled = ask(between(norm, x, z, middle), where)
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
    return between(norm, x, z, high)
