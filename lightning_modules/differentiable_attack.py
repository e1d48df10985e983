"""High-confidence attack (Matyasko 2020, Algorithm 1) as a differentiable function, for training through it."""

from typing import Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise
from adversarial_lightning.attacks.core.norms import batch_view
from adversarial_lightning.attacks.deepfool import nearest_boundary, rivals
from adversarial_lightning.attacks.high_confidence import confidence_step, log_probability
from adversarial_lightning.lightning_modules.double_backward import pair_gradients

Choice = Literal["closest", "uniform", "probable"]


def choose_target(logits: Tensor, x: Tensor, source: Tensor, choice: Choice, noise: Noise) -> Tensor:
    """Target class (B,) for each image, a constant other than `source` (B,).

    closest: the class whose linearised l2 boundary with the source is nearest (the thesis' choice), from the gradients
    of `logits` (B, K) at `x` (B, ...), which requires gradients; uniform: any other class with equal probability;
    probable: any other class, in proportion to the predicted probabilities.
    """
    if choice == "closest":
        others = rivals(logits.detach(), source, logits.shape[1])
        pairs = logits.gather(1, source[:, None]) - logits.gather(1, others)
        slopes = pair_gradients(pairs, x, batched=x.is_cuda).transpose(0, 1)
        nearest, _, _ = nearest_boundary(pairs.detach(), slopes, "l2")
        return others.gather(1, nearest[:, None])[:, 0]
    z = (torch.zeros_like(logits) if choice == "uniform" else logits.detach()).scatter(1, source[:, None], -torch.inf)
    u = noise.uniform(z).clamp_min(torch.finfo(z.dtype).tiny)
    gumbel: Tensor = z - (-u.log()).log()
    return gumbel.argmax(1)


def straight_through(value: Tensor) -> Tensor:
    """Step function of `value` (1 above 0, else 0) with the derivative of the sigmoid; 1 lets the attack continue."""
    soft = value.sigmoid()
    return soft + (soft.round() - soft).detach()


def high_confidence(
    network: nn.Module,
    x: Tensor,
    target: Tensor,
    confidence: Tensor,
    steps: int = 5,
    overshoot: float = 0.05,
    unroll: bool = False,
    clamp: bool = False,
    create_graph: bool = True,
) -> Tensor:
    """Attacked images like `x` (B, ...), differentiable in the parameters of `network` (Algorithm 1).

    `target` (B,), `confidence` (B,) in (0, 1]. It takes the steps of `attacks.high_confidence` until p_target >=
    confidence, at most `steps`. The result is overshot, and in [0, 1] only with `clamp` (straight through). The
    gradient flows through the log-probability and its gradient in every step, and with `unroll` also through the
    earlier iterates. Without `create_graph` the result is a constant.
    """
    going, r = torch.ones_like(confidence), torch.zeros_like(x)
    for _ in range(steps):
        z = x + (1 + overshoot) * r
        if not (unroll and create_graph):
            z = z.detach()
        if not z.requires_grad:
            z = z.requires_grad_()
        log_p = log_probability(network(z), target)
        (w,) = torch.autograd.grad(log_p.sum(), z, create_graph=create_graph)
        with torch.set_grad_enabled(create_graph):
            going = going * straight_through(confidence - log_p.exp())
            r = r + batch_view(going, x) * confidence_step(log_p, w, confidence)
    z = x + (1 + overshoot) * r
    if clamp:
        z = z + (z.clamp(0, 1) - z).detach()
    return z if create_graph else z.detach()
