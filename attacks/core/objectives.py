"""What an attack increases: per-example functions of the logits, (B, K) and `y` -> (B,)."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from adversarial_lightning.errors import UserError

Objective = Callable[[Tensor, Tensor], Tensor]
ObjectiveName = Literal["ce", "margin", "dlr", "kl"]


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy with labels (B,) or target probabilities (B, K)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the logit of the label `y` (B,); positive exactly where misclassified."""
    own = logits.gather(1, y[:, None])
    other = logits.masked_fill(torch.zeros_like(logits, dtype=torch.bool).scatter_(1, y[:, None], True), -torch.inf)
    return other.amax(1) - own[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, eq. 6): the margin over the gap of first to third logit."""
    if logits.shape[1] < 3:
        raise UserError(f"the dlr loss needs at least 3 classes, the model has {logits.shape[1]}: use loss: margin")
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


def dlr_targeted(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio (Croce and Hein 2020a, eq. 7): target minus label, over a gap of the top 4.

    `logits` (B, K), `label` and `target` (B,) -> (B,); positive only where the label has lost.
    """
    if logits.shape[1] < 4:
        raise UserError(
            f"the targeted dlr loss needs at least 4 classes, the model has {logits.shape[1]}: use loss: margin"
        )
    top = logits.topk(4, dim=1).values
    gain = logits.gather(1, target[:, None]) - logits.gather(1, label[:, None])
    return gain[:, 0] / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(1e-12)


def kl(logits: Tensor, y: Tensor) -> Tensor:
    """KL(y || softmax(logits)) for target probabilities `y` (B, K) (TRADES' inner objective)."""
    if y.ndim != 2:
        raise UserError("the kl loss needs target probabilities (B, K), not labels: use loss: ce")
    return F.kl_div(F.log_softmax(logits, 1), y, reduction="none").sum(1)


OBJECTIVES: dict[str, Objective] = {"ce": ce, "margin": margin, "dlr": dlr, "kl": kl}
