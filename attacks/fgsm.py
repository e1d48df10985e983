"""FGSM: one steepest step of the full radius (Goodfellow et al. 2015)."""

from dataclasses import dataclass

from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.gradient import OBJECTIVES, ObjectiveName, input_gradient
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, NormName
from adversarial_lightning.attacks.core.radius import Radius


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length `eps` in the steepest direction of the norm (l2: the fast gradient method, FGM).

    Args:
        norm: norm of the ball.
        eps: radius, in pixels of [0, 1].
        loss: objective that the step increases.
        targeted: decrease the objective for the target `y` instead.
        eot_samples: gradients averaged (EOT), for stochastic models.
    """

    norm: NormName = "linf"
    eps: Radius = 0.3
    loss: ObjectiveName = "ce"
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(0, eps=self.eps)
        at_least(1, eot_samples=self.eot_samples)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        gradient, _ = input_gradient(model, x, y, OBJECTIVES[self.loss], self.eot_samples)
        return x + self.eps * NORMS[self.norm].steepest(-gradient if self.targeted else gradient, x)
