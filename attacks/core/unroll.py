"""Chains of many steps, differentiated in the memory of one."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adversarial_lightning.attacks.core.noise import Noise


def unroll(step: Callable[[Tensor, Noise], Tensor], x: Tensor, noise: Noise, steps: int) -> Tensor:
    """``x = step(x, noise)`` applied `steps` times, keeping no activations: each step is recomputed backwards.

    Memory is that of one step plus `steps` images, time one more forward. A recomputed step draws from `noise` where
    it drew the first time, so the gradient belongs to the chain that was run; `noise` ends where a plain loop leaves
    it. `step` must take random numbers from the `Noise` it is given and from nowhere else.
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
