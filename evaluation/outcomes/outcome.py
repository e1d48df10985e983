"""Outcome of one sample under one attack: the only place where adversarial images are judged."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from adversarial_lightning.attacks import Attack, Noise, check_images, noise_for
from adversarial_lightning.attacks.core.norms import displacement, distance, distances, outside_ball
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.types import AttackContext
from adversarial_lightning.networks.eval_mode import frozen_eval


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of one sample under one run of one attack.

    `index` is its number in the source, `label` the true class; `clean` and `adversarial` are the predicted classes
    without and with the attack, for several draws of the defender's noise the majority's, -1 where logits are not
    finite. `attack_failed`: the attack gave pixels that are no numbers, twice; the outcome is then that of the image
    itself. Bit d of `right_draws` is set where the model was right in draw d, under the attack if there is one. l0
    counts changed values; l1, l2 and linf are lengths of the perturbation in pixels of [0, 1], `image_l2` is that of
    the image itself. `score` is what a detector says of the attacked image, None without one, infinite where it says no
    number.
    `forwards` and `backwards` are passes of this sample through the model in the attack, `seconds` its share of the
    time. Without an attack, `adversarial` is `clean`, and lengths and passes are 0.
    """

    index: int
    label: int
    clean: int
    adversarial: int
    right_draws: int
    l0: int
    l1: float
    l2: float
    linf: float
    image_l2: float
    score: float | None
    forwards: float
    backwards: float
    seconds: float
    attack_failed: bool = False


def robust(outcome: Outcome, norm: str | None, eps: float | None, kind: str) -> bool:
    """Whether the model is robust: right without the attack, and right under it or only wrong outside the ball.

    What is outside is said by `outside_ball`. Without a norm or eps (corruptions) there is no outside.
    """
    if outcome.clean != outcome.label:
        return False
    return outcome.adversarial == outcome.label or outside(outcome, norm, eps, kind)


def outside(outcome: Outcome, norm: str | None, eps: float | None, kind: str) -> bool:
    """Whether the perturbation leaves the ball of radius `eps`."""
    if norm is None or eps is None:
        return False
    return bool(outside_ball(getattr(outcome, norm), eps, kind))


def predict(model: nn.Module, x: Tensor, y: Tensor, noises: Sequence[Noise]) -> tuple[Tensor, Tensor]:
    """Majority class (B,) of `x` over the defender's draws `noises`, and the draws in which it is right: bits (B,).

    Eval mode, no gradients. A row with a logit that is not finite, in whatever draw, is class -1 and never right. Of
    classes with equally many votes the lowest wins. Raises ValueError where the logits are not (B, K) with K above all
    labels `y`.
    """
    votes, right, valid = torch.zeros(()), torch.zeros_like(y), torch.ones_like(y, dtype=torch.bool)
    for d, noise in enumerate(noises):
        with frozen_eval(model), torch.no_grad(), noise_for(model, noise):
            logits: Tensor = model(x.clone())
        _check_logits(logits, x, y)
        chosen = logits.argmax(1)
        votes = votes.to(x.device) + one_hot(chosen, logits.shape[1])
        right |= (chosen == y).long() << d
        valid &= logits.isfinite().all(1)
    return votes.argmax(1).masked_fill(~valid, -1), right.masked_fill(~valid, 0)


def _check_logits(logits: Tensor, x: Tensor, y: Tensor) -> None:
    if logits.ndim != 2 or len(logits) != len(x):
        raise UserError(f"{len(x)} images gave logits {tuple(logits.shape)}: a model returns (B, K), one row an image")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise UserError(
            f"labels {int(y.min())} .. {int(y.max())} do not fit a model with {logits.shape[1]} outputs: "
            "evaluate it on the data it was made for"
        )


PROBABILITIES = (
    "the model returns probabilities, not logits (every row lies in [0, 1] and sums to 1): gradients through a softmax "
    "vanish where the model is sure, attacks then look weak; leave out the last softmax"
)


def defender_noise(seed: int, index: Tensor, draws: int) -> list[Noise]:
    """Noise of the defender's draws for the samples `index`, disjoint from every attacker's.

    The same with and without an attack and under all of them, so that one draw is one deterministic model.
    """
    keyed = Noise.keyed(seed, index).fork("defender")
    return [keyed.fork(d) for d in range(draws)]


@dataclass
class Passes:
    """Number of rows that went through a model forwards and backwards."""

    forwards: int = 0
    backwards: int = 0


@contextmanager
def counting(model: nn.Module) -> Iterator[Passes]:
    """Count all passes through `model` in this context, independently of what an attack reports."""
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


@contextmanager
def connected(model: nn.Module) -> Iterator[None]:
    """Context in which outputs of `model` depend on its images, by 0 * x, whether they have a graph or not.

    An attack on a model without gradients then sees zeros, and breaks nothing, instead of ending the evaluation.
    """

    def connect(_module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Any:
        x = inputs[0] if inputs else None
        if not isinstance(x, Tensor) or not x.requires_grad or not isinstance(outputs, Tensor) or outputs.ndim != 2:
            return outputs
        return outputs + (0 * x.flatten(1).sum(1)[:, None]).to(outputs.dtype)

    handle = model.register_forward_hook(connect)
    try:
        yield
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
    draws: int = 1,
    detector: nn.Module | None = None,
    attack_context: AttackContext = nullcontext,
) -> tuple[list[Outcome], Tensor]:
    """Attack a batch and verify the result by fresh forwards.

    Returns one `Outcome` a row, and the images (B, C, H, W) that were judged; rows with index < 0 are left out of both.

    `x` (B, C, H, W) in [0, 1], labels `y` and `index` (B,) int64. `attack` None gives the clean rows. `name` and
    `restart` choose the attacker's random streams, which are functions of (seed, sample, name, restart); for the
    defender's `draws` see `defender_noise`. `clean` (B,) are predictions that are known already. `detector` scores the
    judged images. `attack_context` is entered for the attack only (see `low_precision`). Computes without autocast, in
    float32, or in float64 if the model has such parameters; may be called in any train/eval mode, under no_grad and
    inference_mode, and leaves all of them as they were. Misclassified rows stay in the batch, whose shape is fixed, and
    count as not robust whatever the attack does.
    What the attack broke is not the model's defeat: where it gives no numbers, in spite of its second run, the image
    itself is judged, and the row says so.

    Raises ValueError for images outside [0, 1], logits that do not fit, and attacks that leave the shape or [0, 1].
    """
    attacker = Noise.keyed(seed, index).fork("attacker").fork(name).fork(restart)
    noises = defender_noise(seed, index, draws)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False), exact():
        double = any(p.dtype == torch.float64 for p in model.parameters())
        x = x.detach().to(torch.float64 if double else torch.float32).clone()
        check_images(x)
        started = _now(x)
        right = torch.zeros_like(y)
        if clean is None:
            clean, right = predict(model, x, y, noises)
        passes, z, adversarial, failed = Passes(), x, clean, torch.zeros_like(y, dtype=torch.bool)
        if attack is not None:
            started = _now(x)
            with connected(model), counting(model) as passes, attack_context():
                z = attack(model, x, y, attacker)
        seconds = _now(x) - started
        if attack is not None:
            z, failed = checked(z, x, name)
            adversarial, right = predict(model, z, y, noises)
        scores = None if detector is None else detector_scores(detector, z, noises[0].fork("detector"))
        lengths = distances(displacement(z, x))
        lengths["image_l2"] = distance("l2", displacement(x, torch.zeros_like(x)))
    keep = (index >= 0).cpu()
    columns = {"index": index, "label": y, "clean": clean, "adversarial": adversarial, "right_draws": right}
    columns |= {"attack_failed": failed, **lengths}
    listed: dict[str, list[Any]] = {key: column.cpu()[keep].tolist() for key, column in columns.items()}
    listed["score"] = [None] * int(keep.sum()) if scores is None else scores.cpu()[keep].tolist()
    costs: dict[str, Any] = {"forwards": passes.forwards / len(x), "backwards": passes.backwards / len(x)}
    costs["seconds"] = seconds / max(1, int(keep.sum()))
    rows = zip(*listed.values(), strict=True)
    return [Outcome(**dict(zip(listed, row, strict=True)), **costs) for row in rows], z[keep.to(z.device)]


def detector_scores(detector: nn.Module, x: Tensor, noise: Noise) -> Tensor:
    """Scores (B,) of a detector in eval mode without gradients; infinite where one is not a number.

    Raises ValueError where there is not one score an image.
    """
    with frozen_eval(detector), torch.no_grad(), noise_for(detector, noise):
        scores: Tensor = detector.score(x.clone())  # type: ignore[operator]
    if scores.shape != (len(x),):
        raise UserError(f"{type(detector).__name__} gave scores {tuple(scores.shape)} for {len(x)} images: (B,) is due")
    return scores.double().cpu().nan_to_num(nan=torch.inf, posinf=torch.inf)


@contextmanager
def exact() -> Iterator[None]:
    """Compute in true float32 and reproducibly: neither TF32 nor nondeterministic kernels of cuDNN."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before


def checked(z: Tensor, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Images of the attack `name`, with `x` in the rows that are not finite, and which rows (B,) were not.

    Raises UserError for another shape or device, and for pixels outside [0, 1].
    """
    if z.shape != x.shape or z.device != x.device:
        raise UserError(f"attack {name} made {tuple(z.shape)} on {z.device} of images {tuple(x.shape)} on {x.device}")
    valid = z.flatten(1).isfinite().all(1)
    z = torch.where(valid.view(-1, *[1] * (x.ndim - 1)), z.detach().to(x.dtype), x)
    if not bool(((z >= 0) & (z <= 1)).all()):
        low, high = float(z.min()), float(z.max())
        raise UserError(f"attack {name} returned pixels in [{low:.4g}, {high:.4g}], not in [0, 1]")
    return z, ~valid


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
