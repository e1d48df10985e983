"""Defenses against adversarial examples for PyTorch Lightning: train them, attack them honestly, report the evidence.

The rooms are subpackages, loaded when they are first used::

    import adversarial_lightning as al

    x_adv = al.attacks.PGD(norm="linf", eps=8 / 255)(model, x, y)
"""

from importlib import import_module, metadata
from types import ModuleType

ROOMS = (
    "attacks",
    "callbacks",
    "checkpoints",
    "datamodules",
    "defenses",
    "detectors",
    "evaluation",
    "lightning_modules",
    "networks",
    "reproduce",
)
FACES = ("zoo",)

__all__ = ["ROOMS", *ROOMS, *FACES, "__version__"]


def __getattr__(name: str) -> ModuleType | str:
    if name in (*ROOMS, *FACES):
        return import_module(f"{__name__}.{name}")
    if name == "__version__":
        return metadata.version("adversarial-lightning")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *ROOMS, *FACES])
