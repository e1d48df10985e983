"""Joint attack on a classifier and its detector: several attacks, restarts and targets (Carlini and Wagner 2017b)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.combinators import Combination
from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.best_adversarial import is_adversarial
from adversarial_lightning.attacks.core.checks import at_least, labels_only
from adversarial_lightning.attacks.core.noise import Noise, noise_for
from adversarial_lightning.attacks.core.norms import or_image
from adversarial_lightning.attacks.core.threshold import evades
from adversarial_lightning.attacks.detector_pgd import detector_and_threshold
from adversarial_lightning.errors import UserError


@dataclass(frozen=True)
class Joint(Combination):
    """Misclassified image with the lowest detector score, over several attacks with restarts.

    A row is finished once its image is misclassified with a score below the threshold. Otherwise the misclassified
    image with the lowest score is kept, or the last image if none is misclassified. A targeted attack runs once against
    each of the `n_targets` most likely wrong classes: a score that depends on the predicted class is smooth as long as
    the prediction does not change. The detector is the attribute ``detector`` of the model, with its threshold
    ``theta``, as for `DetectorAwarePGD`.

    Args:
        attacks: budget attacks of one ball, with and without knowledge of the detector.
        restarts: number of runs of each attack.
        n_targets: targets of a targeted attack; all wrong classes where the model has fewer.
        theta: threshold of the score; none: the attribute ``theta`` of the detector.
    """

    aims_itself: ClassVar[bool] = True

    attacks: list[Attack]
    restarts: int = 10
    n_targets: int = 9
    theta: float | None = None

    def __post_init__(self) -> None:
        at_least(1, restarts=self.restarts, n_targets=self.n_targets)
        if self.theta is not None and self.theta != self.theta:
            raise UserError("theta must be a number, not nan")
        if not self.attacks or any(attack.kind != "budget" for attack in self.attacks):
            raise UserError("attacks must name at least one attack, and budget attacks only")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        labels_only(y)
        detector, theta = detector_and_threshold(model, self.theta)
        with torch.no_grad():
            logits = model(x)
        others = min(self.n_targets, logits.shape[1] - 1)
        aims = logits.scatter(1, y[:, None], -torch.inf).topk(others, 1).indices
        best, excess = x.clone(), torch.full_like(logits[:, 0], torch.inf)
        rows = torch.arange(len(x), device=x.device)
        for run, (attack, aim) in enumerate(self.runs(others)):
            own = noise.fork(run)[rows]
            z = or_image(attack(model, x[rows], y[rows] if aim is None else aims[rows, aim], own), x[rows])
            with torch.no_grad(), noise_for(model, own.fork("check")):
                wrong = is_adversarial(model(z), y[rows], targeted=False)
                score: Tensor = detector.score(z)
            over = (score - theta).clamp_min(torch.finfo(score.dtype).tiny).nan_to_num(nan=torch.inf)
            over = torch.where(evades(score, theta), 0.0, over).masked_fill(~wrong, torch.inf)
            better = (over < excess[rows]) | (excess[rows].isinf() & over.isinf())
            chosen = rows[better]
            best = best.index_put((chosen,), z[better])
            excess[chosen] = over[better].to(excess.dtype)
            rows = rows[excess[rows] > 0]
            if not len(rows):
                break
        return best

    def runs(self, others: int) -> list[tuple[Attack, int | None]]:
        """List of runs (attack, target rank): every attack with every target, repeated `restarts` times."""
        once = [(a, aim) for a in self.attacks for aim in (range(others) if a.targeted else [None])]
        return once * self.restarts
