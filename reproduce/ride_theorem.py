"""Theorem 1 of RIDE's paper as a check: how often its assumption, the steps of its proof and its conclusion hold.

L_DAE(x, w) is Eq. 7 around x, by 32 draws that are the same on both sides of an inequality, without dropout and mask.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.defenses import RIDE
from adversarial_lightning.defenses.fitting import PerImageFit
from adversarial_lightning.evaluation.outcomes.statistics import wilson
from adversarial_lightning.reproduce.papers.measure import measured
from adversarial_lightning.reproduce.ride_figures import QUICK, GrayBoxes

DRAWS = 32


def inequalities(ride: RIDE, x: Tensor, noise: Noise) -> dict[str, Tensor]:
    """Where the assumption of Theorem 1, Eqs. 11 to 13 and its conclusion hold, by stage: masks (T, B) or (T - 1, B).

    The network must work on pixels. `conclusion` is L(x^(t), w^(t+1)) <= L(x^(t-1), w^(t)).
    """
    first = PerImageFit(ride.fit_settings, Noise(noise.key), x)
    weight, before = ride.alpha / (1 - ride.alpha), x
    fresh = first.risk(x, DRAWS)  # L(x^(t-1), w^(t-1))
    found: dict[str, list[Tensor]] = {name: [] for name in ("assumption", "eq11", "eq12", "eq13", "conclusion")}
    last: Tensor | None = None
    for state in ride.run(x, noise):
        fitted = state.fit.risk(before, DRAWS)  # L(x^(t-1), w^(t))
        found["assumption"].append(fitted <= fresh)
        if last is not None:  # of the stage before: L(x^(t), w^(t)), now fresh, and L(x^(t), w^(t+1)), now fitted
            found["eq13"].append(fitted <= fresh)
            found["conclusion"].append(fitted <= last)
        moved = weight * (state.target - before).square().flatten(1).mean(1)
        mixed = state.fit.risk(state.target, DRAWS)  # L(x^(t), w^(t))
        found["eq11"].append(mixed + moved <= fitted)
        found["eq12"].append(mixed <= mixed + moved)
        before, last, fresh = state.target, fitted, mixed
    return {name: torch.stack(masks) for name, masks in found.items()}


def losses(*, checkpoint: Path, data: str | None, n: int | None, output: Path, suppression: bool) -> dict[str, Any]:
    """Shares of `n` test images, attacked by PGD-40 at linf 0.1, for which each inequality holds in all stages.

    The conclusion is that of the images for which the assumption holds in all stages. `suppression` is left out by the
    proof.
    """
    about = GrayBoxes.of(checkpoint, n, 0.1)
    ride, parts = RIDE(**QUICK | {"suppression": suppression}), []
    for rows in torch.arange(len(about.z)).split(ride.images_per_pass(about.z)):
        parts.append(inequalities(ride, about.z[rows], about.defender[rows]))
    whole = {name: torch.cat([part[name] for part in parts], 1).all(0) for name in parts[0]}
    found: dict[str, tuple[float | None, list[float] | None]] = {}
    for name, holds in whole.items():
        among = holds[whole["assumption"]] if name == "conclusion" else holds
        share = float(among.double().mean()) if len(among) else 1.0  # of no image, all
        found[name] = share, list(wilson(share, len(among))) if len(among) else [0.0, 1.0]
    return measured(about.samples, found)
