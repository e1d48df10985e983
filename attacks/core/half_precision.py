"""Attacks on models in half precision: the attack computes in float32, the model in its own type."""

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


class SeenInFloat32(nn.Module):
    """`model` as an attack in float32 sees it: images are rounded to the half type `dtype`, logits come in float32.

    Steps, losses, lengths and random draws would lose themselves in 8 or 11 bits. What the model has seen is what the
    attack returns: images rounded to the nearest value of the type, for budget attacks towards x where that would leave
    the ball.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.to(self.dtype))
        return logits.float()
