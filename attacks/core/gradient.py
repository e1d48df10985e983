"""The gradient with respect to the input: taken here and nowhere else, so every gradient attack has EOT."""

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.eot_batched import batched_draws
from adversarial_lightning.attacks.core.objectives import Objective

# Values of a batch above which copies of it gain nothing on a CPU: 83 images of MNIST. (benchmarks/malade_chain.py)
_AT_ONCE = 2**16


def input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, objective: Objective, eot_samples: int = 1
) -> tuple[Tensor, Tensor]:
    """Gradient (like `x`) and value (B,) of the per-example `objective` at `x`, averaged over `eot_samples` draws.

    Expectation over transformation (Athalye et al. 2018) averages gradients, not logits; each further forward of a
    stochastic model draws fresh numbers from the attacker's noise. Summed over the batch, never averaged: the gradient
    of an example does not depend on how many others it is batched with. Entries that are not finite count as zero, so
    that an iterate whose logits broke stays where it can be seen to break.

    After the first draw, which tells how many numbers one takes, copies of a small batch go through the model together
    and draw the numbers that passes in a row would have drawn.
    """
    x = x.detach().requires_grad_()
    gradients, values = torch.zeros_like(x), x.new_zeros(len(x))
    at_once = _AT_ONCE if x.device.type == "cpu" else 64 * _AT_ONCE
    done, taken = 0, dict[int, int]()
    while done < eot_samples:
        copies = min(eot_samples - done, max(1, at_once // max(1, x.numel()))) if done else 1
        with batched_draws(model, copies, taken):
            logits = model(x.repeat(copies, *[1] * (x.ndim - 1)) if copies > 1 else x)
        value = torch.stack([objective(each, y) for each in logits.chunk(copies)]).sum(0)
        gradients += torch.autograd.grad(value.sum(), x)[0]
        values += value.detach()
        done += copies
    return gradients.nan_to_num_(0.0, 0.0, 0.0) / eot_samples, values / eot_samples
