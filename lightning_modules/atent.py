"""ATENT: adversarial training by entropic regularisation of the data (Jagatap et al. 2020, Algorithms 1 and 2).

Jagatap, Joshi, Basak Chowdhury, Garg and Hegde, "Adversarially Robust Learning via Entropic Regularization", 2020.
"""

from contextlib import nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from adversarial_lightning.attacks import Langevin
from adversarial_lightning.attacks.core.gradient import ce, input_gradient
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.base import Classifier
from adversarial_lightning.lightning_modules.schedules import Schedule
from adversarial_lightning.lightning_modules.training_method import Batch
from adversarial_lightning.networks.eval_mode import frozen_eval


def ema_weights(steps: int, alpha: float) -> list[float]:
    """Weights c_k of the losses at the iterates x'^0 ... x'^K in the final average mu (line 10 of Algorithm 1).

    mu_k = (1 - alpha) mu_{k-1} + alpha L(x'^k), mu_0 = 0, so c_0 = 0, c_k = alpha (1 - alpha)^(K - k), and their sum
    is 1 - (1 - alpha)^K: no bias correction.
    """
    return [0.0] + [alpha * (1 - alpha) ** (steps - k) for k in range(1, steps + 1)]


class ATENT(Classifier):
    """Minimises the moving average of the losses at K samples near x, which Langevin ascent draws.

    The gradient of the average is the weighted sum of the gradients at the K iterates. Each is computed at its iterate,
    from the forward pass that the next Langevin step needs anyway: K + 1 forward passes, and one graph in memory at a
    time, for any K.

    Departures from the paper, besides those of the sampler (`attacks.Langevin`): samples are constants, as in the
    paper's algorithms, so the factor (L + 1) of its Appendix B.1, by which the density of the samples depends on the
    weights, is left out.

    Args:
        network: images in [0, 1] -> logits.
        sampler: the Langevin sampler; `eps` is the radius, 1/gamma in Algorithm 2; `pull` is gamma of Algorithm 1.
        alpha: weight of the newest loss in the average, in (0, 1]; 1 trains on the last sample only.
        tail_tol: iterates whose weight in the average is at most this add no gradient of the parameters; 0: all do.
        sampler_mode: train samples in train mode, with dropout and batch statistics, and shares the forward pass, as
            the authors do; eval samples in eval mode, for up to twice as many forward passes.
        optimizer: of the network's parameters.
        schedule: of the learning rate; none: constant.
    """

    def __init__(
        self,
        network: nn.Module,
        sampler: Langevin,
        alpha: float = 0.9,
        tail_tol: float = 1e-4,
        sampler_mode: Literal["train", "eval"] = "train",
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        if not 0 < alpha <= 1:
            raise UserError(f"alpha must lie in (0, 1], not {alpha}")
        if not 0 <= tail_tol < alpha:
            raise UserError(f"tail_tol must lie in [0, alpha), not {tail_tol}: the last sample must count")
        if sampler.eot_samples != 1 or sampler.targeted:
            raise UserError("ATENT samples from the loss of the label itself: sampler.eot_samples is 1, targeted false")
        self.automatic_optimization = False
        self.sampler, self.alpha, self.tail_tol, self.sampler_mode = sampler, alpha, tail_tol, sampler_mode
        self.reach: list[Tensor] = []  # of each batch, mean l2 displacement over the radius

    def on_fit_start(self) -> None:
        if self.trainer.precision == "16-mixed":
            raise UserError(
                "ATENT takes input and weight gradients from one backward pass, which the loss scaling of 16-mixed "
                "would mix up: use --trainer.precision bf16-mixed or 32-true"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y, index = batch
        noise, sampler = self.noise(index), self.sampler
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        z, mu = sampler.begin(x, noise), x.new_zeros(())
        for k, c in enumerate(ema_weights(sampler.steps, self.alpha)):
            if k == sampler.steps:
                mu = mu + c * self.weight_gradient(z, y, c, sync=True)
                break
            gradient, loss = self.sample_gradient(z, y, c)
            mu = mu + c * loss
            z = sampler.step(z, gradient, x, noise, last=k == sampler.steps - 1)
        optimizer.step()
        if self.schedule is not None:
            self.lr_schedulers().step()  # type: ignore[union-attr]
        displacement = (z - x).flatten(1).norm(dim=1).mean()
        if sampler.eps:
            self.reach.append(displacement / sampler.eps)
        self.log_dict({"train/loss": mu, "train/displacement": displacement})
        return mu

    def sample_gradient(self, z: Tensor, y: Tensor, c: float) -> tuple[Tensor, Tensor]:
        """Gradient of the summed loss at the iterate `z`, and the mean loss; adds c times the parameters' gradient."""
        counts = c > max(self.tail_tol, 1e-30)  # below 1e-30, adding c times a gradient changes no float
        if self.sampler_mode == "eval" or not counts:
            with frozen_eval(self.network) if self.sampler_mode == "eval" else nullcontext():
                gradient, losses = input_gradient(self.network, z, y, ce)
            return gradient, self.weight_gradient(z, y, c) if counts else losses.mean()
        z = z.detach().requires_grad_()
        loss = self.weight_gradient(z, y, c)
        assert z.grad is not None
        # Of c times the mean loss; a sample's step wants the gradient of its own loss.
        return z.grad * (len(z) / c), loss

    def weight_gradient(self, z: Tensor, y: Tensor, c: float, sync: bool = False) -> Tensor:
        """Mean loss at `z`; adds c times its gradient to the parameters' gradient (and to z's, if it requires one)."""
        loss = F.cross_entropy(self.network(z), y)
        blocked = getattr(self.trainer.strategy, "block_backward_sync", None)
        with nullcontext() if sync or blocked is None else blocked():  # one exchange between processes a step
            self.manual_backward(c * loss)
        return loss.detach()

    def on_train_epoch_end(self) -> None:
        """Warn if l2 samples end far from their radius: the sampler's pull then needs calibration."""
        mean = float(torch.stack(self.reach).mean()) if self.reach else 1.0
        self.reach.clear()
        if self.sampler.norm == "l2" and not 0.7 <= mean <= 1.3:
            rank_zero_warn(
                f"ATENT's l2 samples end {mean:.3g} radii from the image on average, outside 0.7 to 1.3: calibrate "
                "sampler.pull (less pull, longer way) or sampler.step_size"
            )
