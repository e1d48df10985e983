"""Base class of attacks: frozen parameters with the call ``x_adv = attack(model, x, y)``."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from adversarial_lightning.attacks.core.checks import check_images, checked_logits
from adversarial_lightning.attacks.core.noise import Noise, noise_for
from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.eval_mode import frozen_eval

Kind = Literal["budget", "minimum-norm", "corruption"]
Knowledge = Literal["white-box", "scores", "decisions", "surrogate", "none"]


class Attack(ABC):
    """Base of all attacks; leaves are frozen dataclasses that implement `perturb`, the paper's loop.

    ``attack(model, x, y, noise)``: `model` maps images (B, C, H, W) in [0, 1] to logits (B, K). `y` holds labels (B,)
    int64 or target probabilities (B, K); if the attack is `targeted` it holds the classes to reach, never the labels.
    `noise` is keyed per sample, or None for torch's global generator. Returns images like `x`: same shape, dtype and
    device, in [0, 1].

    `kind`: a *budget* attack returns a point of the ball, a *minimum-norm* attack the nearest adversarial point it
    found, or x itself; a *corruption* has no ball. `knowledge`: the part of the model that the attack uses, which is
    all of it (white-box), logits (scores), predictions (decisions), only another network (surrogate), or nothing.
    """

    kind: ClassVar[Kind] = "budget"
    knowledge: ClassVar[Knowledge] = "white-box"
    targeted: bool = False

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise | None = None) -> Tensor:
        check_images(x)
        if len(y) != len(x):
            raise UserError(f"{len(x)} images came with {len(y)} labels")
        noise = Noise.from_global(x) if noise is None else noise
        with frozen_eval(model), checked_logits(model, y), noise_for(model, noise.fork("defense")):
            # Clones made here are no inference tensors, so autograd can save them; this holds for labels too.
            x, y = x.detach().clone(), y.detach().clone()
            return self.perturb(model, x, y, noise).detach().clamp(0, 1)

    @abstractmethod
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Compute the adversarial images; called in `frozen_eval` with copies of `x` and `y`."""
