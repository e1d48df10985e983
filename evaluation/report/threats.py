"""Threat models of attacks and worst cases: their order and titles in tables."""

from collections.abc import Mapping
from typing import Any

from adversarial_lightning.evaluation.report import formatting

Key = tuple[str | None, float | None, tuple[tuple[str, float], ...]]  # norm, radius, the balls of a union


def key(entry: Mapping[str, Any]) -> Key:
    """Norm, radius and, of a union, its balls: equal for attacks and worst cases of one threat model."""
    balls = tuple((ball["norm"], ball["eps"]) for ball in entry.get("members") or ())
    return entry["norm"], entry["eps"], balls


def rank(model: Key) -> tuple[int, int, float, Any]:
    """Sort key in a table: norms, radii ascending, then unions, then lengths, corruptions at the end."""
    norm, eps, balls = model
    norms = [*formatting.SYMBOLS, norm]
    return (1 if balls else 3 if norm is None else 2 if eps is None else 0, norms.index(norm), eps or 0.0, balls)


def title(entry: Mapping[str, Any], symbols: bool = False) -> str:
    """Heading of a group of attacks."""
    if entry["norm"] is None:
        return "corruptions"
    whole = entry["eps"] is not None or entry.get("members")
    return formatting.where(entry, symbols) + ("" if whole else ", median length")


def any_radius(attack: Mapping[str, Any]) -> bool:
    """True for an attack without a radius, judged by the length of its perturbations."""
    return attack["eps"] is None and attack.get("curve") is not None
