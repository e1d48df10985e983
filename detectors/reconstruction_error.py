"""Reconstruction error of an autoencoder: large for images unlike its training data (Magnet, Meng and Chen 2017).

Meng and Chen, "MagNet: a Two-Pronged Defense against Adversarial Examples", CCS 2017.
"""

from typing import Literal

from torch import Tensor, nn

from adversarial_lightning.defenses.base import check_trained_for
from adversarial_lightning.defenses.malade import load_denoiser
from adversarial_lightning.detectors.base import Detector
from adversarial_lightning.errors import UserError
from adversarial_lightning.networks import Denoiser


class ReconstructionError(Detector):
    """Mean over pixels of |x - r(x)|^p at the image itself, before any purifier: Magnet's own detector.

    Their MNIST defense has two, p = 1 and p = 2, on autoencoders of their own, and a threshold each at a false positive
    rate of 0.001. What MALADE's paper calls Magnet's detector is `ScoreNorm`.
    Raises ValueError for an autoencoder that was trained for another classifier.

    Args:
        classifier: images -> logits; evaluate.py hands over the defended model. Only checked against the denoiser.
        denoiser: the .ckpt file of a DAE, or a `networks.Denoiser`.
        p: 1 or 2.
    """

    def __init__(self, classifier: nn.Module, denoiser: Denoiser | str, p: Literal[1, 2] = 1) -> None:
        super().__init__()
        if p not in (1, 2):
            raise UserError(f"p is 1 or 2, not {p}")
        self.denoiser, self.p = load_denoiser(denoiser), p
        check_trained_for(type(self).__name__, self.denoiser.trained_for, classifier)

    def score(self, x: Tensor) -> Tensor:
        moved: Tensor = (x - self.denoiser(x)).flatten(1).abs()
        return moved.pow(self.p).mean(1)
