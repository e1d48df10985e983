"""Several draws of a stochastic model in one pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from adversarial_lightning.attacks.core.noise import Noise


@contextmanager
def batched_draws(model: nn.Module, copies: int, taken: dict[int, int]) -> Iterator[None]:
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
