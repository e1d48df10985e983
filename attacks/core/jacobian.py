"""What minimum-norm attacks ask of a model: the gradient together with the logits, and Jacobians of a few outputs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.gradient import input_gradient
from adversarial_lightning.attacks.core.objectives import Objective


def gradient_and_logits(
    model: nn.Module, x: Tensor, y: Tensor, objective: Objective, eot_samples: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """`input_gradient`'s gradient and value, and the logits (B, K) behind them, averaged over `eot_samples` draws."""
    seen: list[Tensor] = []

    def watched(logits: Tensor, y: Tensor) -> Tensor:
        seen.append(logits.detach())
        return objective(logits, y)

    gradient, value = input_gradient(model, x, y, watched, eot_samples)
    return gradient, value, seen[0] if eot_samples == 1 else torch.stack(seen).mean(0)


def jacobian(
    model: nn.Module, x: Tensor, heads: Callable[[Tensor], Tensor], eot_samples: int = 1
) -> tuple[Tensor, Tensor]:
    """Jacobian (B, C, ...) and values (B, C) of ``heads(logits)``, one backward pass per head; averaged (EOT).

    Derivatives that are not finite count as zero.
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
