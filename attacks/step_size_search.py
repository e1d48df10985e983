"""Step size search on held-out images, for PDGD and PDPGD (Matyasko 2020, section 5.4)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.introspection import threat
from adversarial_lightning.attacks.core.noise import Noise, noise_for
from adversarial_lightning.attacks.core.norms import distance
from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.eval_mode import frozen_eval

A = TypeVar("A", bound=Attack)
GRID = (0.01, 0.05, 0.1, 0.5, 1.0)


def choose_step_size(
    attack: A, model: nn.Module, x: Tensor, y: Tensor, noise: Noise, grid: Sequence[float] = GRID
) -> tuple[A, dict[float, tuple[float, float]]]:
    """Choose the `step_size` of the `grid` with which `attack` finds the nearest points.

    Returns the attack with that step size and, for every step size, the share of images for which an adversarial point
    was found and the mean length of these perturbations in the attack's norm (NaN if none). The best has the largest
    share, then the shortest mean. Images (B, ...) in [0, 1] that the model misclassifies without an attack, by their
    labels `y` (B,), are not counted. Every step size gets the same `noise`.

    Use images of the validation split, never test images or others from which a number is reported.
    Raises ValueError for attacks that are not minimum-norm or have no step size, and if no image is left.
    """
    if attack.kind != "minimum-norm" or not hasattr(attack, "step_size"):
        raise UserError(f"{type(attack).__name__} is no minimum-norm attack with a step_size to choose")
    if attack.targeted:
        raise UserError("choose the step size of the untargeted form: held-out images come with labels, not targets")
    if not grid:
        raise UserError("grid must name at least one step size")

    def right(z: Tensor, stream: str) -> Tensor:
        with frozen_eval(model), torch.no_grad(), noise_for(model, noise.fork(stream)):
            logits: Tensor = model(z)
        return logits.argmax(1) == y

    attacked = right(x, "clean")
    if not bool(attacked.any()):
        raise UserError("the model is wrong about all images: there is nothing to choose by")
    reached: dict[float, tuple[float, float]] = {}
    for size in grid:
        z = replace(attack, step_size=size)(model, x, y, noise)  # type: ignore[type-var]
        found = attacked & ~right(z, "check")
        length = distance(str(threat(attack)[0]), z - x)[found].double()
        reached[size] = int(found.sum()) / int(attacked.sum()), float(length.mean())
    best = min(reached, key=lambda size: (-reached[size][0], reached[size][1]))
    return replace(attack, step_size=best), reached  # type: ignore[type-var]
