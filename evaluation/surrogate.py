"""Networks that attackers own, out of checkpoints: what `attacks.Transfer` makes its images on."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import nn

from attacks.transfer import Surrogate
from evaluation.checkpoint import load_network


@lru_cache(maxsize=4)
def _load(path: str, changed: int) -> nn.Module:
    """Kept between batches until the file changes; `changed` is the time when it did."""
    return load_network(path)[0]


@dataclass(frozen=True)
class Checkpoint(Surrogate):
    """The network of a training run, loaded weights-only and built from the catalogue of networks.

    The file's bytes are part of the identity of the evaluation.

    Args:
        path: the .ckpt file.
    """

    path: str

    def __post_init__(self) -> None:
        if not Path(self.path).is_file():
            raise ValueError(f"path of a surrogate must name a checkpoint, there is no file {self.path!r}")

    def network(self) -> nn.Module:
        return _load(self.path, Path(self.path).stat().st_mtime_ns)
