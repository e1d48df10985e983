"""Norm of the score of the data density: large for unlikely images (MALADE, Srinivasan et al. 2021; Magnet).

Srinivasan, Rohrer, Marban, Müller, Samek and Nakajima, "Robustifying Models Against Adversarial Attacks by Langevin
Dynamics", 2021.
"""

from torch import Tensor, linalg, nn

from adversarial_lightning.defenses.base import check_trained_for
from adversarial_lightning.defenses.malade import Denoising, load_denoiser
from adversarial_lightning.detectors.base import Detector
from adversarial_lightning.networks import Denoiser


class ScoreNorm(Denoising, Detector):
    """Score norm ||(r(x) - x) / sigma2||_2 at the image itself, before any purifier (MALADE, Eqs. 12, 13).

    With an sDAE it is MALADE's detector, with a DAE Magnet's. The paper does not name the norm.
    Raises ValueError for an sDAE that was trained for another classifier.

    Args:
        classifier: images -> logits; evaluate.py hands over the defended model. Only checked against the denoiser.
        denoiser: the .ckpt file of a DAE or sDAE, or a `networks.Denoiser`.
    """

    def __init__(self, classifier: nn.Module, denoiser: Denoiser | str) -> None:
        super().__init__()
        self.denoiser = load_denoiser(denoiser)
        check_trained_for(type(self).__name__, self.denoiser.trained_for, classifier)

    def score(self, x: Tensor) -> Tensor:
        lengths: Tensor = linalg.vector_norm(self.denoiser.score(x).flatten(1), dim=1)
        return lengths
