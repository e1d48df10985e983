"""Per-image fits that are differentiable through every step of Adam, for attacks on RIDE."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.defenses.fitting import FitSettings, PerImageFit

_BYTES = 2**30  # for the graphs of the images that are differentiated together
_TINY = 1e-36  # under Adam's root, whose slope would be infinite where a gradient is zero


class Unrolled(PerImageFit):
    """Differentiable `PerImageFit`: weights and estimates depend on the targets; the graph grows with every step."""

    differentiable = True

    def __init__(self, settings: FitSettings, noise: Noise, like: Tensor) -> None:
        super().__init__(settings, noise, like.detach())
        self.moments = [(p.detach() * 0, p.detach() * 0, p.detach() * 0) for p in self.parameters]
        self.steps = 0

    def estimate(self, target: Tensor, noisy_copies: int, at: int) -> Tensor:
        found = super().estimate(target, noisy_copies, at)
        # Targets may depend on this estimate, but a step differentiates its loss with its target held fixed.
        self.parameters = [p.clone() for p in self.parameters]
        return found

    def _adam(self, loss: Tensor) -> None:
        settings, group = self.settings, self.optimizer.param_groups[0]
        (beta1, beta2), eps = group["betas"], group["eps"]
        self.steps += 1
        gradients = torch.autograd.grad(loss, self.parameters, create_graph=True)
        for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            g = g + settings.weight_decay * p
            first, second, most = self.moments[i]
            first, second = beta1 * first + (1 - beta1) * g, beta2 * second + (1 - beta2) * g * g
            most = torch.maximum(most, second)
            self.moments[i] = first, second, most
            root = ((most if settings.amsgrad else second) / (1 - beta2**self.steps) + _TINY).sqrt()
            self.parameters[i] = p - settings.learning_rate / (1 - beta1**self.steps) * first / (root + eps)


class _Replay(torch.autograd.Function):
    """Checkpointed ``fit(x)``: forwards without a graph, which the backward pass computes again and frees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fit: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.fit = fit
        with torch.enable_grad():
            return fit(x.detach()).detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            return torch.autograd.grad(ctx.fit(z), z, grads[0])[0], None


def unrolled(
    settings: FitSettings,
    noise: Noise,
    target: Tensor,
    combine: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    stages: int,
    estimates: int,
) -> Tensor:
    """Estimate x_est after `stages` times `steps` steps towards `target` (B, C, H, W), differentiable in it once.

    It takes the time of two fits and of a double backward through one, and the memory of the graphs of as many images
    as fit into a GiB, at least one.
    """

    def fit(x: Tensor, noise: Noise) -> Tensor:
        own = Unrolled(settings, Noise(noise.key), x) if x.requires_grad else PerImageFit(settings, Noise(noise.key), x)
        estimate = aim = x
        for iteration in range(1, steps * stages + 1):
            own.step(aim)
            if iteration % steps == 0:
                with torch.set_grad_enabled(x.requires_grad):
                    estimate = own.estimate(aim, estimates, iteration)
                    aim = combine(aim, estimate)
        return estimate

    each = 4 * steps * stages * settings.bytes_per_image(target.shape[2], target.shape[3], target.element_size())
    at_once, found = max(1, _BYTES // each), []
    for start in range(0, len(target), at_once):
        rows = slice(start, start + at_once)
        streams = noise[rows]
        found.append(_Replay.apply(target[rows], lambda x, streams=streams: fit(x, streams)))
    return torch.cat(found)
