"""Threats beyond the suite's balls, for information only."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adversarial_lightning.attacks import Attack, GaussianNoise, SaltAndPepper
from adversarial_lightning.evaluation.audit.check import Said
from adversarial_lightning.evaluation.audit.inputs import Task


def broader_threats(task: Task) -> Said:
    """C17: accuracy under corruptions, rotations and shifts; informative, it never fails."""
    samples = task.samples
    corruptions: dict[str, Attack] = {
        "gaussian noise 0.1": GaussianNoise(0.1),
        "salt and pepper 0.1": SaltAndPepper(0.1),
    }
    wrong = {label: samples.broken_by(attack, f"C17 {label}") for label, attack in corruptions.items()}
    moves = {"rotated by 20 degrees": (20.0, 0.0), "shifted by a tenth": (0.0, 0.1)}
    for label, (angle, shift) in moves.items():
        wrong[label] = torch.stack([samples.wrong(moved(samples.x, s * angle, s * shift)) for s in (-1, 1)]).any(0)
    shares = {label: 1 - float(rows.float().mean()) for label, rows in wrong.items()}
    said = ", ".join(f"{100 * share:.0f} % {label}" for label, share in shares.items())
    return Said(
        verdict="for information",
        figure=min(shares.values()),
        sentence=f"Of the samples that are right without an attack these stay right: {said}.",
    )


def moved(x: Tensor, degrees: float, shift: float) -> Tensor:
    """Images rotated about their centre and shifted right by a share of their width, filled with black."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = x.new_tensor([[c, -s, 2 * shift], [s, c, 0.0]]).expand(len(x), 2, 3)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False).clamp(0, 1)
