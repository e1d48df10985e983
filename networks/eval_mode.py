"""Eval mode with frozen parameters, and what a model says of itself."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def guard(model: nn.Module) -> Iterator[None]:
    """Gradients on, `model` in eval mode with frozen parameters; everything is put back, also after an exception."""
    modes = [(m, m.training) for m in model.modules()]
    trainable = [p for p in model.parameters() if p.requires_grad]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            model.eval()
            for p in trainable:
                p.requires_grad_(False)
            yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
        for m, training in modes:  # each module its own mode: some may have been frozen on purpose
            m.training = training


def stochastic(model: nn.Module) -> bool:
    """Whether `model` or a part of it says that it draws random numbers (its attribute ``stochastic``)."""
    return any(getattr(m, "stochastic", False) for m in model.modules())
