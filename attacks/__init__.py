"""What a model must withstand: ``x_adv = attack(model, x, y, noise)``. This file is the catalogue."""

from attacks.apgd import APGD
from attacks.autoattack import AutoAttack
from attacks.base import Attack, guard
from attacks.boundary import Boundary
from attacks.bypass import BPDA, GrayBox
from attacks.checks import check_images
from attacks.choose import choose_step_size
from attacks.compose import Restarts, Within, WorstOf, members, scale_eps, threat
from attacks.corruptions import GaussianNoise, SaltAndPepper
from attacks.cw import CW, CWLinf
from attacks.daa import DAA
from attacks.ddn import DDN
from attacks.deepfool import DeepFool
from attacks.detector_apgd import DetectorAwareAPGD
from attacks.detector_pgd import DetectorAwarePGD
from attacks.ead import EAD
from attacks.fab import FAB
from attacks.feature_adversary import FeatureAdversary
from attacks.fgsm import FGSM
from attacks.fmn import FMN
from attacks.high_confidence import HighConfidence
from attacks.hop_skip_jump import HopSkipJump
from attacks.joint import Joint
from attacks.jsma import JSMA
from attacks.langevin import Langevin
from attacks.logit_eot import LogitEOT
from attacks.noise import Noise, drawing
from attacks.one_pixel import OnePixel
from attacks.pdpgd import PDGD, PDPGD
from attacks.pgd import PGD
from attacks.radius import Radius
from attacks.rays import RayS
from attacks.reconstruction_pgd import ReconstructionPGD
from attacks.salt_pepper_search import SaltAndPepperSearch
from attacks.sparsefool import SparseFool
from attacks.square import Square
from attacks.targeted import Targeted
from attacks.transfer import Surrogate, Transfer

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
    "Targeted",
    "Transfer",
    "Within",
    "WorstOf",
    "check_images",
    "choose_step_size",
    "drawing",
    "guard",
    "members",
    "scale_eps",
    "threat",
]
