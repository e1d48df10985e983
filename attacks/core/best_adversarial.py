"""What minimum-norm attacks keep: for each row the nearest adversarial point seen so far."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.norms import batch_view
from adversarial_lightning.networks.eval_mode import stochastic

VOTES = 10  # draws by whose majority a stochastic model is said to be wrong


def is_adversarial(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """Whether each row is what the attack wants (B,): not the label `y`, or the target `y`; never where not finite."""
    predicted = logits.argmax(1)
    return (predicted == y if targeted else predicted != y) & logits.isfinite().all(1)


def is_adversarial_by_vote(model: nn.Module, x: Tensor, y: Tensor, targeted: bool, votes: int | None = None) -> Tensor:
    """Whether each row `is_adversarial` the model in more than half of `votes` (none: one, or `VOTES` of a stochastic model)."""
    votes = votes or (VOTES if stochastic(model) else 1)
    with torch.no_grad():
        fooled = sum(is_adversarial(model(x), y, targeted).int() for _ in range(votes))
    return 2 * torch.as_tensor(fooled) > votes


class BestAdversarial:
    """Keeps, row by row, the nearest point to `x` among those offered that fool; `x` itself where none did.

    `distance` measures perturbations, (B, ...) -> (B,). `x` counts as offered: a row that is adversarial without an
    attack is returned unchanged, and `length` (B,) is 0 there; it is infinite where nothing was found. A stochastic
    model is looked at several times (`votes`), and must be fooled by `x` in most of them: a row that is wrong by bad
    luck once is attacked.
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
        """Take `z` (like x, in [0, 1]), whose logits are known, where it fools and is nearer; returns who fools (B,).

        `where` (B,) restricts the rows considered.
        """
        fooled = is_adversarial(logits.detach(), self.y, self.targeted)
        length = self.distance(z.detach() - self.x).to(self.length.dtype)
        better = fooled & (length < self.length)
        if where is not None:
            better &= where
        self.point = torch.where(batch_view(better, z), z.detach(), self.point)
        self.length = torch.where(better, length, self.length)
        return fooled
