"""How a model is trained: one paper, one file. This file is the catalogue."""

from lightning_modules.adversarial_training import AdversarialTraining
from lightning_modules.adversary_critic import AdversaryCritic
from lightning_modules.atent import ATENT
from lightning_modules.base import Classifier, LossClassifier, Method
from lightning_modules.denoising_autoencoder import DenoisingAutoencoder
from lightning_modules.er_classifier import ERClassifier
from lightning_modules.margin_maximization import MarginMaximization
from lightning_modules.rse import RSE
from lightning_modules.schedules import Cosine, Exponential, OneCycle, Schedule, Steps
from lightning_modules.standard import Standard
from lightning_modules.trades import TRADES
from lightning_modules.vaecla import VAECLA
from lightning_modules.vat import VAT

__all__ = [
    "ATENT",
    "RSE",
    "TRADES",
    "VAECLA",
    "VAT",
    "AdversarialTraining",
    "AdversaryCritic",
    "Classifier",
    "Cosine",
    "DenoisingAutoencoder",
    "ERClassifier",
    "Exponential",
    "LossClassifier",
    "MarginMaximization",
    "Method",
    "OneCycle",
    "Schedule",
    "Standard",
    "Steps",
]
