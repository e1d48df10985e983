"""Transfer attacks: adversarial examples made on another network (Papernot et al. 2016c)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from jsonargparse import ArgumentParser
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Knowledge
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.errors import UserError


class Surrogate(ABC):
    """Abstract network of the attacker, described by plain arguments and loaded at its first use.

    Leaves are frozen dataclasses, such as `CheckpointSurrogate`.
    """

    @abstractmethod
    def network(self) -> nn.Module:
        """Network from images in [0, 1] to logits (for `BPDA`: to images); every call returns the same object."""


@lru_cache(maxsize=4)
def _load(path: str, defenses: str | None, changed: tuple[int, ...]) -> nn.Module:
    """Network of a checkpoint, cached until a file changes; `changed` are the files' modification times."""
    network = load_network(path)[0]
    if defenses is not None:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--defenses", type=list[Callable[[nn.Module], nn.Module]], sub_configs=True)
        for wrap in parser.instantiate(parser.parse_args(["--defenses", defenses])).defenses:
            network = wrap(network)
    return network


@dataclass(frozen=True)
class CheckpointSurrogate(Surrogate):
    """Network of a training run, built from the catalogue of networks and loaded weights-only.

    The bytes of the files are part of the identity of the evaluation. Defenses must be deterministic, such as filters
    with which an attacker replaces a purifier that is slow or masks gradients.

    Args:
        path: the .ckpt file.
        defenses: a YAML list as for --defenses of evaluate.py, put in front of the network.
    """

    path: str
    defenses: str | None = None

    def __post_init__(self) -> None:
        if not Path(self.path).is_file():
            raise UserError(f"path of a surrogate must name a checkpoint, there is no file {self.path!r}")
        if self.defenses is not None and not Path(self.defenses).is_file():
            raise UserError(f"defenses of a surrogate must name a YAML file, there is no file {self.defenses!r}")

    def network(self) -> nn.Module:
        changed = tuple(Path(file).stat().st_mtime_ns for file in (self.path, self.defenses) if file is not None)
        return _load(self.path, self.defenses, changed)


@dataclass(frozen=True)
class Transfer(Attack):
    """Result of `attack` on the attacker's own network; the model itself is never queried.

    For several surrogates, combine several transfers in a `WorstOf`.

    Args:
        attack: a budget attack; the points of minimum-norm attacks rarely transfer.
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
            raise UserError(f"attack must be a budget attack to transfer, {type(self.attack).__name__} is none")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        network = self.surrogate.network().to(x)
        classes = getattr(network, "num_classes", None)
        if classes is not None and len(y) and (int(y.max()) if y.ndim == 1 else y.shape[1] - 1) >= classes:
            raise UserError(f"{self.surrogate} has {classes} outputs, too few for these labels")
        return self.attack(network, x, y, noise.fork("transfer"))
