"""ER-Detector: density of an image's embedding among those of its class (Li et al. 2021, Algorithm 2).

Li, Min, Lee, Yu, Kruus, Wang and Hsieh, "Towards Robustness of Deep Neural Networks via Regularization", ICCV 2021.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.detectors.density import ClassDensities
from adversarial_lightning.detectors.fitted import FittedDetector
from adversarial_lightning.detectors.kernel_density import fit_densities, width
from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.eval_mode import frozen_eval
from adversarial_lightning.networks.features import bends, encoder_of, outputs


class ERDetector(FittedDetector):
    """Log density of the code among the codes of training images of the predicted class.

    ER1 uses the embedding Z = Q(x), ER2 at Z' = means of the hidden layers of Q, then Q(x). The paper writes
    KDE(x); the density is that of the code. Neither its width, chosen on training images where none is given, nor the
    kind of means is printed. Z' is scaled to mean 0 and standard deviation 1 of the training codes: its parts differ
    in scale.
    Raises ValueError for a network without an encoder.

    Args:
        classifier: images -> logits, with a part `encoder`, such as `networks.ERNet`.
        code: embedding for ER1, combined for ER2.
        hidden_stat: one mean a layer (after its activation), or one a channel.
        sigma: width of the kernel exp(-d^2 / sigma^2).
        h: the same as scikit-learn writes it, sigma / sqrt(2).
        fitted: the file that evaluate.py fit-detector wrote.
    """

    def __init__(
        self,
        classifier: nn.Module,
        code: Literal["embedding", "combined"] = "embedding",
        hidden_stat: Literal["layer", "channel"] = "layer",
        sigma: float | None = None,
        h: float | None = None,
        fitted: str | None = None,
    ) -> None:
        super().__init__(classifier)
        self.code, self.hidden_stat, self.sigma, self.h = code, hidden_stat, sigma, h
        encoder = encoder_of(classifier)
        if encoder is None:
            raise UserError(f"ERDetector needs a network with an encoder: {type(classifier).__name__} has none")
        self.encoder = encoder
        self.hidden = [n for n in bends(classifier, pooling=False) if n.startswith(f"{self.encoder}.")]
        self.densities = ClassDensities(width(sigma, h), standardise=code == "combined")
        self.load(fitted)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and codes (B, k), or (B, layers + k) for the combined code."""
        hidden = self.hidden if self.code == "combined" else []
        logits, found = outputs(self.classifier, x, [*hidden, self.encoder])
        if self.hidden_stat == "layer":
            means = [found[name].flatten(1).mean(1, keepdim=True) for name in hidden]
        else:
            means = [found[name].flatten(2).mean(2) for name in hidden]
        return logits, torch.cat([*means, found[self.encoder].flatten(1)], 1)

    def fit_reference(self, images: Any, batch_size: int = 128) -> None:
        with frozen_eval(self), torch.no_grad():
            fit_densities(self.densities, self.codes, images, batch_size, self.weight.device)

    def features(self, x: Tensor) -> Tensor:
        logits, codes = self.codes(x)
        density: Tensor = self.densities(codes, logits.argmax(1))
        return density[:, None]
