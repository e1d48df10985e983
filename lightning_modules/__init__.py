"""How a model is trained: one paper, one file. This file is the catalogue."""

from lightning_modules.adversarial_training import AdversarialTraining
from lightning_modules.atent import ATENT
from lightning_modules.base import Classifier, LossClassifier, Method
from lightning_modules.denoising_autoencoder import DenoisingAutoencoder
from lightning_modules.schedules import Cosine, OneCycle, Schedule, Steps
from lightning_modules.standard import Standard

__all__ = [
    "ATENT",
    "AdversarialTraining",
    "Classifier",
    "Cosine",
    "DenoisingAutoencoder",
    "LossClassifier",
    "Method",
    "OneCycle",
    "Schedule",
    "Standard",
    "Steps",
]
