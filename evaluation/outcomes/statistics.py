"""Figures of results.json as functions of bits, rows and entries; docs/results_schema.md defines them."""

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from adversarial_lightning.evaluation.outcomes.types import Bits, Columns, RunCost

Results = dict[str, Any]


def accuracy(prefix: str, bits: Bits, draws: int) -> Results:
    """Accuracy and interval and, with several draws, their spread, under keys with `prefix`."""
    n = len(bits)
    right = [int(((bits >> d) & 1).sum()) for d in range(draws)]
    share = sum(right) / (n * draws)
    found: Results = {f"{prefix or 'robust_'}accuracy": share, f"{prefix}interval": wilson(share, n)}
    if draws > 1:
        every = (1 << draws) - 1
        found[f"{prefix}draws"] = {
            **{"n": draws, "mean": share, "interval": over_draws([k / n for k in right])},
            **{"vote": int((bits >> draws).sum()) / n, "worst": int((bits & every == every).sum()) / n},
        }
    return found


def wilson(accuracy: float, n: int) -> list[float]:
    """Wilson's 95 % interval (1927) for a share, of which `accuracy` was found among `n` images.

    For a mean over draws too it is wide enough: a share in [0, 1] with mean p has at most the variance p (1 - p).
    """
    z = 1.959963984540054
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return [round(max(0.0, centre - half), 6), round(min(1.0, centre + half), 6)]


def over_draws(accuracies: Sequence[float]) -> list[float]:
    """Student's 95 % interval of the mean accuracy over other draws of the defender's noise, on the same images."""
    mean, n = float(np.mean(accuracies)), len(accuracies)
    half = float(student.ppf(0.975, n - 1)) * float(np.std(accuracies, ddof=1)) / math.sqrt(n)
    return [round(max(0.0, mean - half), 6), round(min(1.0, mean + half), 6)]


def shortest(rows: Columns, norm: str, n: int) -> Results:
    """Lengths that a minimum-norm attack found, and rho_adv over the images that are not black."""
    found = rows["adversarial"] != rows["label"]
    lit = found & (rows["image_l2"] > 0)
    ratios = rows["l2"][lit] / rows["image_l2"][lit]
    relative = number(math.fsum(ratios) / len(ratios)) if len(ratios) else None
    return {**lengths(rows[norm][found].tolist(), len(found), n), "relative_norm": relative}


def lengths(found: Sequence[float], attacked: int, n: int) -> Results:
    """Robust accuracy over all radii, from one run of a minimum-norm attack.

    `found` are the lengths of the successes among `attacked` samples of `n`. "mean_norm" is over the successes,
    "median_norm" over all attacked with failures as infinite (None where that is the median); "curve" is the robust
    accuracy at radii from 0 to the largest length.
    """
    ordered = sorted(found)
    middle = (attacked - 1) // 2
    radii = [ordered[-1] * i / 40 for i in range(41)] if ordered else [0.0]
    left = [attacked - bisect.bisect_right(ordered, r) for r in radii]
    return {
        "found": len(ordered),
        "mean_norm": number(math.fsum(ordered) / len(ordered)) if ordered else None,
        "median_norm": number(ordered[middle]) if 0 <= middle < len(ordered) else None,
        "curve": {"eps": [round(r, 6) for r in radii], "robust_accuracy": [k / n for k in left]},
    }


def sweeps(attacks: Sequence[Results], clean: Results) -> list[Results]:
    """Robust accuracy over the radius from budget attacks of one class and norm at two radii or more.

    Of several attacks at one radius the strongest counts.
    """
    families: dict[tuple[str, str], dict[float, Results]] = {}
    for a in attacks:
        if a["kind"] == "budget" and a["eps"] is not None and a["eps"] > 0:
            same = families.setdefault((_kernel(a["settings"]), a["norm"]), {})
            if a["eps"] not in same or a["robust_accuracy"] < same[a["eps"]]["robust_accuracy"]:
                same[a["eps"]] = a
    return [
        {
            **{"attack": family, "norm": norm, "eps": [0.0, *sorted(same)]},
            "robust_accuracy": [clean["clean_accuracy"], *(same[eps]["robust_accuracy"] for eps in sorted(same))],
            "interval": [clean["clean_interval"], *(same[eps]["interval"] for eps in sorted(same))],
            "names": [None, *(same[eps]["name"] for eps in sorted(same))],
        }
        for (family, norm), same in families.items()
        if len(same) > 1
    ]


def _kernel(settings: Results) -> str:
    """Class of an attack, inside its restarts."""
    inner = settings["init_args"].get("attack")
    is_restarts = settings["class_path"] == "attacks.Restarts" and isinstance(inner, Mapping)
    return _kernel(dict(inner)) if is_restarts else str(settings["class_path"])


def cost(costs: Sequence[RunCost]) -> Results:
    """Cost of all processes of all runs, besides the attacks' own counts."""
    runs: dict[tuple[str, int], list[RunCost]] = {}  # a run that was started again may bear the same name
    for e in costs:
        again = sum(e.rank == other.rank and e.run == other.run for part in runs.values() for other in part)
        runs.setdefault((e.run, again), []).append(e)
    energies = [e.energy for e in costs if e.energy is not None]
    return {
        "wall_seconds": number(math.fsum(max(e.seconds for e in run) for run in runs.values())),
        "processes": next(reversed(runs.values()))[0].world if runs else 0,
        "peak_memory": max((e.peak_memory for e in costs), default=0),
        "energy": number(math.fsum(energies)) if energies else None,
    }


def number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else round(value, 6)
