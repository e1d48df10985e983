"""One attack with several values of a setting: a robustness curve, written as one entry of a suite."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from adversarial_lightning.attacks.combinators import Combination
from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.introspection import members
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.errors import UserError


@dataclass(frozen=True)
class Sweep(Combination):
    """`attack` once for each of the `values`: entries of their own, ``NAME_0.1``, ``NAME_0.2``, once it is `expanded`.

    A field of `values` is looked up in the attack, else in the attacks that it is made of, so that the radius inside a
    `Restarts` or of all parts of a `WorstOf` can be named. In the list of a `WorstOf` or a `Joint`, a Sweep becomes as
    many parts of it as it has values.

    Args:
        attack: the attack that is repeated.
        values: field -> its values; several lists of the same length go in parallel.
        names: what stands behind the name and "_"; none: the values of the first field.
        times: a field of the attack that the values are multiples of: step sizes ``times: eps``.
    """

    attack: Attack
    values: dict[str, list[Any]]
    names: list[str] | None = None
    times: str | None = None

    def __post_init__(self) -> None:
        lengths = {len(listed) for listed in (*self.values.values(), *([self.names] if self.names else []))}
        if len(lengths) != 1 or 0 in lengths:
            raise UserError(f"the lists of a Sweep must be as long as each other and not empty, not {self.values}")
        if len(set(labels := self.labels())) != len(labels):
            raise UserError(f"two entries of a Sweep would have the same name, of {labels}: give it other names")
        for attack in self.attacks():
            _parts(attack)

    def labels(self) -> list[str]:
        """What follows the name of each entry."""
        first = next(iter(self.values.values()))
        return self.names or [
            f"{value:g}" if isinstance(value, int | float) else str(value).replace("/", "_") for value in first
        ]

    def attacks(self) -> list[Attack]:
        """The attack with each of the values in turn."""
        rows = [dict(zip(self.values, row, strict=True)) for row in zip(*self.values.values(), strict=True)]
        return [self._with(row) for row in rows]

    def _with(self, row: Mapping[str, Any]) -> Attack:
        attack = self.attack
        for field, value in row.items():
            if self.times is not None:
                if not isinstance(value, int | float):
                    raise UserError(f"a Sweep multiplies numbers by {self.times}, not {value!r}")
                # A product has as many digits as people write: 0.1 * 0.2 is 0.02, not 0.020000000000000004.
                value = float(f"{value * _value(attack, self.times):.15g}")
            attack = _replaced(attack, field, value)
        return attack

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        raise UserError("a Sweep is several attacks, no attack: pass the suite through attacks.expanded first")


def expanded(suite: Mapping[str, Attack]) -> dict[str, Attack]:
    """`suite` with an entry of its own for each value of each `Sweep`, in the order of the suite and of the values.

    Raises ValueError where two entries come to bear the same name, and for a Sweep inside a `Restarts`, `Within` or
    other attack of one attack, which belongs around it.
    """
    entries: dict[str, Attack] = {}
    for name, attack in suite.items():
        for entry, one in _entries(name, attack):
            if entry in entries:
                raise UserError(f"two attacks of the suite are called {entry!r}: rename one of them")
            entries[entry] = one
    return entries


def _entries(name: str, attack: Attack) -> list[tuple[str, Attack]]:
    if not isinstance(attack, Sweep):
        return [(name, _parts(attack))]
    pairs = zip(attack.labels(), attack.attacks(), strict=True)
    return [entry for label, one in pairs for entry in _entries(f"{name}_{label}", one)]


def _parts(attack: Attack) -> Attack:
    """`attack` with every Sweep in its lists of attacks turned into parts."""
    changes: dict[str, Any] = {}
    for field in fields(attack):  # type: ignore[arg-type]
        value = getattr(attack, field.name)
        if isinstance(value, Sweep) and not isinstance(attack, Sweep):
            raise UserError(f"a Sweep belongs around {type(attack).__name__}, not inside it")
        if isinstance(value, Attack):
            changes[field.name] = _parts(value)
        elif isinstance(value, list | tuple) and any(isinstance(a, Attack) for a in value):
            parts = [one for a in value for _, one in _entries("", a)]
            changes[field.name] = parts if parts != list(value) else value
    return replace(attack, **changes) if changes else attack  # type: ignore[type-var]


def _replaced(attack: Attack, field: str, value: Any) -> Attack:
    """`attack` with one field changed, its own or that of all attacks that it is made of."""
    if field in _fields(attack):
        return replace(attack, **{field: _read(attack, field, value)})  # type: ignore[type-var]
    changes: dict[str, Any] = {}
    for own in fields(attack):  # type: ignore[arg-type]
        found = getattr(attack, own.name)
        if isinstance(found, Attack):
            changes[own.name] = _replaced(found, field, value)
        elif isinstance(found, list | tuple) and any(isinstance(a, Attack) for a in found):
            changes[own.name] = [_replaced(a, field, value) for a in found]
    if not changes:
        raise UserError(f"a Sweep cannot vary {field!r}: {type(attack).__name__} has {', '.join(_fields(attack))}")
    return replace(attack, **changes)  # type: ignore[type-var]


def _value(attack: Attack, field: str) -> float:
    """The value of a field of the attack, or of what it is made of."""
    if field in _fields(attack):
        return float(getattr(attack, field))
    if parts := members(attack):
        return _value(parts[0], field)
    raise UserError(f"a Sweep cannot multiply by {field!r}: {type(attack).__name__} has {', '.join(_fields(attack))}")


def _fields(attack: Attack) -> list[str]:
    """The names that can be varied: a Sweep hands everything on to its attack."""
    return [] if isinstance(attack, Sweep) else [field.name for field in fields(attack)]  # type: ignore[arg-type]


def _read(attack: Attack, field: str, value: Any) -> Any:
    """`value` as a configuration file's for this field: ``8/255`` is a radius, 1 a float where the field is one."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=get_type_hints(type(attack))[field])
    try:
        return parser.parse_object({"value": value}).value
    except ArgumentError as error:
        raise UserError(f"a Sweep cannot set {field} of {type(attack).__name__} to {value!r}: {error}") from error
