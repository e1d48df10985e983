"""Random Self-Ensemble: cross-entropy under the noise of a network's random layers (Liu et al. 2018).

Liu, Cheng, Zhang and Hsieh, "Towards Robust Neural Networks via Random Self-Ensemble", ECCV 2018.
"""

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise, noise_for
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.base import LossClassifier
from adversarial_lightning.lightning_modules.schedules import Schedule


class RSE(LossClassifier):
    """Minimises the cross-entropy of clean images in one draw of the network's own noise, keyed by sample.

    `validate` and `test` report the accuracy of single draws. The defense is the mean of the probabilities over many
    draws: evaluate with ``configs/defenses/rse.yaml``, and with attacks that average gradients over draws (EOT).

    Args:
        network: images in [0, 1] -> logits, with random layers, such as `networks.NoisyConvolutions`.
        optimizer: of the network's parameters.
        schedule: of the learning rate; none: constant.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        if not any(getattr(m, "stochastic", False) for m in network.modules()):
            raise UserError(
                f"RSE needs a network that draws noise, which {type(network).__name__} does not: put "
                "networks.NoisyConvolutions around it, or train with Standard"
            )

    def losses(self, x: Tensor, y: Tensor, noise: Noise) -> dict[str, Tensor]:
        with noise_for(self.network, noise):
            return {"loss": F.cross_entropy(self(x), y)}
