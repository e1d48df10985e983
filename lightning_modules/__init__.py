"""Training methods: one paper, one file. This file is the catalogue."""

from adversarial_lightning.lightning_modules.adversarial_training import AdversarialTraining
from adversarial_lightning.lightning_modules.adversary_critic import AdversaryCritic
from adversarial_lightning.lightning_modules.atent import ATENT
from adversarial_lightning.lightning_modules.base import Classifier, LossClassifier
from adversarial_lightning.lightning_modules.denoising_autoencoder import DenoisingAutoencoder
from adversarial_lightning.lightning_modules.er_classifier import ERClassifier
from adversarial_lightning.lightning_modules.margin_maximization import MarginMaximization
from adversarial_lightning.lightning_modules.rse import RSE
from adversarial_lightning.lightning_modules.schedules import Cosine, Exponential, OneCycle, Schedule, Steps
from adversarial_lightning.lightning_modules.standard import Standard
from adversarial_lightning.lightning_modules.trades import TRADES
from adversarial_lightning.lightning_modules.training_method import TrainingMethod
from adversarial_lightning.lightning_modules.vaecla import VAECLA
from adversarial_lightning.lightning_modules.vat import VAT

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
    "OneCycle",
    "Schedule",
    "Standard",
    "Steps",
    "TrainingMethod",
]
