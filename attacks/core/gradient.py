"""Objectives of attacks and their gradients with respect to the input.

An objective is a per-example function of logits (B, K) and `y` that returns values (B,). Every gradient attack takes
its gradients here, so every one of them supports EOT (`eot_samples`).
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adversarial_lightning.attacks.core.checks import labels_only
from adversarial_lightning.attacks.core.eot_batched import batched_input_gradient, copies_per_pass
from adversarial_lightning.errors import UserError

Objective = Callable[[Tensor, Tensor], Tensor]
ObjectiveName = Literal["ce", "margin", "dlr", "kl"]


def input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, objective: Objective, eot_samples: int = 1
) -> tuple[Tensor, Tensor]:
    """Gradient (like `x`) and value (B,) of the per-example `objective` at `x`, averaged over `eot_samples` draws.

    Expectation over transformation (Athalye et al. 2018b) averages gradients, not logits. The objective is summed over
    the batch, so the gradient of an example does not depend on the other examples. Gradients that are not finite are 0.
    """
    if eot_samples > 1 and copies_per_pass(x) > 1:  # small batches: the same draws in fewer passes
        return batched_input_gradient(model, x, y, objective, eot_samples)
    x = x.detach().requires_grad_()
    gradient, value = torch.zeros_like(x), x.new_zeros(len(x))
    for _ in range(eot_samples):  # a stochastic model draws new numbers in every pass
        loss = objective(model(x), y)
        gradient += torch.autograd.grad(loss.sum(), x)[0]
        value += loss.detach()
    return gradient.nan_to_num_(0.0, 0.0, 0.0) / eot_samples, value / eot_samples


def gradient_and_logits(
    model: nn.Module, x: Tensor, y: Tensor, objective: Objective, eot_samples: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient and value of `input_gradient`, and the logits (B, K), all averaged over `eot_samples` draws."""
    draws: list[Tensor] = []

    def recorded(logits: Tensor, y: Tensor) -> Tensor:
        draws.append(logits.detach())
        return objective(logits, y)

    gradient, value = input_gradient(model, x, y, recorded, eot_samples)
    return gradient, value, draws[0] if eot_samples == 1 else torch.stack(draws).mean(0)


def jacobian(
    model: nn.Module, x: Tensor, heads: Callable[[Tensor], Tensor], eot_samples: int = 1
) -> tuple[Tensor, Tensor]:
    """Jacobian (B, C, ...) and values (B, C) of ``heads(logits)``, averaged over `eot_samples` draws.

    Costs one backward pass for each of the C heads. Derivatives that are not finite are 0.
    """
    x = x.detach().requires_grad_()
    rows, values = [], []
    for _ in range(eot_samples):
        value = heads(model(x))
        last = value.shape[1] - 1
        each = [torch.autograd.grad(value[:, c].sum(), x, retain_graph=c < last)[0] for c in range(last + 1)]
        rows.append(torch.stack(each, 1))
        values.append(value.detach())
    return torch.stack(rows).mean(0).nan_to_num_(0.0, 0.0, 0.0), torch.stack(values).mean(0)


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy with labels (B,) or target probabilities (B, K)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the logit of the label `y` (B,); positive if and only if misclassified."""
    labels_only(y)
    own = logits.gather(1, y[:, None])
    other = logits.masked_fill(torch.zeros_like(logits, dtype=torch.bool).scatter_(1, y[:, None], True), -torch.inf)
    return other.amax(1) - own[:, 0]


def _gap(gap: Tensor, logits: Tensor) -> Tensor:
    """Divisor of a difference of logits ratio: the `gap` (B,), or one rounding error of the logits where it is 0."""
    finfo = torch.finfo(logits.dtype)
    return torch.where(gap > 0, gap, (finfo.eps * logits.detach().abs().amax(1)).clamp_min(finfo.tiny))


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020a, eq. 6): margin over the gap between first and third logit."""
    if logits.shape[1] < 3:
        raise UserError(f"the dlr loss needs at least 3 classes, the model has {logits.shape[1]}: use loss: margin")
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / _gap(top[:, 0] - top[:, 2], top)


def dlr_targeted(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio (Croce and Hein 2020a, eq. 7): target minus label, over a gap of the top 4.

    `logits` (B, K), `label` and `target` (B,) -> (B,); positive where the target's logit exceeds the label's.
    """
    if logits.shape[1] < 4:
        raise UserError(
            f"the targeted dlr loss needs at least 4 classes, the model has {logits.shape[1]}: use loss: margin"
        )
    top = logits.topk(4, dim=1).values
    gain = logits.gather(1, target[:, None]) - logits.gather(1, label[:, None])
    return gain[:, 0] / _gap(top[:, 0] - (top[:, 2] + top[:, 3]) / 2, top)


def kl(logits: Tensor, y: Tensor) -> Tensor:
    """KL(y || softmax(logits)) for target probabilities `y` (B, K), the inner objective of TRADES."""
    if y.ndim != 2:
        raise UserError("the kl loss needs target probabilities (B, K), not labels: use loss: ce")
    return F.kl_div(F.log_softmax(logits, 1), y, reduction="none").sum(1)


OBJECTIVES: dict[str, Objective] = {"ce": ce, "margin": margin, "dlr": dlr, "kl": kl}
