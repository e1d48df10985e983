"""Networks that attackers own, out of checkpoints: what `attacks.Transfer` makes its images on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from adversarial_lightning.attacks.transfer import Surrogate
from adversarial_lightning.evaluation.checkpoint import load_network
from jsonargparse import ArgumentParser
from torch import nn


@lru_cache(maxsize=4)
def _load(path: str, defenses: str | None, changed: tuple[int, ...]) -> nn.Module:
    """Kept between batches until a file changes; `changed` are the times when they did."""
    network = load_network(path)[0]
    if defenses is not None:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--defenses", type=list[Callable[[nn.Module], nn.Module]], sub_configs=True)
        for wrap in parser.instantiate(parser.parse_args(["--defenses", defenses])).defenses:
            network = wrap(network)
    return network


@dataclass(frozen=True)
class Checkpoint(Surrogate):
    """The network of a training run, loaded weights-only and built from the catalogue of networks.

    The bytes of the files are part of the identity of the evaluation. Defenses may be deterministic ones, such as
    filters: what an attacker puts in the place of a purifier that is slow or hides its gradient.

    Args:
        path: the .ckpt file.
        defenses: a YAML list as for --defenses of evaluate.py, put in front of the network; none: nothing.
    """

    path: str
    defenses: str | None = None

    def __post_init__(self) -> None:
        if not Path(self.path).is_file():
            raise ValueError(f"path of a surrogate must name a checkpoint, there is no file {self.path!r}")
        if self.defenses is not None and not Path(self.defenses).is_file():
            raise ValueError(f"defenses of a surrogate must name a YAML file, there is no file {self.defenses!r}")

    def network(self) -> nn.Module:
        changed = tuple(Path(file).stat().st_mtime_ns for file in (self.path, self.defenses) if file is not None)
        return _load(self.path, self.defenses, changed)
