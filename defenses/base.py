"""Purifiers (images -> images) in front of a classifier, and what they demand of attacks (BPDA, EOT)."""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.checkpoints.files import digest_weights
from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.eval_mode import stochastic


class Purifier(nn.Module):
    """Abstract base: images (B, C, H, W) in [0, 1] -> images of the same shape in [0, 1].

    A purifier declares what an honest attacker must do: `differentiable` false -> the gradient goes through
    `surrogate` instead (BPDA, Athalye et al. 2018a); `stochastic` true -> EOT. A stochastic purifier takes its random
    numbers from `self.noise`, which the evaluation or an attack sets for each batch (`attacks.noise_for`): the
    attacker's draws and the defender's are then disjoint, and both are properties of the sample.
    """

    differentiable: bool = True
    stochastic: bool = False
    noise: Noise | None = None
    trained_for: str | None = None  # digest of the weights of the only classifier that it may defend

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Purified images (B, C, H, W)."""

    def surrogate(self, x: Tensor) -> Tensor:
        """Differentiable replacement in the backward pass of a purifier without gradients; default: identity."""
        return x

    def states(self, x: Tensor) -> Iterator[Tensor]:
        """Intermediate images for pictures: the given ones first, the purified ones last."""
        yield x
        yield self(x)

    def own_noise(self, x: Tensor) -> Noise:
        """Noise for this batch; from torch's global generator where none is set."""
        return Noise.from_global(x) if self.noise is None else self.noise


class Purified(nn.Module):
    """Classifier with a purifier in front of it: images in [0, 1] -> logits.

    Raises ValueError for a purifier that was trained for another classifier.

    Args:
        classifier: images -> logits.
        purifier: images -> images, applied first.
    """

    def __init__(self, classifier: nn.Module, purifier: Purifier) -> None:
        super().__init__()
        check_trained_for(type(purifier).__name__, purifier.trained_for, classifier)
        self.classifier, self.purifier = classifier, purifier

    def forward(self, x: Tensor) -> Tensor:
        if self.purifier.differentiable:
            z = self.purifier(x)
        else:
            with torch.no_grad():
                p = self.purifier(x)
            s = self.purifier.surrogate(x)
            z = p + (s - s.detach())  # BPDA; this bracketing is exact forwards, bit for bit
        logits: Tensor = self.classifier(z)
        return logits


def check_trained_for(name: str, trained_for: str | None, classifier: nn.Module) -> None:
    """Raise ValueError where the defense `name` was trained for a classifier with other weights (a digest)."""
    innermost = [classifier, *(m.classifier for m in classifier.modules() if isinstance(m, Purified))][-1]
    if trained_for is not None and trained_for != (found := digest_weights(innermost)):
        raise UserError(
            f"the denoiser of {name} was trained for another classifier, whose weights have the digest "
            f"{trained_for[:12]}…, not {found[:12]}…: train one for this classifier"
        )


def required_adaptations(model: nn.Module) -> dict[str, bool]:
    """Adaptations that an honest attack on `model` must make: ``{"bpda": ..., "eot": ...}``."""
    purifiers = [m for m in model.modules() if isinstance(m, Purifier)]
    return {
        "bpda": any(not p.differentiable for p in purifiers),
        "eot": stochastic(model),  # also in the classifier itself
    }
