"""Input validation of attacks: settings, images, labels and logits."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.eval_mode import are_probabilities


def at_least(minimum: float, **settings: float | None) -> None:
    """Raise ValueError for the first of `settings` that is below `minimum`, infinite or NaN; None is allowed."""
    for name, value in settings.items():
        if value is not None and not minimum <= value < math.inf:
            raise UserError(f"{name} must be at least {minimum}{' and finite' * (value == math.inf)}, not {value}")


def between(low: float, high: float, **settings: float | None) -> None:
    """Raise ValueError for the first of `settings` that is not above `low` and below `high`; None is allowed."""
    for name, value in settings.items():
        if value is not None and not low < value < high:
            limit = "and finite" if high == math.inf else f"and below {high}"
            raise UserError(f"{name} must be above {low} {limit}, not {value}")


def check_choices(settings: Any) -> None:
    """Raise ValueError if a field of the dataclass `settings` has a value that its `Literal` type does not allow."""
    hints = get_type_hints(type(settings))
    for name in (f.name for f in fields(settings) if get_origin(hints[f.name]) is Literal):
        _check_choice(type(settings), name, get_args(hints[name]), getattr(settings, name))


def check_arguments(cls: type, **values: Any) -> None:
    """Raise ValueError if one of `values` is not allowed by the `Literal` type of that argument of `cls`."""
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    for name, value in values.items():
        kinds = [hints[name], *get_args(hints[name])]  # a choice, or a choice among other kinds
        allowed = [option for kind in kinds if get_origin(kind) is Literal for option in get_args(kind)]
        if get_origin(hints[name]) is Literal or isinstance(value, str):
            _check_choice(cls, name, allowed, value)


def _check_choice(cls: type, name: str, allowed: Sequence[Any], value: Any) -> None:
    if value not in allowed:
        *most, last = map(str, allowed)
        options = f"{', '.join(most)} or {last}" if most else last
        raise UserError(f"{name} of {cls.__name__} must be {options}, not {value!r}")


def check_images(x: Tensor) -> None:
    """Raise ValueError unless `x` is a float batch (B, ...) with all values in [0, 1]."""
    if not x.is_floating_point() or x.ndim < 2:
        raise UserError(f"images must be floats (B, C, H, W), not {x.dtype} {tuple(x.shape)}")
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):
        low, high = float(x.min()), float(x.max())
        raise UserError(
            f"images must lie in [0, 1], these in [{low:.4g}, {high:.4g}]: normalisation belongs into the network's "
            "first layer (networks.Normalize), never into the data"
        )


def check_model_and_labels(model: object, x: Tensor, y: Tensor) -> None:
    """Raise UserError unless `model` is a module and `y` holds labels (B,) int64 or target probabilities (B, K)."""
    if not isinstance(model, nn.Module):
        raise UserError(f"an attack needs a torch.nn.Module, not a {type(model).__name__}: wrap it in a module")
    if len(y) != len(x):
        raise UserError(f"{len(x)} images came with {len(y)} labels")
    if (y.ndim, y.is_floating_point()) != (2, True) and (y.ndim, y.dtype) != (1, torch.int64):
        raise UserError(
            f"labels must be int64 (B,), or target probabilities (B, K), not {y.dtype} {tuple(y.shape)}: "
            "y.flatten().long() makes labels of class numbers"
        )


def labels_only(y: Tensor) -> None:
    """Raise UserError for target probabilities (B, K), where an attack or a loss needs labels (B,)."""
    if y.ndim != 1:
        raise UserError("this attack, or its loss, needs labels (B,), not target probabilities: y.argmax(1), or PGD")


@contextmanager
def checked_logits(model: nn.Module, y: Tensor) -> Iterator[None]:
    """Check the first output of `model` in this context.

    Raises ValueError if it is not (B, K) with K > 1, or if labels `y` (B,) do not lie in 0 .. K-1. Warns if all rows
    are probabilities: after a softmax, gradients nearly vanish and most attacks fail silently. Log-probabilities are
    valid logits.
    """

    def check(_module: nn.Module, _inputs: object, logits: Any) -> None:
        handle.remove()
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
            what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise UserError(f"the model returned {what}: attacks need logits (B, K) of K > 1 classes")
        p, labels = logits.detach(), y if y.ndim == 1 else y.new_full((1,), y.shape[1] - 1)
        probabilities = are_probabilities(p)
        unfit = ((labels < 0) | (labels >= p.shape[1])).any()
        probable, misfit = torch.stack([probabilities, unfit]).tolist() if len(p) else (False, False)
        if misfit:
            raise UserError(
                f"labels {int(labels.min())} .. {int(labels.max())} do not fit a model with {p.shape[1]} outputs: "
                "labels and targets are class numbers from 0"
            )
        if probable:
            warnings.warn(
                "the model seems to return probabilities (rows in [0, 1] that sum to 1): attacks need logits. Take the "
                "softmax off the end of the network, or return log-probabilities (log_softmax)",
                stacklevel=2,
            )

    handle = model.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()
