"""AutoAttack (Croce and Hein 2020a; l1: Croce and Hein 2021): four attacks without parameters to tune."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.apgd import APGD
from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.best_adversarial import is_adversarial
from adversarial_lightning.attacks.core.checks import at_least, check_choices, labels_only
from adversarial_lightning.attacks.core.gradient import margin
from adversarial_lightning.attacks.core.noise import Noise, noise_for
from adversarial_lightning.attacks.core.norms import NormName, into_ball, or_image
from adversarial_lightning.attacks.core.radius import Radius
from adversarial_lightning.attacks.fab import FAB
from adversarial_lightning.attacks.square import Square
from adversarial_lightning.attacks.targeted import Targeted
from adversarial_lightning.errors import UserError


@dataclass(frozen=True)
class AutoAttack(Attack):
    """Ensemble in which every attack sees only the images that no earlier attack has broken.

    *standard*: APGD on the cross-entropy (100 steps; l1: 5 runs over three radii), APGD on the targeted DLR (100 steps
    against each of 9 targets; l1: 5), FAB (100 steps against each of 9 targets), Square (5,000 queries).
    *plus*: five runs each of APGD on cross-entropy and DLR and of untargeted FAB, Square, and the targeted two.
    *rand*, for stochastic models: APGD on cross-entropy and on DLR, with gradients averaged over 20 draws.

    The settings are those of the reference implementation and cannot be changed: with others it would not be
    AutoAttack. A model with fewer classes has fewer targets. Where a model has too few classes for a DLR loss (4 if
    targeted, 3 if untargeted), the reference implementation does not work, and this one uses the margin. Images that
    are misclassified without an attack are returned unchanged; for robust images the result is the point with the
    largest margin.

    Args:
        version: standard, plus (linf and l2) or rand.
        norm: norm of the ball.
        eps: radius, in pixels of [0, 1].
    """

    version: Literal["standard", "plus", "rand"] = "standard"
    norm: NormName = "linf"
    eps: Radius = 0.3

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(0, eps=self.eps)
        if self.version == "plus" and self.norm == "l1":
            raise UserError("version plus is defined for norm linf and l2, not for l1: use version: standard")

    @property
    def eot_samples(self) -> int:
        """Gradients averaged in each step (EOT)."""
        return 20 if self.version == "rand" else 1

    def ensemble(self, classes: int) -> list[Attack]:
        """Attacks in their order, for a model with `classes` classes."""
        norm, eps, l1 = self.norm, self.eps, self.norm == "l1"
        sparse = l1 and self.version == "standard"
        ce = APGD(norm, eps, loss="ce", multi_eps=sparse, eot_samples=self.eot_samples)
        dlr = APGD(norm, eps, loss="dlr" if classes > 2 else "margin", eot_samples=self.eot_samples)
        aimed = APGD(norm, eps, loss="dlr" if classes > 3 else "margin", targeted=True, multi_eps=sparse)
        apgd_t = Targeted(aimed, n_targets=5 if l1 else 9)
        fab_t = Targeted(FAB(norm, search_steps=0, targeted=True), n_targets=9)
        square = Square(norm, eps, queries=5000, rescale_schedule=False)
        if self.version == "rand":
            return [ce, dlr]
        if self.version == "plus":
            return [*[ce] * 5, *[dlr] * 5, FAB(norm, restarts=5, search_steps=0), square, apgd_t, fab_t]
        return [*[ce] * (5 if l1 else 1), apgd_t, fab_t, square]

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        labels_only(y)
        with torch.no_grad():
            logits = model(x)
        best, best_margin = x.clone(), torch.full_like(logits[:, 0], -torch.inf)
        rows = (~is_adversarial(logits, y, targeted=False)).nonzero()[:, 0]
        for i, attack in enumerate(self.ensemble(logits.shape[1])):
            if not len(rows):
                break
            streams = noise.fork(i)[rows]
            z = or_image(attack(model, x[rows], y[rows], streams), x[rows])
            # The point of a minimum-norm attack counts if it lies in the ball.
            z = into_ball(z, x[rows], self.norm, self.eps, attack.kind)
            with torch.no_grad(), noise_for(model, streams.fork("check")):
                logits = model(z)
            fooled = is_adversarial(logits, y[rows], targeted=False)
            value = margin(logits, y[rows]).nan_to_num(nan=0.0)
            better = fooled | (value > best_margin[rows])
            best[rows[better]], best_margin[rows[better]] = z[better], value[better]
            rows = rows[~fooled]
        return best
