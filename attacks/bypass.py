"""BPDA (Athalye et al. 2018a) and gray-box attacks on purified models."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from adversarial_lightning.attacks.combinators import Combination
from adversarial_lightning.attacks.core.base import Attack, Knowledge
from adversarial_lightning.attacks.core.bpda import find_attribute, purifiers, straight_through
from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.transfer import Surrogate
from adversarial_lightning.errors import UserError


@dataclass(frozen=True)
class BPDA(Combination):
    """`attack` with purifiers unchanged in the forward pass and replaced by a substitute in the backward pass.

    Raises ValueError for a model without a purifier, and for a purifier that lacks the chosen `backward`.

    Args:
        attack: any attack that takes gradients; with `eot_samples` it is BPDA + EOT.
        backward: the substitute. identity: of the whole purifier; mean: the mean of 3 x 3 pixels; chain: the first
            `steps` steps of the purifier's chain without noise and clipping (its method ``quiet``); denoiser: one pass
            of its attribute ``denoiser``; frozen: the network it has fitted to the image, held fixed (its method
            ``frozen``); unrolled: a fit of `steps` steps for each stage, differentiated through all of them (its method
            ``unrolled``); network: the network `network`.
        steps: number of steps that are differentiated, for chain and unrolled; none: as many as the purifier takes.
        network: the attacker's network from images to images, trained to imitate the purifier, or a denoiser.
    """

    attack: Attack
    backward: Literal["identity", "mean", "chain", "denoiser", "frozen", "unrolled", "network"] = "identity"
    steps: int | None = None
    network: Surrogate | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1 if self.backward == "unrolled" else 0, steps=self.steps)
        if self.steps is not None and self.backward not in ("chain", "unrolled"):
            raise UserError(f"steps belong to backward: chain and unrolled, not to {self.backward}")
        if (self.network is not None) != (self.backward == "network"):
            raise UserError(f"backward: network and a network belong together, backward is {self.backward}")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        find_attribute(model, "purifier")  # refuses a model without one
        with ExitStack() as stack:
            for purifier in purifiers(model):
                stack.enter_context(straight_through(purifier, self.surrogate(purifier)))
            return self.attack.images(model, x, y, noise)

    def surrogate(self, purifier: Any) -> Callable[[Tensor], Tensor] | None:
        """Substitute of `purifier` in the backward pass; None for the identity."""
        if self.backward == "identity":
            return None
        if self.backward == "mean":
            return lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        if self.network is not None:
            return partial(_restored, self.network.network())
        found: Any = getattr(purifier, {"chain": "quiet"}.get(self.backward, self.backward), None)
        if found is None:
            raise UserError(f"{type(purifier).__name__} has no {self.backward}: use backward: identity")
        return partial(found, steps=self.steps) if self.backward in ("chain", "unrolled") else found


def _restored(network: nn.Module, x: Tensor) -> Tensor:
    z: Tensor = network.to(x)(x)
    if z.shape != x.shape:
        raise UserError(f"backward: network needs one that makes images of images, this makes {tuple(z.shape)}")
    return z


@dataclass(frozen=True)
class GrayBox(Combination):
    """`attack` on the classifier alone; the attacker does not know of the purifier in front of it.

    Raises ValueError for a model without a purifier.

    Args:
        attack: any attack.
    """

    knowledge: ClassVar[Knowledge] = "surrogate"  # the classifier alone

    attack: Attack

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        find_attribute(model, "purifier")
        innermost: Any = [m for m in model.modules() if isinstance(getattr(m, "purifier", None), nn.Module)][-1]
        return self.attack(innermost.classifier, x, y, noise)
