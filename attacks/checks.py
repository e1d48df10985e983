"""What attacks refuse, and what they warn of: settings, images, labels and logits that cannot be meant."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn


def at_least(minimum: float, **settings: float) -> None:
    """Raise ValueError naming the first of `settings` that is below `minimum` (or not a number)."""
    for name, value in settings.items():
        if not value >= minimum:
            raise ValueError(f"{name} must be at least {minimum}, not {value}")


@cache
def _choices(attack: type) -> dict[str, tuple[Any, ...]]:
    hints = get_type_hints(attack)
    return {f.name: get_args(hints[f.name]) for f in fields(attack) if get_origin(hints[f.name]) is Literal}


def one_of(attack: object) -> None:
    """Raise ValueError where a setting of the dataclass `attack` that is a choice (`Literal`) is none of its values."""
    for name, allowed in _choices(type(attack)).items():
        if getattr(attack, name) not in allowed:
            *most, last = map(str, allowed)
            options = f"{', '.join(most)} or {last}" if most else last
            raise ValueError(f"{name} of {type(attack).__name__} must be {options}, not {getattr(attack, name)!r}")


def check_images(x: Tensor) -> None:
    """Raise ValueError unless `x` is a float batch (B, ...) with all values in [0, 1]."""
    if not x.is_floating_point() or x.ndim < 2:
        raise ValueError(f"images must be floats (B, C, H, W), not {x.dtype} {tuple(x.shape)}")
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):
        low, high = float(x.min()), float(x.max())
        raise ValueError(
            f"images must lie in [0, 1], these in [{low:.4g}, {high:.4g}]: normalisation belongs into the network's "
            "first layer (networks.Normalize), never into the data"
        )


@contextmanager
def checked_logits(model: nn.Module, y: Tensor) -> Iterator[None]:
    """In this context the first output of `model` is looked at, once.

    Raises ValueError where it is no (B, K), or where labels `y` (B,) do not lie in 0 .. K-1. Warns where all rows are
    probabilities: after a softmax losses flatten and most attacks fail quietly. Log-probabilities are logits.
    """

    def look(_module: nn.Module, _inputs: object, logits: Any) -> None:
        handle.remove()
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(f"the model returned {what}: attacks need logits (B, K), one row an image")
        p, labels = logits.detach(), y if y.ndim == 1 else y.new_full((1,), y.shape[1] - 1)
        probabilities = (p >= 0).all() & ((p.sum(1) - 1).abs() < 1e-3).all()
        strange = ((labels < 0) | (labels >= p.shape[1])).any()
        probable, misfit = torch.stack([probabilities, strange]).tolist() if len(p) else (False, False)
        if misfit:
            raise ValueError(
                f"labels {int(labels.min())} .. {int(labels.max())} do not fit a model with {p.shape[1]} outputs: "
                "labels and targets are class numbers from 0"
            )
        if probable:
            warnings.warn(
                "the model seems to return probabilities (rows in [0, 1] that sum to 1): attacks need logits. Take the "
                "softmax off the end of the network, or return log-probabilities (log_softmax)",
                stacklevel=2,
            )

    handle = model.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
