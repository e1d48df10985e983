"""EOT in batches: several draws of a stochastic model in one forward pass, for speed only.

The numbers drawn are the same as those of one pass for each draw.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.noise import Noise

# Values of a batch above which copies of it gain nothing on a CPU: 83 images of MNIST. (benchmarks/malade_chain.py)
_AT_ONCE = 2**16


def copies_per_pass(x: Tensor) -> int:
    """Number of copies of the batch `x` that one forward pass takes, at least 1."""
    limit = _AT_ONCE if x.device.type == "cpu" else 64 * _AT_ONCE
    return max(1, limit // max(1, x.numel()))


def batched_input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, objective: Callable[[Tensor, Tensor], Tensor], eot_samples: int
) -> tuple[Tensor, Tensor]:
    """Compute `input_gradient` with several copies of the batch in each pass.

    The first pass takes one copy: it shows how many random numbers one draw needs.
    """
    x = x.detach().requires_grad_()
    gradient, value = torch.zeros_like(x), x.new_zeros(len(x))
    done, used = 0, dict[int, int]()
    while done < eot_samples:
        copies = min(eot_samples - done, copies_per_pass(x)) if done else 1
        with batched_draws(model, copies, used):
            logits = model(x.repeat(copies, *[1] * (x.ndim - 1)) if copies > 1 else x)
        loss = torch.stack([objective(each, y) for each in logits.chunk(copies)]).sum(0)
        gradient += torch.autograd.grad(loss.sum(), x)[0]
        value += loss.detach()
        done += copies
    return gradient.nan_to_num_(0.0, 0.0, 0.0) / eot_samples, value / eot_samples


@contextmanager
def batched_draws(model: nn.Module, copies: int, used: dict[int, int]) -> Iterator[None]:
    """Let `copies` of a batch, stacked along the rows, draw the numbers of as many consecutive passes.

    `used` holds how many numbers one pass takes from each `Noise` (by id): a pass with one copy writes it, a pass with
    more copies reads it. Afterwards every stream is where the consecutive passes would have left it.
    """
    modules: list[Any] = [m for m in model.modules() if isinstance(getattr(m, "noise", None), Noise)]
    before: dict[Any, Noise] = {m: m.noise for m in modules}
    streams = {id(noise): noise for noise in before.values()}
    if copies == 1:
        starts = {name: noise.counter for name, noise in streams.items()}
        yield
        used |= {name: noise.counter - starts[name] for name, noise in streams.items()}
        return
    wide = {name: noise.repeat(copies, used[name]) for name, noise in streams.items()}
    try:
        for m, noise in before.items():
            m.noise = wide[id(noise)]
        yield
    finally:
        for m, noise in before.items():
            m.noise = noise
        for name, noise in streams.items():
            noise.counter += copies * used[name]
