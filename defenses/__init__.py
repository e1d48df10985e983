"""What stands in front of a classifier at test time. This file is the catalogue."""

from defenses.base import Purified, Purifier, obligations
from defenses.filters import MeanFilter, RandomQuantizer
from defenses.magnet import Magnet
from defenses.malade import MALA, MALADE
from defenses.ride import RIDE
from defenses.voting import Voting

__all__ = [
    "MALA",
    "MALADE",
    "RIDE",
    "Magnet",
    "MeanFilter",
    "Purified",
    "Purifier",
    "RandomQuantizer",
    "Voting",
    "obligations",
]
