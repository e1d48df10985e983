"""What is turned away: detectors of adversarial images, ``score(x) -> (B,)``. This file is the catalogue."""

from detectors.base import Detector, Guarded
from detectors.max_probability import MaxProbability
from detectors.score_norm import ScoreNorm

__all__ = ["Detector", "Guarded", "MaxProbability", "ScoreNorm"]
