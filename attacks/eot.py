"""What attacks on defended models share: parts found by name, BPDA on demand, chains with checkpoints.

EOT proper, the mean of gradients, is in `attacks.gradient.input_gradient`: every gradient attack has it as `samples`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from adversarial_lightning.attacks.noise import Noise
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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


def purifiers(model: nn.Module) -> list[nn.Module]:
    """Every ``purifier`` inside `model`, the outermost first."""
    found = (getattr(m, "purifier", None) for m in model.modules())
    return [purifier for purifier in found if isinstance(purifier, nn.Module)]


def stochastic(model: nn.Module) -> bool:
    """Whether `model` or a part of it says that it draws random numbers (its attribute ``stochastic``)."""
    return any(getattr(m, "stochastic", False) for m in model.modules())


@contextmanager
def straight_through(module: Any, surrogate: Callable[[Tensor], Tensor] | None = None) -> Iterator[None]:
    """BPDA on demand (Athalye et al. 2018): in this context `module` is `surrogate` backwards, and itself forwards.

    Without a surrogate it is the identity backwards. Nothing inside `module` is differentiated, so an unrolled chain
    keeps no activations. A purifier that says that it is not differentiable has BPDA around it already
    (`defenses.Purified`), through a surrogate of its own: that one is replaced.
    """
    backwards = (lambda x: x) if surrogate is None else surrogate
    if not getattr(module, "differentiable", True):
        before = vars(module).get("surrogate")
        module.surrogate = backwards
        try:
            yield
        finally:
            if before is None:
                del module.surrogate
            else:
                module.surrogate = before
        return
    inputs: list[Tensor] = []

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        inputs.append(args[0])
        return (args[0].detach(), *args[1:])

    def leave(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        s = backwards(inputs.pop())
        return output.detach() + (s - s.detach())

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


@contextmanager
def side_by_side(model: nn.Module, copies: int, taken: dict[int, int]) -> Iterator[None]:
    """In this context `copies` of a batch, below each other, draw what as many passes in a row would have drawn.

    `taken` remembers how many numbers one pass takes from each `Noise` (by id): one copy writes it, more read it.
    Afterwards all streams are where the passes in a row would have left them.
    """
    drawn: list[Any] = [m for m in model.modules() if isinstance(getattr(m, "noise", None), Noise)]
    before: dict[Any, Noise] = {m: m.noise for m in drawn}
    streams = {id(noise): noise for noise in before.values()}
    if copies == 1:
        starts = {name: noise.counter for name, noise in streams.items()}
        yield
        taken |= {name: noise.counter - starts[name] for name, noise in streams.items()}
        return
    wide = {name: noise.repeat(copies, taken[name]) for name, noise in streams.items()}
    try:
        for m, noise in before.items():
            m.noise = wide[id(noise)]
        yield
    finally:
        for m, noise in before.items():
            m.noise = noise
        for name, noise in streams.items():
            noise.counter += copies * taken[name]
