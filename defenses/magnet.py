"""Magnet's reformer: an autoencoder's reconstruction replaces the image (Meng and Chen 2017).

Meng and Chen, "MagNet: a Two-Pronged Defense against Adversarial Examples", CCS 2017.
"""

from torch import Tensor

from adversarial_lightning.defenses.base import Purifier
from adversarial_lightning.defenses.malade import Denoising, broken_to_nan, load_denoiser
from adversarial_lightning.networks import Denoiser


class Magnet(Denoising, Purifier):
    """Reconstruction r(x), clipped to [0, 1] (differentiable, deterministic): one MALA step, alpha = sigma2, no noise.

    Its detector is `detectors.ReconstructionError`, in MALADE's paper `detectors.ScoreNorm`. The original's networks
    and training: configs/experiments/magnet_original_mnist.yaml.

    Args:
        denoiser: the .ckpt file of a DAE, or a `networks.Denoiser`.
    """

    def __init__(self, denoiser: Denoiser | str) -> None:
        super().__init__()
        self.denoiser = load_denoiser(denoiser)
        self.trained_for = self.denoiser.trained_for

    def forward(self, x: Tensor) -> Tensor:
        return broken_to_nan(self.denoiser(x)).clamp(0, 1)
