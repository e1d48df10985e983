"""VAT: virtual adversarial training, predictions that are smooth within an l2 ball (Miyato et al. 2016).

Miyato, Maeda, Koyama, Nakae and Ishii, "Distributional Smoothing with Virtual Adversarial Training", ICLR 2016.
"""

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise
from adversarial_lightning.attacks.core.norms import NORMS, batch_view
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.base import LossClassifier
from adversarial_lightning.lightning_modules.double_backward import check_logits
from adversarial_lightning.lightning_modules.schedules import Schedule


def divergence(logits: Tensor, p: Tensor) -> Tensor:
    """Divergence KL(p || softmax(logits)) of each row, (B,), with a constant `p` (B, K); both in float64.

    The virtual perturbation compares probabilities that are almost equal, and close to 1 if the network is confident.
    With a softmax in float32 its direction is rounding error (cosine with the exact one 0.9 at xi 0.01 and 0.1 at 1e-6;
    in float64 1.0000).
    """
    return F.kl_div(logits.double().log_softmax(1), p, reduction="none").sum(1).to(logits.dtype)


def probabilities(logits: Tensor) -> Tensor:
    """Probabilities (B, K) in float64, constants, as `divergence` takes them."""
    return logits.detach().double().softmax(1)


def virtual_perturbation(
    network: nn.Module, x: Tensor, p: Tensor, noise: Noise, eps: float, xi: float, iterations: int
) -> Tensor:
    """Perturbation of l2 length `eps` along which the divergence from `p` (B, K) grows fastest at `x` (B, ...).

    It runs `iterations` of the power method on the Hessian, from a random direction. Each takes the gradient at a
    distance of `xi` (l2, pixels), because at `x` itself the gradient is zero. A row without a gradient keeps its
    direction.
    """
    l2 = NORMS["l2"]
    d = l2.steepest(noise.normal(x), x)
    for _ in range(iterations):
        d = d.requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(network(x + xi * d), p).sum(), d)
        flat = batch_view(gradient.flatten(1).abs().amax(1) == 0, x)
        d = torch.where(flat, d, l2.steepest(gradient, x)).detach()
    return eps * d


class VAT(LossClassifier):
    """Minimises CE(f(x), y) + lambda KL(p(x) || p(x + r)), with p(x) constant and r the worst of l2 length eps.

    The defaults are the thesis' (Matyasko 2020, chapters 3 and 4). There the gradient of the divergence was taken at a
    distance of 1e-6, where float32 finds rounding errors; here at 0.01. As in the paper x + r is not clipped to
    [0, 1]. The network keeps its mode: dropout draws a mask for each pass.

    Args:
        network: images in [0, 1] -> logits.
        eps: l2 length of r, in pixels of [0, 1].
        divergence_weight: lambda, of the divergence.
        xi: distance at which the gradient of the divergence is taken.
        iterations: of the power method.
        optimizer: of the network's parameters.
        schedule: of the learning rate; none: constant.
    """

    def __init__(
        self,
        network: nn.Module,
        eps: float = 2.0,
        divergence_weight: float = 1.0,
        xi: float = 0.01,
        iterations: int = 1,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        if not (eps > 0 and xi > 0 and divergence_weight >= 0):
            given = f"eps ({eps}) and xi ({xi}) must be above 0"
            raise UserError(f"{given}, divergence_weight ({divergence_weight}) at least 0")
        if iterations < 1:
            raise UserError(f"iterations must be at least 1, not {iterations}: without any, r is random")
        self.eps, self.divergence_weight, self.xi, self.iterations = eps, divergence_weight, xi, iterations
        self.checked = False

    def losses(self, x: Tensor, y: Tensor, noise: Noise) -> dict[str, Tensor]:
        logits = self(x)
        if not self.checked:
            check_logits(logits, "VAT")
            self.checked = True
        data = F.cross_entropy(logits, y)
        p = probabilities(logits)
        r = virtual_perturbation(self.network, x, p, noise, self.eps, self.xi, self.iterations)
        smooth = divergence(self(x + r), p).mean()
        return {"loss": data + self.divergence_weight * smooth, "data": data, "divergence": smooth}
