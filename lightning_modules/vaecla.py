"""VAE-CLA: a classifier on Gaussian codes, each regularised towards N(0, I) (a baseline of the ER-Classifier)."""

from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.base import LossClassifier
from adversarial_lightning.lightning_modules.er_classifier import check_parts
from adversarial_lightning.lightning_modules.schedules import Schedule


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence KL(N(mean, exp(log_variance)) || N(0, I)) of each row, (B, k) and (B, k) -> (B,)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)


class VAECLA(LossClassifier):
    """Minimises CE(C(z), y) + kl_weight * KL(N(mu(x), sigma(x)^2) || N(0, I)), z = mu(x) + sigma(x) e with e normal.

    The last dense layer of the encoder gives mu; one beside it, on the same features, gives log sigma^2. Inference is
    C(mu(x)), the network itself, deterministic. There is no decoder: the paper names none.

    Args:
        network: images in [0, 1] -> logits, with `encoder`, which ends in a dense layer, `classifier` and `embedding`.
        kl_weight: weight of the KL, which the paper says conflicts with the cross-entropy: try 1e-3, 1e-2, 0.1 and 1.
        optimizer: of all parameters.
        schedule: of the learning rate; none: constant.
    """

    network: Any  # with encoder, classifier and embedding

    def __init__(
        self,
        network: nn.Module,
        kl_weight: float = 1e-2,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-4),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        check_parts(network, "VAECLA")
        if not kl_weight >= 0:
            raise UserError(f"kl_weight must be at least 0, not {kl_weight}")
        mean = self.network.encoder[-1]
        if not isinstance(mean, nn.Linear):
            raise UserError(f"VAECLA needs an encoder that ends in a dense layer, not in {type(mean).__name__}")
        self.kl_weight = kl_weight
        self.log_variance = nn.Linear(mean.in_features, mean.out_features)

    def losses(self, x: Tensor, y: Tensor, noise: Noise) -> dict[str, Tensor]:
        features = self.network.encoder[:-1](x)
        mean, log_variance = self.network.encoder[-1](features), self.log_variance(features)
        z = mean + (log_variance / 2).exp() * noise.normal(mean.detach())
        data, kl = F.cross_entropy(self.network.classifier(z), y), kl_to_standard_normal(mean, log_variance).mean()
        return {"loss": data + self.kl_weight * kl, "data": data, "kl": kl}
