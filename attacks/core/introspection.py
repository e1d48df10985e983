"""Introspection of attacks: their parts, their threat model, and copies with other radii."""

from dataclasses import fields, replace
from typing import Any

from adversarial_lightning.attacks.core.base import Attack


def threat(attack: Attack) -> tuple[str | None, float | None]:
    """Norm and radius of an attack; None if it has none or if the parts of a combination differ."""
    parts = {threat(part) for part in members(attack)}
    if parts:
        norm, eps = parts.pop() if len(parts) == 1 else (None, None)
        return norm, getattr(attack, "eps", eps)
    return getattr(attack, "norm", None), getattr(attack, "eps", None)


def members(attack: Attack) -> list[Attack]:
    """Direct parts of `attack`; empty if it is no combination."""
    parts: list[Attack] = []
    for field in fields(attack):  # type: ignore[arg-type]
        value = getattr(attack, field.name)
        parts += [a for a in (value if isinstance(value, list | tuple) else [value]) if isinstance(a, Attack)]
    return parts


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
