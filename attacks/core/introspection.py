"""Introspection of attacks: their parts, their threat model, and copies with other radii."""

from dataclasses import fields, replace
from typing import Any

from adversarial_lightning.attacks.core.base import Attack, members, threat

__all__ = ["members", "scale_eps", "threat"]


def scale_eps(attack: Attack, factor: float) -> Attack:
    """Copy of `attack` with every radius multiplied by `factor`, also inside combinations."""
    changes: dict[str, Any] = {}
    for field in fields(attack):  # type: ignore[arg-type]
        value = getattr(attack, field.name)
        if isinstance(value, Attack):
            changes[field.name] = scale_eps(value, factor)
        elif isinstance(value, list | tuple) and any(isinstance(a, Attack) for a in value):
            changes[field.name] = [scale_eps(a, factor) for a in value]
        elif field.name == "eps":
            changes[field.name] = value * factor
    return replace(attack, **changes)  # type: ignore[type-var]
