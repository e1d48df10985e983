"""What is turned away: detectors of adversarial images, ``score(x) -> (B,)``. This file is the catalogue."""

from detectors.base import Detector, Guarded
from detectors.er_detector import ERDetector
from detectors.fitted import FittedDetector
from detectors.fitting import fit, fit_on, set_one, set_two
from detectors.kernel_density import KernelDensity
from detectors.lid import LID
from detectors.max_probability import MaxProbability
from detectors.reconstruction_error import ReconstructionError
from detectors.score_norm import ScoreNorm

__all__ = [
    "LID",
    "Detector",
    "ERDetector",
    "FittedDetector",
    "Guarded",
    "KernelDensity",
    "MaxProbability",
    "ReconstructionError",
    "ScoreNorm",
    "fit",
    "fit_on",
    "set_one",
    "set_two",
]
