"""Networks without masked gradients for transfer attacks: inside the model, or an imitation (Papernot et al. 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise
from adversarial_lightning.networks.eval_mode import frozen_eval

_SIDE = 64  # larger images are averaged down to this side


def network(shape: tuple[int, ...], classes: int, noise: Noise) -> nn.Sequential:
    """Small convolutional network for images of `shape` (C, H, W), with weights drawn from `noise` (one row)."""
    side, stride = min(_SIDE, *shape[1:]), 2 if min(_SIDE, *shape[1:]) > 16 else 1
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(side)] if max(shape[1:]) > side else []
    layers += [nn.Conv2d(shape[0], 16, 3, stride, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, padding=1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, classes))
    net(torch.zeros(1, *shape))  # sizes the lazy layer
    with torch.no_grad():
        for p in net.parameters():
            scale = (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.0
            p.copy_(scale * noise.normal(torch.zeros(1, *p.shape))[0])
    return net


def imitate(model: nn.Module, x: Tensor, *, eps: float, steps: int, seed: int, rows: int = 64) -> nn.Module:
    """Train a substitute for `steps` steps on the predictions of `model` for `x` (N, C, H, W) and noisy copies.

    The noise is uniform in [-eps, eps]. It costs one forward pass of `model` for each image of `x` and each row of a
    step, and no gradients of `model`.
    """
    order = Noise.keyed(seed, torch.zeros(1, dtype=torch.int64)).fork("substitute")
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone()
        y = torch.cat([_answers(model, part) for part in x.split(rows)])
        net = network(tuple(x.shape[1:]), y.shape[1], order).to(x)
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(steps):
            chosen = (order.uniform(torch.zeros(1, rows))[0] * len(x)).long().to(x.device)
            shaken = x[chosen] + eps * (2 * order.uniform(torch.zeros(1, *x[chosen].shape))[0].to(x) - 1)
            batch = torch.cat([x[chosen], shaken.clamp(0, 1)])
            wanted = torch.cat([y[chosen], _answers(model, batch[rows:])])
            optimizer.zero_grad()
            F.cross_entropy(net(batch), wanted.argmax(1)).backward()
            optimizer.step()
        return net.eval().requires_grad_(False)


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    with frozen_eval(model), torch.no_grad():
        logits: Tensor = model(x)
    return logits.detach()


def inner_network(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module | None:
    """The classifier inside a defense: the innermost module that maps images `x` to logits nearly as right as `model`.

    None where there is none, or where it is the model itself: it gives the same logits and the same gradients. `x` is a
    batch of images that the model classifies as `y`.
    """
    wanted = _answers(model, x)
    own = _gradient(model, x, y)
    for inside in reversed(list(model.modules())[1:]):
        try:
            logits = _answers(inside, x)
            if logits.shape != wanted.shape or not bool(logits.isfinite().all()):
                continue
            if float((logits.argmax(1) == y).float().mean()) < 0.5:
                continue
            same = torch.allclose(logits, wanted, rtol=1e-3, atol=0) and own is not None
            if same and torch.allclose(_gradient(inside, x, y), own, rtol=1e-3, atol=0):  # type: ignore[arg-type]
                continue
        except Exception:  # what cannot be asked for logits of images is no such network
            continue
        return inside
    return None


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor | None:
    """Gradient of the label's logits; None where there is none."""
    with frozen_eval(model):
        leaf = x.detach().clone().requires_grad_()
        logits = model(leaf)
        if not logits.requires_grad:
            return None
        gradient: Tensor | None = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), leaf, allow_unused=True)[0]
    return gradient
