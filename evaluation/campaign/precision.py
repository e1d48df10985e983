"""Run attacks in bfloat16 or compiled; results are verified in float32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.evaluation.outcomes.types import AttackContext

Precision = Literal["float32", "bf16"]


def low_precision(model: nn.Module, precision: Precision = "float32", compiled: bool = False) -> AttackContext:
    """A context, entered around every attack, in which `model` computes in `precision` and compiled or not.

    Logits come out in float32, so losses and the gradients of images are float32 too. Nothing of the model is replaced:
    only its forward, and only inside of the context. An attack in low precision may be weaker, never falsely stronger,
    because its images are verified outside.
    """
    if precision == "float32" and not compiled:
        return nullcontext
    exact: Callable[[Tensor], Tensor] = torch.compile(model.forward) if compiled else model.forward

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return exact(x).float()

    @contextmanager
    def attack_context() -> Iterator[None]:
        model.forward = forward
        try:
            yield
        finally:
            del model.forward  # the class's own again

    return attack_context
