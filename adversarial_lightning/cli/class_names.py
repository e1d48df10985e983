"""Short class names in configurations: ``class_path: PGD`` names our class, whatever else is called PGD.

jsonargparse looks a short name up among all subclasses that happen to be imported, and refuses one that two libraries
share, such as MLP and JPEG (torchvision has both). `prefer_ours` lets the catalogues of this project come first.
"""

import importlib.util
import inspect
from typing import Any

from jsonargparse import _typehints

import adversarial_lightning
from adversarial_lightning.checkpoints import old_names

_original = _typehints.resolve_class_path_by_name


def catalogue() -> dict[str, str]:
    """Import path of every class that a room lists, by its name."""
    paths: dict[str, str] = {}
    for room in adversarial_lightning.ROOMS:
        module = getattr(adversarial_lightning, room)
        for name in module.__all__:
            if inspect.isclass(getattr(module, name)):
                paths[name] = f"{module.__name__}.{name}"
    return paths


def prefer_ours() -> None:
    """Make jsonargparse look a class name up in the catalogues first; imports all rooms."""
    ours = catalogue()

    def resolve(cls: Any, name: str) -> str:
        room, dot, short = name.rpartition(".")
        if not dot:
            return ours.get(name) or str(_original(cls, name))
        if name in old_names.CLASSES:
            return ours[old_names.CLASSES[name]]
        path = f"adversarial_lightning.{name}"  # as written before version 0.2: attacks.PGD
        return path if ours.get(short) == path and not _users_own(room, short) else name

    _typehints.resolve_class_path_by_name = resolve


def _users_own(room: str, name: str) -> bool:
    """Whether the user's project has a module named like a room of ours, with a class of this name in it."""
    spec = importlib.util.find_spec(room)
    if spec is None or spec.origin == getattr(adversarial_lightning, room).__file__:  # in a clone its folder is found
        return False
    return hasattr(importlib.import_module(room), name)
