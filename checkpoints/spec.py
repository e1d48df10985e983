"""Specs: descriptions of objects that are rebuilt from catalogue classes only, without an import.

A checkpoint records `catalogue: {"network": spec, "data": spec or None}`. A spec is a dict of `class_path`, such as
"networks.SmallCNN", and `init_args`: plain values and nested specs. Nobody has reviewed a checkpoint from elsewhere,
and jsonargparse and Lightning would import whatever it names, even bare strings in class- or Callable-typed fields.
Here a name is looked up among given classes, or refused.
"""

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from adversarial_lightning.errors import UserError

Spec = dict[str, Any]
PACKAGE = "adversarial_lightning"


def catalogue(room: ModuleType) -> list[type]:
    """Classes that a room lists in its ``__all__``."""
    return [value for name in room.__all__ if inspect.isclass(value := getattr(room, name))]


def plain(value: Any) -> Any:
    """Convert `value` to plain types, fit for JSON and weights-only loading; objects become specs.

    Raises ValueError for objects without a spec. Instances of subclasses of float and the like become plain numbers.
    """
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {str(name): plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return describe(value)


def describe(obj: object) -> Spec:
    """Spec of `obj`: its class, and those of its attributes that are named like the constructor's parameters.

    ``build(spec, classes)`` is the inverse. Raises ValueError where an attribute is missing or no plain value.
    """
    cls = type(obj)
    room = room_of(cls)
    listed = getattr(sys.modules.get(f"{PACKAGE}.{room}"), cls.__name__, None) is cls
    try:
        parameters = list(inspect.signature(cls).parameters.values())
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY) for p in parameters):
            raise UserError("its constructor takes arguments without names")
        if cls.__module__ in ("builtins", "functools"):
            raise UserError("it is a function")
        init_args = {p.name: plain(getattr(obj, p.name)) for p in parameters}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{cls.__name__} cannot be described by plain constructor arguments: {error}") from error
    return {"class_path": f"{room if listed else cls.__module__}.{cls.__name__}", "init_args": init_args}


def build(spec: object, classes: Iterable[type]) -> Any:
    """Build the object that `spec` describes, from `classes` only.

    `class_path` may be a class's room and name (``networks.SmallCNN``, which is what checkpoints record) or its full
    path. Raises ValueError, before anything is imported or called, for every other name, for unknown arguments and for
    values that do not fit the constructor's annotations: a string is never a module and nothing is a Callable.
    """
    known = {}
    for cls in classes:
        known[_short(cls)] = known[f"{cls.__module__}.{cls.__qualname__}"] = cls
        if room := room_of(cls):
            known[f"{PACKAGE}.{room}.{cls.__name__}"] = cls
    return _build(spec, known)


def room_of(cls: type) -> str:
    """Room (attacks, networks, ...) of a class of this project, "" for all other classes."""
    package, _, rest = cls.__module__.partition(".")
    return rest.partition(".")[0] if package == PACKAGE else ""


def _short(cls: type) -> str:
    """Room and name of a class, such as ``networks.SmallCNN``; for other projects the top-level module and name."""
    return f"{room_of(cls) or cls.__module__.partition('.')[0]}.{cls.__name__}"


def _build(spec: object, known: Mapping[str, type]) -> Any:
    if not isinstance(spec, dict) or not {"class_path"} <= set(spec) <= {"class_path", "init_args"}:
        raise UserError(f"{brief(spec)} is no description of an object: it takes class_path and init_args only")
    path, given = spec["class_path"], spec.get("init_args", {})
    if not isinstance(path, str) or path not in known:
        names = ", ".join(sorted({_short(cls) for cls in known.values()}))
        raise UserError(f"the class {brief(path)} is not in the catalogue ({names}) and was not imported")
    cls = known[path]
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise UserError(f"init_args of {path} must map names to values, not {brief(given)}")
    if inspect.isabstract(cls):
        raise UserError(f"{path} is abstract")
    hints, parameters = get_type_hints(inspect.getattr_static(cls, "__init__")), inspect.signature(cls).parameters
    if unknown := sorted(set(given) - set(parameters)):
        raise UserError(f"{path} has no argument {', '.join(map(brief, unknown))}")
    values = {name: _value(value, known) for name, value in given.items()}
    for name, value in values.items():
        if not _fits(value, hints.get(name, Any)):
            raise UserError(f"{name}={brief(value)} of {path} is not of the type that the constructor takes")
    try:
        return cls(**values)
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path} cannot be built from {brief(given)}: {error}") from error


def _value(value: object, known: Mapping[str, type]) -> Any:
    """Object of a nested spec; a plain value as it is."""
    if isinstance(value, dict):
        if "class_path" in value:
            return _build(value, known)
        return {name: _value(v, known) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_value(v, known) for v in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise UserError(f"{brief(value)} is no plain value")


def _fits(value: object, hint: Any) -> bool:
    """True if `value` fits the annotation `hint`; only plain data and classes can, and never a Callable."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin in (Union, UnionType):
        return any(_fits(value, arm) for arm in args)
    if origin is Literal:
        return any(value is arm or (type(value) is type(arm) and value == arm) for arm in args)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list) and all(_fits(v, args[0] if args else Any) for v in value)
    if origin is dict:
        return isinstance(value, dict)
    if not inspect.isclass(hint) or origin is not None:
        return False
    if issubclass(hint, float):
        return type(value) in (int, float)
    if hint is int:
        return type(value) is int
    return isinstance(value, hint)


def brief(value: object) -> str:
    """Representation of `value` in at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
