"""Settings of training against an adversary critic: attack, critic and pre-training (Matyasko 2020, chapter 4)."""

from dataclasses import dataclass
from typing import Literal

from adversarial_lightning.attacks.core.checks import check_arguments
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.critic_losses import GanLoss
from adversarial_lightning.lightning_modules.differentiable_attack import Choice


def at_least(minimum: int, **settings: float) -> None:
    """Raise ValueError where one of these settings is below `minimum`, or no number."""
    for name, value in settings.items():
        if not value >= minimum:
            raise UserError(f"{name} must be at least {minimum}, not {value}")


@dataclass(frozen=True)
class AttackSettings:
    """Settings of the high-confidence attack that training differentiates through.

    Args:
        steps: number of steps.
        overshoot: factor on the final perturbation, less 1.
        confidence: probability of the target at which the attack stops: running_mean of the classifier's confidence in
            images predicted as the target; same as in the clean image; or a number in (1/K, 1).
        momentum: weight of the previous running mean, in [0, 1).
        target: class with the closest boundary; uniform among the other classes; or probable, drawn from their
            probabilities.
        unroll: differentiate through the earlier iterates too, at the price of a graph `steps` times as deep.
        clamp: clamp x' to [0, 1] in training, straight through; without it the critic may recognise x' by its range.
    """

    steps: int = 5
    overshoot: float = 0.05
    confidence: float | Literal["running_mean", "same"] = "running_mean"
    momentum: float = 0.5
    target: Choice = "closest"
    unroll: bool = False
    clamp: bool = False

    def __post_init__(self) -> None:
        check_arguments(AttackSettings, confidence=self.confidence, target=self.target)
        at_least(1, steps=self.steps)
        at_least(0, overshoot=self.overshoot)
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum must lie in [0, 1), not {self.momentum}")


@dataclass(frozen=True)
class CriticSettings:
    """Settings of the critic's training.

    Args:
        steps: updates of the critic for each update of the classifier.
        gan_loss: loss of critic and classifier.
        gradient_penalty_weight: weight of the penalty on the critic's gradient, at real and at attacked images.
        gradient_norm: length that the penalty asks of this gradient; 0 centres the penalty at zero.
    """

    steps: int = 1
    gan_loss: GanLoss = "non_saturating"
    gradient_penalty_weight: float = 10.0
    gradient_norm: float = 1.0

    def __post_init__(self) -> None:
        check_arguments(CriticSettings, gan_loss=self.gan_loss)
        at_least(1, steps=self.steps)
        at_least(0, gradient_penalty_weight=self.gradient_penalty_weight, gradient_norm=self.gradient_norm)


@dataclass(frozen=True)
class Pretraining:
    """First epochs of the classifier, with cross-entropy and without the critic.

    Args:
        epochs: number of these epochs.
        decay: c of c/2 ||W||^2 over all weight matrices but the last; 5e-6 in the public code, none in the text.
    """

    epochs: int = 1
    decay: float = 0.0

    def __post_init__(self) -> None:
        at_least(0, epochs=self.epochs, decay=self.decay)
