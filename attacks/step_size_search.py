"""Which step size suits a model: tried on held-out images (Matyasko 2020, section 5.4, of PDGD and PDPGD)."""

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
    """`attack` with the `step_size` of the `grid` that finds the nearest points, and what each of the grid reached.

    The second result holds, for every step size, the share of images for which a point was found and the mean length of
    those found (NaN if none), in the attack's norm; most found is best, then shortest. Images (B, ...) in [0, 1] whose
    labels `y` (B,) the model misses need no attack and are not counted. Every step size gets the same `noise`.

    Choose on images that no reported number is computed from: the validation split, never the test images.
    Raises ValueError for attacks that are not minimum-norm or have no step size, and where no image is left.
    """
    if attack.kind != "minimum-norm" or not hasattr(attack, "step_size"):
        raise UserError(f"{type(attack).__name__} is no minimum-norm attack with a step_size to choose")
    if attack.targeted:
        raise UserError("choose the step size of the untargeted form: held-out images come with labels, not targets")
    if not grid:
        raise UserError("grid must name at least one step size")

    def right(z: Tensor, draws: str) -> Tensor:
        with frozen_eval(model), torch.no_grad(), noise_for(model, noise.fork(draws)):
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
