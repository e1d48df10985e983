"""Eval mode with frozen parameters, and properties of a model: stochastic, device, probabilities."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_PARTS = ("classifier", "purifier", "denoiser")  # what defenses and detectors call their parts


def _spare(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Forward pre-hook: a copy of the images, which the module may overwrite."""
    return (args[0].clone(), *args[1:]) if args and isinstance(args[0], Tensor) else None


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
    """Context with gradients on and `model` in eval mode with frozen parameters; restores all, also after an error.

    The model, and the parts of a defense or detector, are given copies of their images: some write into their input.
    """
    modes = [(m, m.training) for m in model.modules()]
    trainable = [p for p in model.parameters() if p.requires_grad]
    called = [m for name, m in model.named_modules() if not name or name.rpartition(".")[2] in _PARTS]
    hooks = []
    try:
        for m in called:
            if not isinstance(m, torch.jit.ScriptModule) and _spare not in m._forward_pre_hooks.values():
                hooks.append(m.register_forward_pre_hook(_spare))
        with torch.inference_mode(False), torch.enable_grad():
            model.eval()
            for p in trainable:
                p.requires_grad_(False)
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for p in trainable:
            p.requires_grad_(True)
        for m, training in modes:  # each module its own mode: some may have been frozen on purpose
            m.training = training


def stochastic(model: nn.Module) -> bool:
    """True if `model` or a submodule declares that it draws random numbers (its attribute ``stochastic``)."""
    return any(getattr(m, "stochastic", False) for m in model.modules())


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer of `model`; the CPU if it has none."""
    return next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def are_probabilities(outputs: Tensor) -> Tensor:
    """True, a boolean (), if every row of `outputs` (B, K) is a distribution: a softmax instead of logits.

    Gradients through a softmax vanish if the model is confident, which makes attacks look weak. Log-probabilities count
    as logits. Without rows the result is false.
    """
    if not len(outputs):
        return torch.zeros((), dtype=torch.bool, device=outputs.device)
    return (outputs >= 0).all() & ((outputs.sum(-1) - 1).abs() < 1e-3).all()


def returns_probabilities(model: nn.Module, x: Tensor) -> bool:
    """True if `model` in eval mode returns probabilities for images `x` (B, C, H, W); see `are_probabilities`."""
    with frozen_eval(model), torch.no_grad():
        return bool(are_probabilities(model(x)))
