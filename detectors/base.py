"""Detectors: one score an image, and a threshold above which the image is flagged."""

import warnings
from abc import abstractmethod

from torch import Tensor, nn

from adversarial_lightning.attacks.core.threshold import flagged
from adversarial_lightning.errors import UserError


class Detector(nn.Module):
    """Abstract base: images (B, C, H, W) in [0, 1] -> scores (B,), higher = more suspicious.

    Leaves write `score`: differentiable, because an honest attacker goes through it, and a property of the image, so
    that it does not depend on the rest of the batch. A score that is not a number counts as flagged. A detector with
    random parts declares ``stochastic`` and draws from `noise`, like a purifier.

    An image is flagged where its score lies above `theta` (`attacks.core.threshold`). The evaluation sets `theta` from
    clean held-out images, for the wanted false positive rate; None until then. `own_theta` is the threshold that the
    detector was fitted for, None where it has none; `seen` are the numbers of the test images that it was fitted on,
    which evaluation leaves out.
    """

    theta: float | None = None
    own_theta: float | None = None
    seen: frozenset[int] = frozenset()

    @abstractmethod
    def score(self, x: Tensor) -> Tensor:
        """Score of each image, (B,): higher is more suspicious."""

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x)

    def flag(self, x: Tensor) -> Tensor:
        """Mask (B,) of flagged images; warns where a score is not a number. ValueError without a threshold."""
        theta = self.own_theta if self.theta is None else self.theta
        if theta is None:
            raise UserError(f"{type(self).__name__} has no threshold yet: set theta")
        score = self.score(x)
        if bool(score.isnan().any()):
            warnings.warn(f"{int(score.isnan().sum())} scores are no numbers and count as flagged", stacklevel=2)
        return flagged(score, theta)


class DetectorGuardedModel(nn.Module):
    """Classifier with a `detector` beside it: images in [0, 1] -> logits, as without a detector.

    Detector-aware attacks find the detector here. Flagged images are counted afterwards, from the scores.

    Args:
        classifier: images -> logits.
        detector: scores the same images.
    """

    def __init__(self, classifier: nn.Module, detector: Detector) -> None:
        super().__init__()
        self.classifier, self.detector = classifier, detector

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)
        return logits
