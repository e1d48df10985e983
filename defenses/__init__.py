"""What stands in front of a classifier at test time. This file is the catalogue."""

from defenses.base import Purified, Purifier, obligations
from defenses.filters import JPEG, BitDepth, MeanFilter, Median, RandomQuantizer
from defenses.magnet import Magnet
from defenses.malade import MALA, MALADE
from defenses.ride import RIDE
from defenses.total_variation import TVBregman, TVChambolle
from defenses.voting import Voting

__all__ = [
    "JPEG",
    "MALA",
    "MALADE",
    "RIDE",
    "BitDepth",
    "Magnet",
    "MeanFilter",
    "Median",
    "Purified",
    "Purifier",
    "RandomQuantizer",
    "TVBregman",
    "TVChambolle",
    "Voting",
    "obligations",
]
