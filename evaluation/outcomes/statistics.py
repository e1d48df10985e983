"""Figures of results.json as functions of bits, rows and entries; docs/results_schema.md defines them."""

import base64
import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest
from scipy.stats import t as student

from adversarial_lightning.evaluation.outcomes.subset import Samples
from adversarial_lightning.evaluation.outcomes.types import Bits, Columns, Flags, RunCost

Results = dict[str, Any]


def accuracy(prefix: str, bits: Bits, draws: int, samples: Samples) -> Results:
    """Accuracy, interval, bitmap and, with several draws, their spread, under keys with `prefix`."""
    n = len(bits)
    right = [int(((bits >> d) & 1).sum()) for d in range(draws)]
    share = sum(right) / (n * draws)
    mostly = np.sum([(bits >> d) & 1 for d in range(draws)], axis=0) * 2 >= draws
    found: Results = {
        **{f"{prefix or 'robust_'}accuracy": share, f"{prefix}interval": sampling_interval(share, samples, draws)},
        f"{prefix}bitmap": bitmap_of(mostly),
    }
    if draws > 1:
        every = (1 << draws) - 1
        found[f"{prefix}draws"] = {
            **{"n": draws, "mean": share, "interval": over_draws([k / n for k in right])},
            **{"vote": int((bits >> draws).sum()) / n, "worst_draw": min(right) / n},
            "every_draw": int((bits & every == every).sum()) / n,
        }
    return found


def sampling_interval(accuracy: float, samples: Samples, draws: int = 1) -> list[float] | None:
    """Wilson's 95 % interval for the accuracy on all `of` images, corrected for a finite population.

    None for the first images, which are no sample, and for all of them, where nothing is left to estimate. The variance
    of the mean of n out of N images has the factor (N - n) / (N - 1), so Wilson is asked with n (N - 1) / (N - n)
    images; a mean over `draws` keeps at least the variance over draws.
    """
    left = remaining_variance(samples, draws)
    return None if left is None else wilson(accuracy, samples.n / left)


def remaining_variance(samples: Samples, draws: int = 1) -> float | None:
    """Factor (N - n) / (N - 1) of the variance of a mean over a random subset, at least 1 / `draws` of several draws.

    None where there is no sampling interval.
    """
    if samples.chosen != "random" or samples.n >= samples.of:
        return None
    return max((samples.of - samples.n) / (samples.of - 1), 1 / draws if draws > 1 else 0.0)


def wilson(accuracy: float, n: float) -> list[float]:
    """Wilson's 95 % interval (1927) for a share, of which `accuracy` was found among `n` images.

    For a mean over draws too it is wide enough: a share in [0, 1] with mean p has at most the variance p (1 - p).
    """
    z = 1.959963984540054
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return [round(max(0.0, centre - half), 6), round(min(1.0, centre + half), 6)]


def bootstrap(values: ArrayLike, samples: Samples) -> list[float] | None:
    """95 % interval of the mean of `values`, one an image, over other images: percentiles of 1,000 means, seeded.

    Narrowed for a finite population; None where there is no sampling interval, and for fewer than two values.
    """
    given, left = np.asarray(values, np.float64), remaining_variance(samples)
    if left is None or len(given) < 2:
        return None
    draws = np.random.default_rng(0)
    means = [draws.choice(given, len(given)).mean() for _ in range(1000)]
    low, high = np.quantile(means, (0.025, 0.975))
    mean = float(given.mean())
    return [round(float(mean + (end - mean) * math.sqrt(left)), 6) for end in (low, high)]


def bitmap_of(flags: Flags) -> str:
    """`flags`, one bit each, in base64: 1.7 kB for 10,000 samples."""
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


def flags_of(bitmap: str, n: int) -> Flags:
    """The `n` flags of a bitmap."""
    return np.unpackbits(np.frombuffer(base64.b64decode(bitmap), np.uint8), count=n).astype(bool)


def paired(one: Flags, other: Flags) -> float:
    """McNemar's exact p value (1947) that two models are equally good, from flags of the same samples."""
    only = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(min(only), sum(only)).pvalue) if sum(only) else 1.0


def over_draws(accuracies: Sequence[float]) -> list[float]:
    """Student's 95 % interval of the mean accuracy over other draws of the defender's noise, on the same images."""
    mean, n = float(np.mean(accuracies)), len(accuracies)
    half = float(student.ppf(0.975, n - 1)) * float(np.std(accuracies, ddof=1)) / math.sqrt(n)
    return [round(max(0.0, mean - half), 6), round(min(1.0, mean + half), 6)]


def shortest(rows: Columns, norm: str, samples: Samples) -> Results:
    """Lengths that a minimum-norm attack found, and rho_adv over the images that are not black.

    Images where it found nothing are `failed`. "relative_norm" is over the others; in "relative_norm_with_failures"
    each of them counts with the largest ratio that was found, because how far it got is not known.
    """
    found, lit = rows["adversarial"] != rows["label"], rows["image_l2"] > 0
    ratios = rows["l2"][found & lit] / rows["image_l2"][found & lit]
    failed = int((~found & lit).sum())
    every = np.concatenate([ratios, np.full(failed, ratios.max())]) if len(ratios) else ratios
    return {
        **lengths(rows[norm][found], len(found), samples),
        **{"relative_norm": mean(ratios), "relative_norm_interval": bootstrap(ratios, samples)},
        "relative_norm_with_failures": mean(every),
    }


def lengths(found: ArrayLike, attacked: int, samples: Samples) -> Results:
    """Robust accuracy over all radii, from one run of a minimum-norm attack.

    `found` are the lengths of the successes among `attacked` samples; the others are `failed`. "mean_norm" is over the
    successes, "median_norm" over all attacked with failures as infinite (None where that is the median); "curve" is the
    robust accuracy at radii from 0 to the largest length.
    """
    ordered = np.sort(np.asarray(found, np.float64)).tolist()
    middle = (attacked - 1) // 2
    radii = [ordered[-1] * i / 40 for i in range(41)] if ordered else [0.0]
    left = [attacked - bisect.bisect_right(ordered, r) for r in radii]
    return {
        **{"found": len(ordered), "failed": attacked - len(ordered)},
        **{"mean_norm": mean(ordered), "mean_norm_interval": bootstrap(ordered, samples)},
        "median_norm": number(ordered[middle]) if 0 <= middle < len(ordered) else None,
        "curve": {"eps": [round(r, 6) for r in radii], "robust_accuracy": [k / samples.n for k in left]},
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


def mean(values: ArrayLike) -> float | int | None:
    """Mean of some numbers; None where there are none."""
    given = np.asarray(values, np.float64)
    return number(math.fsum(given) / len(given)) if len(given) else None
