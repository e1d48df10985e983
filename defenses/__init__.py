"""What stands in front of a classifier at test time. This file is the catalogue."""

from defenses.base import Purified, Purifier, obligations
from defenses.filters import MeanFilter, RandomQuantizer

__all__ = ["MeanFilter", "Purified", "Purifier", "RandomQuantizer", "obligations"]
