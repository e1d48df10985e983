"""Tools of methods that differentiate a gradient: gradients of pairs, and checks of trainer and network."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.eval_mode import are_probabilities


def row_norm(gradient: Tensor, q: int, rows: int = 1) -> Tensor:
    """Norm l_q over all dimensions but the first `rows`; its own gradient at zero is zero."""
    norms: Tensor = torch.linalg.vector_norm(gradient.flatten(rows), ord=q, dim=-1)
    return norms


def pair_gradients(pairs: Tensor, x: Tensor, create_graph: bool = False, batched: bool = False) -> Tensor:
    """Gradient with respect to `x` (B, ...) of each column of `pairs` (B, C), as (C, B, ...).

    `batched` computes all columns in one pass: fewer launches, which is what counts on a GPU. One after the other
    takes less memory and, with convolutions on a CPU, half the time.
    """
    if batched:
        basis = torch.eye(pairs.shape[1], dtype=pairs.dtype, device=pairs.device)[:, None].expand(-1, len(pairs), -1)
        return torch.autograd.grad(
            pairs, x, basis, retain_graph=True, create_graph=create_graph, is_grads_batched=True
        )[0]
    columns = pairs.sum(0).unbind()
    return torch.stack([torch.autograd.grad(c, x, retain_graph=True, create_graph=create_graph)[0] for c in columns])


def check_trainer(trainer: pl.Trainer, what: str) -> None:
    """Raise ValueError if `trainer` would compute the gradient inside the loss in less than float32."""
    if trainer.precision not in ("32-true", "64-true"):
        raise UserError(
            f"{what} differentiates a gradient, which is too small a number for {trainer.precision}, and loss scaling "
            "does not reach the inner one: use --trainer.precision 32-true"
        )


def check_network(network: nn.Module, what: str, remedy: str) -> None:
    """Raise ValueError if `network` has no second derivative (compiled), or none of a single sample (batch norm)."""
    for name, m in network.named_modules():
        if getattr(m, "_compiled_call_impl", None) is not None or hasattr(m, "_orig_mod"):
            raise UserError(f"{what} differentiates a gradient, which torch.compile cannot: train the network eagerly")
        if isinstance(m, _BatchNorm) and m.training:
            raise UserError(
                f"{what} needs the gradient of each sample by itself, and batch norm ({name}) mixes the samples of a "
                f"batch: {remedy}"
            )


def check_logits(logits: Tensor, what: str) -> None:
    """Raise ValueError unless `logits` has shape (B, K) with K >= 2 and holds no probabilities."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UserError(
            f"{what} compares the logits of classes and needs (B, K) with K >= 2, not {tuple(logits.shape)}: give a "
            "problem of two classes two logits"
        )
    if bool(are_probabilities(logits)):
        raise UserError(f"{what} needs logits and this network returns probabilities: remove its softmax")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Context with `network` in eval mode and its parameters trainable; restores the mode of every module."""
    modes = [(m, m.training) for m in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for m, training in modes:
            m.training = training
