"""What is turned away: detectors of adversarial images, ``score(x) -> (B,)``. This file is the catalogue."""

from detectors.base import Detector, Guarded
from detectors.max_probability import MaxProbability

__all__ = ["Detector", "Guarded", "MaxProbability"]
