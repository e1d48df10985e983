"""Eval mode with frozen parameters, and what a model says of itself."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
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


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer of `model`; the CPU where it has none."""
    return next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def are_probabilities(outputs: Tensor) -> Tensor:
    """Whether every row of `outputs` (B, K) is a distribution, a softmax where logits are due: a boolean ().

    Gradients through a softmax vanish where the model is sure, which makes attacks look weak. Log-probabilities are
    logits. Of no rows the answer is no.
    """
    if not len(outputs):
        return torch.zeros((), dtype=torch.bool, device=outputs.device)
    return (outputs >= 0).all() & ((outputs.sum(-1) - 1).abs() < 1e-3).all()


def returns_probabilities(model: nn.Module, x: Tensor) -> bool:
    """Whether `model` in eval mode answers images `x` (B, C, H, W) with probabilities; see `are_probabilities`."""
    with frozen_eval(model), torch.no_grad():
        return bool(are_probabilities(model(x.clone())))
