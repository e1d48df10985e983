"""Catalogue of attacks; every attack is called as ``x_adv = attack(model, x, y, noise)``."""

from adversarial_lightning.attacks.apgd import APGD
from adversarial_lightning.attacks.autoattack import AutoAttack
from adversarial_lightning.attacks.boundary import Boundary
from adversarial_lightning.attacks.bypass import BPDA, GrayBox
from adversarial_lightning.attacks.combinators import Restarts, Within, WorstOf
from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.checks import check_images
from adversarial_lightning.attacks.core.introspection import members, scale_eps, threat
from adversarial_lightning.attacks.core.noise import Noise, noise_for
from adversarial_lightning.attacks.core.radius import Radius
from adversarial_lightning.attacks.corruptions import GaussianNoise, SaltAndPepper
from adversarial_lightning.attacks.cw import CW, CWLinf
from adversarial_lightning.attacks.daa import DAA
from adversarial_lightning.attacks.ddn import DDN
from adversarial_lightning.attacks.deepfool import DeepFool
from adversarial_lightning.attacks.detector_apgd import DetectorAwareAPGD
from adversarial_lightning.attacks.detector_pgd import DetectorAwarePGD
from adversarial_lightning.attacks.ead import EAD
from adversarial_lightning.attacks.fab import FAB
from adversarial_lightning.attacks.feature_adversary import FeatureAdversary
from adversarial_lightning.attacks.fgsm import FGSM
from adversarial_lightning.attacks.fmn import FMN
from adversarial_lightning.attacks.high_confidence import HighConfidence
from adversarial_lightning.attacks.hop_skip_jump import HopSkipJump
from adversarial_lightning.attacks.joint import Joint
from adversarial_lightning.attacks.jsma import JSMA
from adversarial_lightning.attacks.langevin import Langevin
from adversarial_lightning.attacks.logit_eot import LogitEOT
from adversarial_lightning.attacks.one_pixel import OnePixel
from adversarial_lightning.attacks.pdpgd import PDGD, PDPGD
from adversarial_lightning.attacks.pgd import PGD
from adversarial_lightning.attacks.rays import RayS
from adversarial_lightning.attacks.reconstruction_pgd import ReconstructionPGD
from adversarial_lightning.attacks.salt_pepper_search import SaltAndPepperSearch
from adversarial_lightning.attacks.sparsefool import SparseFool
from adversarial_lightning.attacks.square import Square
from adversarial_lightning.attacks.step_size_search import choose_step_size
from adversarial_lightning.attacks.sweep import Sweep, expanded
from adversarial_lightning.attacks.targeted import Targeted
from adversarial_lightning.attacks.transfer import CheckpointSurrogate, Surrogate, Transfer

__all__ = [
    "APGD",
    "BPDA",
    "CW",
    "DAA",
    "DDN",
    "EAD",
    "FAB",
    "FGSM",
    "FMN",
    "JSMA",
    "PDGD",
    "PDPGD",
    "PGD",
    "Attack",
    "AutoAttack",
    "Boundary",
    "CWLinf",
    "CheckpointSurrogate",
    "DeepFool",
    "DetectorAwareAPGD",
    "DetectorAwarePGD",
    "FeatureAdversary",
    "GaussianNoise",
    "GrayBox",
    "HighConfidence",
    "HopSkipJump",
    "Joint",
    "Langevin",
    "LogitEOT",
    "Noise",
    "OnePixel",
    "Radius",
    "RayS",
    "ReconstructionPGD",
    "Restarts",
    "SaltAndPepper",
    "SaltAndPepperSearch",
    "SparseFool",
    "Square",
    "Surrogate",
    "Sweep",
    "Targeted",
    "Transfer",
    "Within",
    "WorstOf",
    "check_images",
    "choose_step_size",
    "expanded",
    "members",
    "noise_for",
    "scale_eps",
    "threat",
]
