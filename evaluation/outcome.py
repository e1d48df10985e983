"""What happens to one sample under one attack, measured: the only place where adversarial images are judged."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks import Attack, Noise, check_images, drawing, guard
from attacks.norms import distances


@dataclass(frozen=True, slots=True)
class Outcome:
    """One sample under one run of one attack.

    `index` is its number in the source, `label` the true class; `clean` and `adversarial` are the predicted classes
    without and with the attack, -1 where logits or pixels are not finite. l0 counts changed values; l1, l2 and linf
    are lengths of the perturbation in pixels of [0, 1]. `forwards` and `backwards` are passes of this sample through
    the model in the attack, `seconds` its share of the time. Without an attack,
    `adversarial` is `clean`, and lengths and passes are 0.
    """

    index: int
    label: int
    clean: int
    adversarial: int
    l0: int
    l1: float
    l2: float
    linf: float
    forwards: float
    backwards: float
    seconds: float


def robust(outcome: Outcome, norm: str | None, eps: float | None, kind: str) -> bool:
    """Whether the model stands: right without the attack, and right under it or only wrong outside the ball.

    A *budget* attack gets the slack of float32 arithmetic: eps (1 + 1e-6) + 1e-7; a *minimum-norm* attack, whose
    norm is the result itself, gets none. Without a norm or eps (corruptions) there is no outside.
    """
    if outcome.clean != outcome.label:
        return False
    return outcome.adversarial == outcome.label or outside(outcome, norm, eps, kind)


def outside(outcome: Outcome, norm: str | None, eps: float | None, kind: str) -> bool:
    """Whether the perturbation leaves the ball of radius `eps`."""
    if norm is None or eps is None:
        return False
    slack = eps * 1e-6 + 1e-7 if kind == "budget" else 0.0
    return float(getattr(outcome, norm)) > eps + slack


def predict(model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
    """Predicted classes (B,) of `x`, -1 where a logit is not finite: eval mode, no gradients, the defender's `noise`.

    Raises ValueError where the logits are not (B, K) with K above all labels `y`.
    """
    with guard(model), torch.no_grad(), drawing(model, noise):
        logits: Tensor = model(x.clone())
    if logits.ndim != 2 or len(logits) != len(x):
        raise ValueError(f"{len(x)} images gave logits {tuple(logits.shape)}: a model returns (B, K), one row an image")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise ValueError(
            f"labels {int(y.min())} .. {int(y.max())} do not fit a model with {logits.shape[1]} outputs: "
            "evaluate it on the data it was made for"
        )
    return logits.argmax(1).masked_fill(~logits.isfinite().all(1), -1)


@dataclass
class Passes:
    """Rows that went through a model forwards and backwards."""

    forwards: int = 0
    backwards: int = 0


@contextmanager
def counting(model: nn.Module) -> Iterator[Passes]:
    """Count all passes through `model` in this context, from outside: whatever an attack says about itself."""
    passes = Passes()

    def backward(gradient: Tensor) -> None:
        passes.backwards += len(gradient)

    def forward(_module: nn.Module, _inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        passes.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(backward)

    handle = model.register_forward_hook(forward)
    try:
        yield passes
    finally:
        handle.remove()


def evaluate_batch(
    model: nn.Module,
    attack: Attack | None,
    x: Tensor,
    y: Tensor,
    index: Tensor,
    *,
    seed: int,
    name: str,
    restart: int = 0,
    clean: Tensor | None = None,
) -> list[Outcome]:
    """Attack a batch and verify the result by a fresh forward: one `Outcome` a row, rows with index < 0 left out.

    `x` (B, C, H, W) in [0, 1], labels `y` and `index` (B,) int64. `attack` None gives the clean rows. `name` and
    `restart` choose the random streams, which are functions of (seed, sample, name, restart); the defender's are
    disjoint from the attacker's, and those of the verification from those of the clean forward. `clean` (B,) are
    predictions that are known already. Computes in float32 without autocast; may be called in any train/eval mode,
    under no_grad and inference_mode, and leaves all of them as they were. Misclassified rows travel with the batch,
    whose shape is fixed, and count as not robust whatever the attack does to them.

    Raises ValueError for images outside [0, 1], labels without a logit, and attacks that leave the shape or [0, 1].
    """
    keyed = Noise.keyed(seed, index)
    attacker = keyed.fork("attacker").fork(name).fork(restart)
    defender = keyed.fork("defender").fork(name).fork(restart)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False), _exact():
        x = x.detach().float().clone()
        check_images(x)
        if clean is None:
            started = _now(x)
            clean = predict(model, x, y, defender.fork("clean"))
        passes, z, adversarial = Passes(), x, clean
        if attack is not None:
            started = _now(x)
            with counting(model) as passes:
                z = attack(model, x, y, attacker)
        seconds = _now(x) - started
        if attack is not None:
            z, valid = _checked(z, x, name)
            # An image that is not finite is nothing to attack with, but the model or its gradient broke: it fell.
            adversarial = predict(model, z, y, defender.fork("verified")).masked_fill(~valid, -1)
        lengths = distances(z.cpu().double() - x.cpu().double())  # not every device has doubles
    keep = (index >= 0).cpu()
    columns = {"index": index, "label": y, "clean": clean, "adversarial": adversarial, **lengths}
    listed = {key: column.cpu()[keep].tolist() for key, column in columns.items()}
    costs: dict[str, Any] = {"forwards": passes.forwards / len(x), "backwards": passes.backwards / len(x)}
    costs["seconds"] = seconds / max(1, int(keep.sum()))
    return [Outcome(**dict(zip(listed, row, strict=True)), **costs) for row in zip(*listed.values(), strict=True)]


@contextmanager
def _exact() -> Iterator[None]:
    """float32 means float32 and the same bits again: neither TF32 nor nondeterministic kernels in cuDNN."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before


def _checked(z: Tensor, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """`z` with the rows that are not finite put back to `x`, and which rows (B,) were finite."""
    if z.shape != x.shape or z.device != x.device:
        raise ValueError(f"attack {name} made {tuple(z.shape)} on {z.device} of images {tuple(x.shape)} on {x.device}")
    valid = z.flatten(1).isfinite().all(1)
    z = torch.where(valid.view(-1, *[1] * (x.ndim - 1)), z.detach().float(), x)
    if not bool(((z >= 0) & (z <= 1)).all()):
        low, high = float(z.min()), float(z.max())
        raise ValueError(f"attack {name} returned pixels in [{low:.4g}, {high:.4g}], not in [0, 1]")
    return z, valid


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
