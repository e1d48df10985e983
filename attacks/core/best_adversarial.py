"""Nearest adversarial point so far of each row, for minimum-norm attacks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.checks import labels_only
from adversarial_lightning.attacks.core.norms import batch_view
from adversarial_lightning.networks.eval_mode import stochastic

VOTES = 10  # draws of a stochastic model whose majority decides


def is_adversarial(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """Rows (B,) that are not predicted as `y` or, if `targeted`, are; false for logits that are not finite."""
    labels_only(y)
    predicted = logits.argmax(1)
    return (predicted == y if targeted else predicted != y) & logits.isfinite().all(1)


def is_adversarial_by_vote(model: nn.Module, x: Tensor, y: Tensor, targeted: bool, votes: int | None = None) -> Tensor:
    """Rows (B,) that are adversarial in more than half of `votes` passes.

    `votes` None means 1, or `VOTES` for a stochastic model.
    """
    votes = votes or (VOTES if stochastic(model) else 1)
    with torch.no_grad():
        fooled = sum(is_adversarial(model(x), y, targeted).int() for _ in range(votes))
    return 2 * torch.as_tensor(fooled) > votes


class BestAdversarial:
    """Adversarial point nearest to `x` for each row, among the points given to `update`; `x` itself if there is none.

    `distance` measures perturbations, (B, ...) -> (B,). `length` (B,) is the distance found: 0 for rows that are
    adversarial without an attack, which stay unchanged, and infinite where nothing was found. For a stochastic model a
    row counts as adversarial without an attack only by the majority of `votes` passes.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        distance: Callable[[Tensor], Tensor],
        targeted: bool,
        votes: int | None = None,
    ) -> None:
        self.x, self.y, self.distance, self.targeted = x, y, distance, targeted
        self.point = x.clone()
        self.done = is_adversarial_by_vote(model, x, y, targeted, votes)  # rows that need no attack
        self.length = torch.where(self.done, 0.0, torch.inf).to(x.dtype)

    @property
    def found(self) -> Tensor:
        """Rows (B,) for which an adversarial point is known."""
        return self.length.isfinite()

    def update(self, z: Tensor, logits: Tensor, where: Tensor | None = None) -> Tensor:
        """Keep the rows of `z` (like x, in [0, 1]) that are adversarial and nearer; returns the adversarial rows (B,).

        `logits` are those of `z`; `where` (B,) restricts the rows that may be kept.
        """
        fooled = is_adversarial(logits.detach(), self.y, self.targeted)
        length = self.distance(z.detach() - self.x).to(self.length.dtype)
        better = fooled & (length < self.length)
        if where is not None:
            better &= where
        self.point = torch.where(batch_view(better, z), z.detach(), self.point)
        self.length = torch.where(better, length, self.length)
        return fooled
