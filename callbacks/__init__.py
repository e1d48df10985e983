"""Callbacks of training and evaluation loops. This file is the catalogue."""

from adversarial_lightning.callbacks.adversarial_images import AdversarialImages
from adversarial_lightning.callbacks.attack_evaluation import AttackEvaluation
from adversarial_lightning.callbacks.attack_grids import AttackGrids
from adversarial_lightning.callbacks.collapse_guard import CollapseGuard, TrainingCollapsed
from adversarial_lightning.callbacks.embedding_prior import EmbeddingPrior
from adversarial_lightning.callbacks.epsilon_warmup import EpsilonWarmup
from adversarial_lightning.callbacks.fit_whitening import FitWhitening
from adversarial_lightning.callbacks.moved_run import MovedRun
from adversarial_lightning.callbacks.network_pictures import NetworkPictures
from adversarial_lightning.callbacks.predictions import Predictions

__all__ = [
    "AdversarialImages",
    "AttackEvaluation",
    "AttackGrids",
    "CollapseGuard",
    "EmbeddingPrior",
    "EpsilonWarmup",
    "FitWhitening",
    "MovedRun",
    "NetworkPictures",
    "Predictions",
    "TrainingCollapsed",
]
