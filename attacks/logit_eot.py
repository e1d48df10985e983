"""LogitEOT: attack on the mean logits of several draws of a stochastic model, not on the mean gradient."""

from dataclasses import dataclass

from torch import Tensor, nn

from adversarial_lightning.attacks.combinators import Combination
from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.checks import at_least
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.errors import UserError


class MeanLogits(nn.Module):
    """Mean of the logits of `eot_samples` passes through a stochastic `model`."""

    def __init__(self, model: nn.Module, eot_samples: int) -> None:
        super().__init__()
        self.model, self.eot_samples = model, eot_samples

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        for _ in range(self.eot_samples - 1):
            logits = logits + self.model(x)
        return logits / self.eot_samples


@dataclass(frozen=True)
class LogitEOT(Combination):
    """Attack on the mean logits of `eot_samples` draws, instead of the mean of their gradients.

    The gradient of a loss of mean logits is not the gradient of the expected loss (EOT, Athalye et al. 2018b), which an
    attack with `eot_samples` computes. LogitEOT fits defenses that average logits themselves, and gives attacks without
    gradients a score with less variance. All passes of a step are in memory at once.

    Args:
        attack: the attack to run, a budget attack.
        eot_samples: passes whose logits are averaged.
    """

    attack: Attack
    eot_samples: int = 20

    def __post_init__(self) -> None:
        at_least(1, eot_samples=self.eot_samples)
        if self.attack.kind != "budget":
            raise UserError(f"attack must be a budget attack, {type(self.attack).__name__} is not")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return self.attack.images(MeanLogits(model, self.eot_samples), x, y, noise)
