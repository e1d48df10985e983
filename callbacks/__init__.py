"""What happens around the loop. This file is the catalogue."""

from callbacks.adversarial_images import AdversarialImages
from callbacks.attack_evaluation import AttackEvaluation
from callbacks.attack_grids import AttackGrids
from callbacks.collapse_guard import CollapseGuard, TrainingCollapsed
from callbacks.embedding_prior import EmbeddingPrior
from callbacks.epsilon_warmup import EpsilonWarmup
from callbacks.fit_whitening import FitWhitening
from callbacks.network_pictures import NetworkPictures
from callbacks.predictions import Predictions

__all__ = [
    "AdversarialImages",
    "AttackEvaluation",
    "AttackGrids",
    "CollapseGuard",
    "EmbeddingPrior",
    "EpsilonWarmup",
    "FitWhitening",
    "NetworkPictures",
    "Predictions",
    "TrainingCollapsed",
]
