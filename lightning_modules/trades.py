"""TRADES: clean accuracy against the divergence between neighbouring predictions (Zhang et al. 2019, eq. 5).

Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan, "Theoretically Principled Trade-off between Robustness and Accuracy", ICML
2019.
"""

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from adversarial_lightning.attacks import PGD, Attack, Noise
from adversarial_lightning.attacks.core.gradient import kl
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.base import LossClassifier
from adversarial_lightning.lightning_modules.schedules import Schedule
from adversarial_lightning.networks.eval_mode import frozen_eval

KL_PGD = PGD(loss="kl", eps=0.3, steps=40, step_size=0.01, start_std=0.001)


def kl_attack(attack: Attack, network: nn.Module, x: Tensor, noise: Noise) -> Tensor:
    """Attacked images x' (B, C, H, W): `attack` against the probabilities at `x`, constants, in eval mode."""
    with frozen_eval(network), torch.no_grad():
        p = network(x).softmax(1)
    return attack(network, x, p, noise)


def trades(clean: Tensor, attacked: Tensor, y: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """TRADES loss CE(clean, y) + beta KL(softmax(clean) || softmax(attacked)) of logits (B, K), and both its terms."""
    natural, divergence = F.cross_entropy(clean, y), kl(attacked, clean.softmax(1)).mean()
    return natural + beta * divergence, natural, divergence


class TRADES(LossClassifier):
    """Minimises CE(f(x), y) + beta KL(softmax f(x) || softmax f(x')), where x' maximises that divergence.

    The attack sees the network in eval mode and softmax f(x) as a constant: PGD with ``loss: kl`` and ``start_std:
    0.001`` is the paper's. In the loss both terms are differentiated at x as well as at x'.

    Args:
        network: images in [0, 1] -> logits.
        attack: makes x'; it is given probabilities (B, K), which the objectives ce and kl accept.
        beta: weight of the divergence, 1 / lambda of the paper.
        optimizer: of the network's parameters.
        schedule: of the learning rate; none: constant.
    """

    def __init__(
        self,
        network: nn.Module,
        attack: Attack = KL_PGD,
        beta: float = 6.0,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        if not beta >= 0:
            raise UserError(f"beta must be at least 0, not {beta}")
        self.attack, self.beta = attack, beta

    def losses(self, x: Tensor, y: Tensor, noise: Noise) -> dict[str, Tensor]:
        attacked = kl_attack(self.attack, self.network, x, noise)
        loss, natural, divergence = trades(self(x), self(attacked), y, self.beta)
        return {"loss": loss, "natural": natural, "divergence": divergence}
