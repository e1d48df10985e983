"""Gradient checkpointing: chains of many steps, differentiated in the memory of one step."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adversarial_lightning.attacks.core.noise import Noise


def unroll(step: Callable[[Tensor, Noise], Tensor], x: Tensor, noise: Noise, steps: int) -> Tensor:
    """Apply ``x = step(x, noise)`` `steps` times without keeping activations; the backward pass recomputes the steps.

    It takes the memory of one step plus `steps` images, and the time of one more forward pass. A recomputed step draws
    the same numbers as before, so the gradient is that of the chain that was run. Afterwards `noise` is where a plain
    loop leaves it. `step` must take its random numbers from the `Noise` it is given and from nowhere else.
    """
    for _ in range(steps):
        first, last = noise.counter, noise.counter

        def replay(z: Tensor, first: int = first) -> Tensor:
            nonlocal last
            own = Noise(noise.key, first)
            z = step(z, own)
            last = own.counter
            return z

        if torch.is_grad_enabled() and x.requires_grad:
            # The global generator is not used, so it is neither saved nor restored.
            x = checkpoint(replay, x, use_reentrant=False, preserve_rng_state=False)
        else:
            x = replay(x)
        noise.counter = last
    return x
