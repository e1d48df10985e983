"""Targeted attack against each of the most likely wrong classes in turn."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.combinators import Combination
from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.best_adversarial import is_adversarial
from adversarial_lightning.attacks.core.checks import at_least, labels_only
from adversarial_lightning.attacks.core.gradient import margin
from adversarial_lightning.attacks.core.introspection import threat
from adversarial_lightning.attacks.core.noise import Noise, noise_for
from adversarial_lightning.attacks.core.norms import distance, or_image
from adversarial_lightning.errors import UserError


@dataclass(frozen=True)
class Targeted(Combination):
    """Best result of `attack` against the `n_targets` most likely wrong classes of each image; `y` holds labels.

    For a budget attack the best result is the first success in the order of likelihood, else the largest margin; a row
    skips the targets after its first success. For a minimum-norm attack it is the nearest success. As many targets run
    together as fit into the size of the batch, which changes no result.

    Args:
        attack: an attack with targeted: true.
        n_targets: number of targets; all wrong classes where the model has fewer.
    """

    aims_itself: ClassVar[bool] = True

    attack: Attack
    n_targets: int = 9

    def __post_init__(self) -> None:
        at_least(1, n_targets=self.n_targets)
        if not self.attack.targeted:
            raise UserError(f"attack must have targeted: true, {type(self.attack).__name__} has not")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        labels_only(y)
        with torch.no_grad():
            logits = model(x)
        others = min(self.n_targets, logits.shape[1] - 1)
        targets = logits.scatter(1, y[:, None], -torch.inf).topk(others, 1).indices
        nearest, norm = self.kind == "minimum-norm", str(threat(self.attack)[0])
        best = x.clone()
        # Larger is better. A success of a budget attack scores infinity, so the first success is kept.
        score = torch.full_like(logits[:, 0], -torch.inf)
        rows = torch.arange(len(x), device=x.device)
        if nearest:
            rows = rows[~is_adversarial(logits, y, targeted=False)]

        first = 0
        while first < others and len(rows):
            ranks = range(first, min(others, first + max(1, len(x) // len(rows))))
            first = ranks.stop
            many = rows.repeat(len(ranks))
            streams = Noise(torch.cat([noise.fork(rank)[rows].key for rank in ranks]))
            aims = torch.cat([targets[rows, rank] for rank in ranks])
            points = or_image(self.attack(model, x[many], aims, streams), x[many])
            with torch.no_grad(), noise_for(model, streams.fork("check")):
                seen = model(points)
            fooled = is_adversarial(seen, y[many], targeted=False)
            if nearest:
                values = torch.where(fooled, -distance(norm, points - x[many]).to(seen.dtype), -torch.inf)
            else:
                values = torch.where(fooled, torch.inf, margin(seen, y[many]).nan_to_num(nan=0.0))
            for i in range(len(ranks)):
                part = slice(i * len(rows), (i + 1) * len(rows))
                better = values[part] > score[rows]
                chosen = rows[better]
                best[chosen], score[chosen] = points[part][better], values[part][better].to(score.dtype)
            rows = rows[score[rows] < torch.inf]
        return best
