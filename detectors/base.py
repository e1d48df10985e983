"""What every detector is: a score an image, and a threshold above which it is turned away."""

import warnings
from abc import abstractmethod

from torch import Tensor, nn

from adversarial_lightning.errors import UserError


class Detector(nn.Module):
    """Abstract base: images (B, C, H, W) in [0, 1] -> scores (B,), higher = more suspicious.

    Leaves write `score`: differentiable, because an honest attacker goes through it, and a property of the image, so
    that it does not depend on the rest of the batch. A score that is not a number counts as flagged. A detector with
    random parts declares ``stochastic`` and draws from `noise`, like a purifier.

    An image is flagged where its score lies above `theta`. Whoever evaluates sets it to the false positive rate that
    is wanted, from clean held-out images; None until then. `own_theta` is the threshold that the detector was fitted
    for, None where it has none; `seen` are the numbers of the test images that it was fitted on, which evaluation
    leaves out.
    """

    theta: float | None = None
    own_theta: float | None = None
    seen: frozenset[int] = frozenset()

    @abstractmethod
    def score(self, x: Tensor) -> Tensor:
        """How suspicious each image is, (B,)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x)

    def flag(self, x: Tensor) -> Tensor:
        """Which images are turned away, (B,); warns where a score is not a number. ValueError without a threshold."""
        theta = self.own_theta if self.theta is None else self.theta
        if theta is None:
            raise UserError(f"{type(self).__name__} has no threshold yet: set theta")
        score = self.score(x)
        if bool(score.isnan().any()):
            warnings.warn(f"{int(score.isnan().sum())} scores are no numbers and count as flagged", stacklevel=2)
        return ~(score <= theta)


class DetectorGuardedModel(nn.Module):
    """A classifier with a `detector` beside it: images in [0, 1] -> logits, as without one.

    Detector-aware attacks find the detector here. What it turns away is counted afterwards, from its scores.

    Args:
        classifier: images -> logits.
        detector: looks at the same images.
    """

    def __init__(self, classifier: nn.Module, detector: Detector) -> None:
        super().__init__()
        self.classifier, self.detector = classifier, detector

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)
        return logits
