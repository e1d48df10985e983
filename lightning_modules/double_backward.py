"""What methods that differentiate a gradient ask of trainer and network."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def check_trainer(trainer: pl.Trainer, what: str) -> None:
    """Raise ValueError where `trainer` would compute the gradient inside the loss in less than float32."""
    if trainer.precision not in ("32-true", "64-true"):
        raise ValueError(
            f"{what} differentiates a gradient, which is too small a number for {trainer.precision}, and loss scaling "
            "does not reach the inner one: use --trainer.precision 32-true"
        )


def check_network(network: nn.Module, what: str, remedy: str) -> None:
    """Raise ValueError where no second derivative exists (compiled), or none of a sample by itself (batch norm)."""
    for name, m in network.named_modules():
        if getattr(m, "_compiled_call_impl", None) is not None or hasattr(m, "_orig_mod"):
            raise ValueError(f"{what} differentiates a gradient, which torch.compile cannot: train the network eagerly")
        if isinstance(m, _BatchNorm) and m.training:
            raise ValueError(
                f"{what} needs the gradient of each sample by itself, and batch norm ({name}) mixes the samples of a "
                f"batch: {remedy}"
            )


def check_logits(logits: Tensor, what: str) -> None:
    """Raise ValueError unless `logits` is (B, K) with K of at least 2, and no table of probabilities."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"{what} compares the logits of classes and needs (B, K) with K >= 2, not {tuple(logits.shape)}: give a "
            "problem of two classes two logits"
        )
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-4).all()):
        raise ValueError(f"{what} needs logits and this network returns probabilities: remove its softmax")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """`network` in eval mode, its parameters still trained; every module gets its own mode back."""
    modes = [(m, m.training) for m in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for m, training in modes:
            m.training = training
