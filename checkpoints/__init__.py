"""Checkpoints: safe rebuilding of networks, weights from elsewhere, digests, and files that are written whole."""

from adversarial_lightning.checkpoints.load import check_fit, load_checkpoint, load_network, open_network
from adversarial_lightning.checkpoints.spec import build, catalogue, describe

__all__ = [
    "build",
    "catalogue",
    "check_fit",
    "describe",
    "load_checkpoint",
    "load_network",
    "open_network",
]
