"""Transfer: adversarial examples made on another network (Papernot, McDaniel and Goodfellow 2016)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from adversarial_lightning.attacks.base import Attack, Knowledge
from adversarial_lightning.attacks.noise import Noise
from torch import Tensor, nn


class Surrogate(ABC):
    """A network that the attacker owns: a few plain arguments that say which, loaded when it is first used.

    An attack neither owns a model nor knows how one is loaded; leaves are frozen dataclasses and live with the
    loaders, such as `evaluation.Checkpoint`.
    """

    @abstractmethod
    def network(self) -> nn.Module:
        """The network: images in [0, 1] -> logits, or images for `BPDA`. The same object when asked again."""


@dataclass(frozen=True)
class Transfer(Attack):
    """What `attack` makes of a network that the attacker owns; the model itself is never asked.

    For several surrogates put several transfers into a `WorstOf`.

    Args:
        attack: a budget attack; the nearest points of minimum-norm attacks hardly transfer.
        surrogate: the attacker's network.
    """

    knowledge: ClassVar[Knowledge] = "surrogate"

    attack: Attack
    surrogate: Surrogate

    @property
    def targeted(self) -> bool:  # type: ignore[override]
        return self.attack.targeted

    def __post_init__(self) -> None:
        if self.attack.kind != "budget":
            raise ValueError(f"attack must be a budget attack to transfer, {type(self.attack).__name__} is none")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        network = self.surrogate.network().to(x)
        classes = getattr(network, "num_classes", None)
        if classes is not None and len(y) and (int(y.max()) if y.ndim == 1 else y.shape[1] - 1) >= classes:
            raise ValueError(f"{self.surrogate} has {classes} outputs, too few for these labels")
        return self.attack(network, x, y, noise.fork("transfer"))
