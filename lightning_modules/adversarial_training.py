"""Adversarial training: cross-entropy of attacked images (Madry et al. 2018; Goodfellow et al. 2015).

Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018;
Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015.
"""

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from adversarial_lightning.attacks import Attack, Noise
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.base import LossClassifier
from adversarial_lightning.lightning_modules.schedules import Schedule


class AdversarialTraining(LossClassifier):
    """Minimises (1 - clean_weight) CE(f(x'), y) + clean_weight CE(f(x), y), x' = attack(f, x, y).

    With PGD and weight 0 this is PGD-AT; its checkpoint with the best held-out robust accuracy, ``best.ckpt``, is
    PGD-AT(E) (Rice et al. 2020). With FGSM and weight 0.5 it is the mixture of Goodfellow et al. (after
    eq. 5). The attack sees the network in eval mode.

    Args:
        network: images in [0, 1] -> logits.
        attack: makes x'.
        clean_weight: share of the clean loss, in [0, 1).
        optimizer: of the network's parameters.
        schedule: of the learning rate; none: constant.
    """

    def __init__(
        self,
        network: nn.Module,
        attack: Attack,
        clean_weight: float = 0.0,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        if not 0 <= clean_weight < 1:
            raise UserError(f"clean_weight must lie in [0, 1), not {clean_weight}; for clean training use Standard")
        self.attack, self.clean_weight = attack, clean_weight

    def losses(self, x: Tensor, y: Tensor, noise: Noise) -> dict[str, Tensor]:
        adversarial = F.cross_entropy(self(self.attack(self.network, x, y, noise)), y)
        if not self.clean_weight:
            return {"loss": adversarial}
        clean = F.cross_entropy(self(x), y)
        mixture = torch.lerp(adversarial, clean, self.clean_weight)
        return {"loss": mixture, "adversarial": adversarial, "clean": clean}
