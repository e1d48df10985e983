"""What attacks on defended models share: parts found by name, BPDA on demand, chains with checkpoints.

EOT proper, the mean of gradients, is in `attacks.gradient.input_gradient`: every gradient attack has it as `samples`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attacks.noise import Noise


def part(model: nn.Module, name: str) -> Any:
    """The attribute `name` of the outermost module inside `model` that has one, such as ``purifier`` or ``detector``.

    Raises ValueError where nothing has it: an attack made for a defense must not run quietly without it.
    """
    for module in model.modules():
        if getattr(module, name, None) is not None:
            return getattr(module, name)
    raise ValueError(
        f"this attack needs a model with the attribute {name!r}, which {type(model).__name__} does not have: "
        f"put the defense that provides it in front of the classifier, or use PGD"
    )


@contextmanager
def straight_through(module: nn.Module) -> Iterator[None]:
    """BPDA on demand (Athalye et al. 2018): in this context `module` is the identity backwards, and itself forwards.

    Nothing inside it is differentiated, so an unrolled chain keeps no activations.
    """
    inputs: list[Tensor] = []

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        inputs.append(args[0])
        return (args[0].detach(), *args[1:])

    def leave(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs.pop()
        return output.detach() + (x - x.detach())

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
