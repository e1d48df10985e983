"""Base class of attacks: frozen parameters with the call ``x_adv = attack(model, x, y)``."""

import warnings
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.checks import check_images, check_model_and_labels, checked_logits
from adversarial_lightning.attacks.core.half_precision import HALF, SeenInFloat32
from adversarial_lightning.attacks.core.noise import Noise, noise_for
from adversarial_lightning.attacks.core.norms import batch_view, into_ball, no_numbers
from adversarial_lightning.networks.eval_mode import frozen_eval

Kind = Literal["budget", "minimum-norm", "corruption"]
Knowledge = Literal["white-box", "scores", "decisions", "surrogate", "none"]


class Attack(ABC):
    """Base of all attacks; leaves are frozen dataclasses that implement `perturb`, the paper's loop.

    ``attack(model, x, y, noise)``: `model` maps images (B, C, H, W) in [0, 1] to logits (B, K). `y` holds labels (B,)
    int64 or target probabilities (B, K); if the attack is `targeted` it holds the classes to reach, never the labels.
    `noise` is keyed per sample, or None for torch's global generator. Returns images like `x`: same shape, dtype and
    device, in [0, 1]; none for none. Half types are computed in float32 (`SeenInFloat32`).

    `kind`: a *budget* attack returns a point of the ball, a *minimum-norm* attack the nearest adversarial point it
    found, or x itself; a *corruption* has no ball. `knowledge`: the part of the model that the attack uses, which is
    all of it (white-box), logits (scores), predictions (decisions), only another network (surrogate), or nothing.
    """

    kind: ClassVar[Kind] = "budget"
    knowledge: ClassVar[Knowledge] = "white-box"
    targeted: bool = False

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise | None = None) -> Tensor:
        check_images(x)
        check_model_and_labels(model, x, y)
        noise = Noise.from_global(x) if noise is None else noise
        with frozen_eval(model), checked_logits(model, y), noise_for(model, noise.fork("defense")):
            # Clones made here are no inference tensors, so autograd can save them; this holds for labels too.
            x, y = x.detach().clone(), y.detach().clone()
            if not len(x):
                return x
            if x.dtype not in HALF:
                return self.images(model, x, y, noise)
            z = self.images(SeenInFloat32(model, x.dtype), x.float(), y.float() if y.ndim > 1 else y, noise)
            return self._inside(z.to(x.dtype), x)

    def images(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Images of `perturb`, in the box and in the ball; combinations call it for their parts, in `frozen_eval`.

        Where they are no numbers the attack runs once more with fresh noise; what is then still NaN is left to the
        caller, who must not take it for a success.
        """
        z = self._inside(self.perturb(model, x, y, noise).detach().clamp(0, 1), x)
        broken = no_numbers(z)
        if bool(broken.any()):
            again = self._inside(self.perturb(model, x, y, noise.fork("again")).detach().clamp(0, 1), x)
            z = torch.where(batch_view(broken, x), again, z)
            if count := int(no_numbers(z).sum()):
                warnings.warn(f"{self} made {count} images of {len(x)} that are no numbers, twice", stacklevel=3)
        return z

    def _inside(self, z: Tensor, x: Tensor) -> Tensor:
        norm, eps = threat(self)
        return z if norm is None or eps is None else into_ball(z, x, norm, eps, self.kind)

    @abstractmethod
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Compute the adversarial images; called by `images` in `frozen_eval` with copies of `x` and `y`."""


def threat(attack: Attack) -> tuple[str | None, float | None]:
    """Norm and radius of an attack; None if it has none or if the parts of a combination differ."""
    parts = {threat(part) for part in members(attack)}
    if parts:
        norm, eps = parts.pop() if len(parts) == 1 else (None, None)
        return norm, getattr(attack, "eps", eps)
    return getattr(attack, "norm", None), getattr(attack, "eps", None)


def members(attack: Attack) -> list[Attack]:
    """Direct parts of `attack`; empty if it is no combination."""
    parts: list[Attack] = []
    for value in vars(attack).values():
        parts += [a for a in (value if isinstance(value, list | tuple) else [value]) if isinstance(a, Attack)]
    return parts
