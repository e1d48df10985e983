"""Catalogue of detectors of adversarial images, ``score(x) -> (B,)``."""

from adversarial_lightning.detectors.base import Detector, DetectorGuardedModel
from adversarial_lightning.detectors.er_detector import ERDetector
from adversarial_lightning.detectors.fitted import FittedDetector
from adversarial_lightning.detectors.fitting import calibration_split, fit, fit_on, test_split
from adversarial_lightning.detectors.kernel_density import KernelDensity
from adversarial_lightning.detectors.lid import LID
from adversarial_lightning.detectors.max_probability import MaxProbability
from adversarial_lightning.detectors.reconstruction_error import ReconstructionError
from adversarial_lightning.detectors.score_norm import ScoreNorm

__all__ = [
    "LID",
    "Detector",
    "DetectorGuardedModel",
    "ERDetector",
    "FittedDetector",
    "KernelDensity",
    "MaxProbability",
    "ReconstructionError",
    "ScoreNorm",
    "calibration_split",
    "fit",
    "fit_on",
    "test_split",
]
