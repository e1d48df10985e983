"""Catalogue of defenses: purifiers in front of a classifier, and votes over a stochastic one."""

from adversarial_lightning.defenses.base import Purified, Purifier, required_adaptations
from adversarial_lightning.defenses.filters import JPEG, BitDepth, MeanFilter, Median, RandomQuantizer
from adversarial_lightning.defenses.magnet import Magnet
from adversarial_lightning.defenses.malade import MALA, MALADE
from adversarial_lightning.defenses.ride import RIDE
from adversarial_lightning.defenses.total_variation import TVBregman, TVChambolle
from adversarial_lightning.defenses.voting import Voting

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
    "required_adaptations",
]
