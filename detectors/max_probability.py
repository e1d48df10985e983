"""Maximum-probability detector: flags images of low confidence (Hendrycks and Gimpel 2017).

Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks", ICLR
2017.
"""

import torch
from torch import Tensor, nn

from adversarial_lightning.detectors.base import Detector


class MaxProbability(Detector):
    """Score 1 - max_k softmax(f(x))_k, in [0, 1 - 1/K]; needs no training.

    Computed as the sum of the other probabilities, which tells apart images of which the classifier is so sure that
    1 - p would be 0 in float32.

    Args:
        classifier: images -> logits; evaluate.py hands over the defended model.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def score(self, x: Tensor) -> Tensor:
        log_p: Tensor = self.classifier(x).log_softmax(1)
        others = log_p.scatter(1, log_p.argmax(1, keepdim=True), -torch.inf)
        return others.logsumexp(1).exp()
