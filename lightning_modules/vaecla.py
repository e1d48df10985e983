"""VAE-CLA: a classifier on Gaussian codes, each regularised towards N(0, I) (baseline of Li et al. 2021).

Li, Min, Lee, Yu, Kruus, Wang and Hsieh, "Towards Robustness of Deep Neural Networks via Regularization", ICCV 2021.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.base import Classifier
from adversarial_lightning.lightning_modules.er_classifier import check_parts
from adversarial_lightning.lightning_modules.schedules import Schedule
from adversarial_lightning.lightning_modules.training_method import Batch


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence KL(N(mean, exp(log_variance)) || N(0, I)) of each row, (B, k) and (B, k) -> (B,)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)


class VAECLA(Classifier):
    """Minimises CE(C(z), y) + kl_weight * KL(N(mu(x), sigma(x)^2) || N(0, I)), z = mu(x) + sigma(x) e with e normal.

    The last dense layer of the encoder gives mu; one beside it, on the same features, gives log sigma^2. Inference is
    C(mu(x)), the network itself, deterministic. The paper names neither decoder nor weight nor rates. Here is no
    decoder, and encoder and classifier have optimizers of their own with the rates of E-CLA and ER-Classifier-minus,
    with which Fig. 4 compares it.

    Args:
        network: images in [0, 1] -> logits, with `encoder`, which ends in a dense layer, `classifier` and `embedding`.
        kl_weight: weight of the KL, which the paper says conflicts with the cross-entropy: try 1e-3, 1e-2, 0.1 and 1.
        optimizer: of the encoder and of the layer that gives log sigma^2.
        classifier_optimizer: of the classifier.
        schedule: of both learning rates; none: constant.
    """

    network: Any  # with encoder, classifier and embedding

    def __init__(
        self,
        network: nn.Module,
        kl_weight: float = 1e-2,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-4),
        classifier_optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=5e-6),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        check_parts(network, "VAECLA")
        if not kl_weight >= 0:
            raise UserError(f"kl_weight must be at least 0, not {kl_weight}")
        mean = self.network.encoder[-1]
        if not isinstance(mean, nn.Linear):
            raise UserError(f"VAECLA needs an encoder that ends in a dense layer, not in {type(mean).__name__}")
        self.automatic_optimization = False
        self.kl_weight = kl_weight
        self.extra_networks = [(self.network.classifier, classifier_optimizer, schedule)]
        self.log_variance = nn.Linear(mean.in_features, mean.out_features)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y, index = batch
        losses, optimizers = self.losses(x, y, self.noise(index)), list[Any](self.optimizers())
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(losses["loss"])
        for optimizer in optimizers:
            optimizer.step()
        schedulers: Any = self.lr_schedulers() or []
        for scheduler in schedulers:
            scheduler.step()
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        return losses["loss"].detach()

    def losses(self, x: Tensor, y: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Named scalars of one batch; ``loss`` is minimised."""
        features = self.network.encoder[:-1](x)
        mean, log_variance = self.network.encoder[-1](features), self.log_variance(features)
        z = mean + (log_variance / 2).exp() * noise.normal(mean.detach())
        data, kl = F.cross_entropy(self.network.classifier(z), y), kl_to_standard_normal(mean, log_variance).mean()
        return {"loss": data + self.kl_weight * kl, "data": data, "kl": kl}
