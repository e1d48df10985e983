"""The gradient with respect to the input: taken here and nowhere else, so every gradient attack has EOT."""

import torch
from torch import Tensor, nn

from attacks.objectives import Objective


def input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, objective: Objective, samples: int = 1
) -> tuple[Tensor, Tensor]:
    """Gradient (like `x`) and value (B,) of the per-example `objective` at `x`, averaged over `samples` draws.

    Expectation over transformation (Athalye et al. 2018) averages gradients, not logits; each further forward of a
    stochastic model draws fresh numbers from the attacker's noise. Summed over the batch, never averaged: the gradient
    of an example does not depend on how many others it is batched with. Entries that are not finite count as zero, so
    that an iterate whose logits broke stays where it can be seen to break.
    """
    x = x.detach().requires_grad_()
    gradients, values = torch.zeros_like(x), x.new_zeros(len(x))
    for _ in range(samples):
        value = objective(model(x), y)
        gradients += torch.autograd.grad(value.sum(), x)[0]
        values += value.detach()
    return gradients.nan_to_num_(0.0, 0.0, 0.0) / samples, values / samples
