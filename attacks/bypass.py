"""Round a purifier: other gradients for it (BPDA, Athalye et al. 2018), or none of it (the gray box)."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from attacks.base import Attack, Knowledge
from attacks.checks import at_least, check_choices
from attacks.compose import Combination
from attacks.eot import part, straight_through
from attacks.noise import Noise


@dataclass(frozen=True)
class BPDA(Combination):
    """`attack` with the purifiers as they are forwards, and something simpler in their place backwards.

    Raises ValueError for a model without a purifier, and for a purifier without what is asked for.

    Args:
        attack: any attack that takes gradients; with `samples` it is BPDA + EOT.
        backward: identity for the whole purifier; chain: the first `steps` steps of its chain without noise and
            clipping (its method ``quiet``); denoiser: one pass of its attribute ``denoiser``.
        steps: length of the chain that is differentiated; none: as many as the purifier takes.
    """

    attack: Attack
    backward: Literal["identity", "chain", "denoiser"] = "identity"
    steps: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(0, steps=self.steps)
        if self.steps is not None and self.backward != "chain":
            raise ValueError(f"steps belong to backward: chain, not to {self.backward}")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        part(model, "purifier")  # refuses a model without one
        with ExitStack() as stack:
            for m in model.modules():
                if isinstance(purifier := getattr(m, "purifier", None), nn.Module):
                    stack.enter_context(straight_through(purifier, self.surrogate(purifier)))
            return self.attack.perturb(model, x, y, noise)

    def surrogate(self, purifier: Any) -> Callable[[Tensor], Tensor] | None:
        """What `purifier` is backwards; none for the identity."""
        if self.backward == "identity":
            return None
        found: Any = getattr(purifier, "quiet" if self.backward == "chain" else "denoiser", None)
        if found is None:
            raise ValueError(f"{type(purifier).__name__} has no {self.backward}: use backward: identity")
        return partial(found, steps=self.steps) if self.backward == "chain" else found


@dataclass(frozen=True)
class GrayBox(Attack):
    """`attack` on the bare classifier: the attacker does not know that a purifier stands in front of it.

    Raises ValueError for a model without a purifier.

    Args:
        attack: a budget attack.
    """

    knowledge: ClassVar[Knowledge] = "surrogate"

    attack: Attack

    @property
    def targeted(self) -> bool:  # type: ignore[override]
        return self.attack.targeted

    def __post_init__(self) -> None:
        if self.attack.kind != "budget":
            raise ValueError(f"attack must be a budget attack to transfer, {type(self.attack).__name__} is none")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        part(model, "purifier")
        innermost: Any = [m for m in model.modules() if isinstance(getattr(m, "purifier", None), nn.Module)][-1]
        return self.attack(innermost.classifier, x, y, noise)
