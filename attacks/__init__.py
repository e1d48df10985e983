"""What a model must withstand: ``x_adv = attack(model, x, y, noise)``. This file is the catalogue."""

from attacks.base import Attack, check_images, guard
from attacks.compose import Restarts, Within, WorstOf, members, scale_eps, threat
from attacks.corruptions import GaussianNoise, SaltAndPepper
from attacks.fgsm import FGSM
from attacks.langevin import Langevin
from attacks.noise import Noise, drawing
from attacks.pgd import PGD
from attacks.radius import Radius

__all__ = [
    "FGSM",
    "PGD",
    "Attack",
    "GaussianNoise",
    "Langevin",
    "Noise",
    "Radius",
    "Restarts",
    "SaltAndPepper",
    "Within",
    "WorstOf",
    "check_images",
    "drawing",
    "guard",
    "members",
    "scale_eps",
    "threat",
]
