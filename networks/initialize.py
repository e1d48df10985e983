"""Initial weights of a network, for papers that do not use torch's."""

from typing import Literal

from torch import nn

from adversarial_lightning.errors import UserError

Init = Literal["torch", "glorot", "he"]


def initialize(network: nn.Module, init: Init) -> None:
    """Draw new weights of dense and convolutional layers: glorot is uniform, he normal (fan in); biases are 0."""
    if init not in ("torch", "glorot", "he"):
        raise UserError(f"init is one of torch, glorot, he; not {init!r}")
    for m in network.modules() if init != "torch" else ():
        if isinstance(m, nn.Linear | nn.Conv2d):
            if init == "glorot":
                nn.init.xavier_uniform_(m.weight)
            else:
                nn.init.kaiming_normal_(m.weight)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
