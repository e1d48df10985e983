"""Trained networks of the papers' methods, by name: images (B, C, H, W) in [0, 1] -> logits.

    from adversarial_lightning import zoo
    network = zoo.load("atent_mnist_linf")

The same names work on the command line: ``lightning evaluate --checkpoint zoo:atent_mnist_linf …``.
"""

from typing import Any

from torch import nn

from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.zoo import PREFIX, located, names, read

__all__ = ["about", "load", "names"]


def load(name: str) -> nn.Module:
    """The network of that name, in eval mode. Raises UserError (and lists the known ones) for an unknown name."""
    return load_network(f"{PREFIX}{name}")[0]


def about(name: str) -> dict[str, Any]:
    """Provenance of a network: experiment, commit, seed, data, figures with their n, audit. UserError as `load`."""
    found: dict[str, Any] = read(str(located(f"{PREFIX}{name}")))["about"]
    return found
