"""Radius type: a length in pixels of [0, 1], written in configuration files as 0.3 or 8/255."""

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from jsonargparse.typing import register_type

from adversarial_lightning.errors import UserError

if TYPE_CHECKING:
    Radius = float
else:

    class Radius(float):
        """Finite number >= 0; in configuration files also a fraction, ``8/255``."""


def _read(value: str | float) -> Radius:
    try:
        radius = Radius(float(Fraction(str(value).replace(" ", ""))))
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{value!r} is not a number: write it like 0.3 or 8/255") from None
    if not math.isfinite(radius) or radius < 0:
        raise UserError(f"{value!r} is no radius: it must be finite and at least 0")
    return radius


if not TYPE_CHECKING:
    register_type(Radius, serializer=float, deserializer=_read, deserializer_exceptions=ValueError)
