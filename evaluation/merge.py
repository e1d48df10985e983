"""The ledgers of a finished campaign merged strictly: robust accuracies, worst cases per sample, costs."""

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from attacks import Attack, members, threat
from evaluation.campaign import PROBABILITIES, Campaign
from evaluation.cascade import CLEAN, Cascade, Fate, Flags, Unit, outside, standing, threat_models
from evaluation.detection import LEVELS, account, calibrated, closest_calls, flagged, threshold
from evaluation.identity import suite_part
from evaluation.ledger import Columns, Effort, efforts

Results = dict[str, Any]
Refused = dict[tuple[str, float], str]  # why a threat model (norm, eps) gets no headline


class Incomplete(ValueError):
    """Samples are missing in the ledgers."""


def merge(campaign: Campaign) -> Results:
    """The numbers of a finished campaign: results.json without "checkpoint", "data" and "defenses".

    docs/results_schema.md says what each of them means. Raises `Incomplete` where samples are missing and ValueError
    where one is recorded twice or should not be there.
    """
    cascade, notes = campaign.cascade(campaign.samples), []
    attacks: list[Results] = []
    results: Results = {"schema": 2, "mode": campaign.mode, "n": campaign.n, "seed": campaign.seed}
    settings = suite_part(campaign.suite)
    for name in (CLEAN, *campaign.suite):
        before, entry, rows = cascade.before(name), Gathered(len(cascade.samples)), {}
        for unit in campaign.units(name):
            rows = campaign.table(unit)
            _complete(unit, cascade.samples[cascade.asked(unit)], rows)
            cascade.record(unit, rows)
            entry.take(cascade, unit, rows)
        if entry.invalid.any():
            count = int(entry.invalid.sum())
            notes.append(f"{name}: {count} samples count as wrong because logits or pixels were not finite")
        if entry.left_ball:
            notes.append(
                f"{name}: {entry.left_ball} adversarial images left the ball and count as failures of the attack"
            )
        if name == CLEAN:
            results |= _accuracy("clean_", cascade.fates[CLEAN], campaign.draws)
            results["invalid"] = int(entry.invalid.sum())
            continue
        attack = campaign.suite[name]
        norm, eps = threat(attack)
        after = before & cascade.withstood(name)
        stood, fell = (
            standing(before, campaign.draws),
            standing(before, campaign.draws) - standing(after, campaign.draws),
        )
        attacks.append(
            {
                **{"name": name, "norm": norm, "eps": eps, "kind": attack.kind, "settings": settings[name]},
                **_accuracy("", after, campaign.draws),
                **{"n": campaign.n, "attacked": int((before != 0).sum()), "succeeded": _number(math.fsum(fell))},
                "success_rate": _number(math.fsum(fell) / math.fsum(stood)) if stood.any() else None,
                **{"invalid": int(entry.invalid.sum()), "restarts": len(campaign.units(name)), **entry.costs()},
            }
        )
        if attack.kind == "minimum-norm" and norm is not None:
            whole = bool((before == cascade.fates[CLEAN]).all())
            attacks[-1] |= _found(rows, norm, campaign.n) if whole else dict.fromkeys(_found(rows, norm, campaign.n))
    worst = [
        {"norm": norm, "eps": eps, **_accuracy("", cascade.worst(norm, eps), campaign.draws), "attacks": names}
        for (norm, eps), names in threat_models(campaign.suite).items()
    ]
    if campaign.scored:
        results["detection"] = _detection(campaign, attacks, worst)
    spent = efforts(campaign.folder, identity=campaign.identity)
    if any(e.probabilities for e in spent):
        notes.append(PROBABILITIES)
    if len({e.code for e in spent}) > 1:
        notes.append("the code of attacks, defenses, detectors or networks changed between the runs of this campaign")
    totals = {key: _number(math.fsum(a[key] for a in attacks)) for key in ("seconds", "forwards", "backwards")}
    return {
        **results,
        **{"attacks": attacks, "worst_case": worst, "sweeps": sweeps(attacks, results)},
        **{"audit": None, "cost": {**totals, **cost(spent)}, "warnings": notes},
    }


class Gathered:
    """What the runs of one attack add up to, besides the fates of the samples."""

    def __init__(self, n: int) -> None:
        self.invalid: Flags = np.zeros(n, bool)
        self.left_ball = 0
        self.sums: dict[str, list[float]] = {"forwards": [], "backwards": [], "seconds": []}

    def take(self, cascade: Cascade, unit: Unit, rows: Columns) -> None:
        self.invalid |= np.isin(cascade.samples, rows["index"][rows["adversarial"] == -1])
        for key, values in self.sums.items():
            values.append(math.fsum(rows[key]))
        attack = cascade.suite.get(unit.name)
        if attack is not None and attack.kind == "budget":
            self.left_ball += int(outside(rows, *threat(attack), "budget").sum())

    def costs(self) -> dict[str, float]:
        return {key: _number(math.fsum(values)) for key, values in self.sums.items()}


def wilson(accuracy: float, n: int) -> list[float]:
    """Wilson's 95 % interval (1927) for a share of all images of which `accuracy` was found among `n`.

    For a mean over draws too it is wide enough: a share in [0, 1] with mean p has at most the variance p (1 - p).
    """
    z = 1.959963984540054
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return [round(max(0.0, centre - half), 6), round(min(1.0, centre + half), 6)]


def _accuracy(prefix: str, fates: Fate, draws: int) -> Results:
    """Accuracy and interval and, of several draws, what they say: under keys with `prefix`."""
    n = len(fates)
    right = [int(((fates >> d) & 1).sum()) for d in range(draws)]
    accuracy = sum(right) / (n * draws)
    found: Results = {f"{prefix or 'robust_'}accuracy": accuracy, f"{prefix}interval": wilson(accuracy, n)}
    if draws > 1:
        every = (1 << draws) - 1
        found[f"{prefix}draws"] = {
            **{"n": draws, "mean": accuracy, "interval": over_draws([k / n for k in right])},
            **{"vote": int((fates >> draws).sum()) / n, "worst": int((fates & every == every).sum()) / n},
        }
    return found


def over_draws(accuracies: Sequence[float]) -> list[float]:
    """Student's 95 % interval of the mean accuracy over other draws of the defender's noise, on the same images."""
    mean, n = float(np.mean(accuracies)), len(accuracies)
    half = float(student.ppf(0.975, n - 1)) * float(np.std(accuracies, ddof=1)) / math.sqrt(n)
    return [round(max(0.0, mean - half), 6), round(min(1.0, mean + half), 6)]


def _found(rows: Columns, norm: str, n: int) -> Results:
    """What a minimum-norm attack found: `lengths`, and rho_adv over the images that are not black."""
    found = rows["adversarial"] != rows["label"]
    lit = found & (rows["image_l2"] > 0)
    ratios = rows["l2"][lit] / rows["image_l2"][lit]
    relative = _number(math.fsum(ratios) / len(ratios)) if len(ratios) else None
    return {**lengths(rows[norm][found].tolist(), len(found), n), "relative_norm": relative}


def lengths(found: Sequence[float], attacked: int, n: int) -> Results:
    """What one run of a minimum-norm attack says at all radii at once.

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
        "mean_norm": _number(math.fsum(ordered) / len(ordered)) if ordered else None,
        "median_norm": _number(ordered[middle]) if 0 <= middle < len(ordered) else None,
        "curve": {"eps": [round(r, 6) for r in radii], "robust_accuracy": [k / n for k in left]},
    }


def _detection(campaign: Campaign, attacks: Sequence[Results], worst: Sequence[Results]) -> Results:
    """Give every attack and worst case its entry "detection"; returns that of the whole campaign."""
    held_out, about = calibrated(campaign.folder)
    rates = sorted({*LEVELS, about["aimed_fpr"]})
    thresholds = {fpr: threshold(held_out, fpr) for fpr in rates}
    clean = campaign.table(campaign.units(CLEAN)[0])
    clean = {key: clean[key] for key in ("index", "score")} | {"right": clean["adversarial"] == clean["label"]}
    for entry in attacks:
        entry["detection"] = account(clean, _calls(campaign, [entry["name"]], None), thresholds)
    for case in worst:
        case["detection"] = account(clean, _calls(campaign, case["attacks"], case["eps"]), thresholds)
    realised = {fpr: float(flagged(clean["score"], theta).mean()) for fpr, theta in thresholds.items()}
    levels = [
        {
            **{"fpr": fpr, "theta": None if math.isinf(theta) else theta},
            **{"realised_fpr": realised[fpr], "interval": wilson(realised[fpr], campaign.n)},
        }
        for fpr, theta in thresholds.items()
    ]
    detector, aimed = about.pop("detector"), about.pop("aimed_fpr")
    return {"detector": detector, "calibration": about, "aimed_fpr": aimed, "clean": {"levels": levels}}


def _calls(campaign: Campaign, names: Sequence[str], eps: float | None) -> Columns:
    """The closest calls of some attacks; what lies outside the ball is no success and does not count."""
    parts = []
    for unit in (unit for name in names for unit in campaign.units(name)):
        rows, attack = campaign.table(unit), campaign.suite[unit.name]
        norm, own = threat(attack)
        out = outside(rows, norm, eps if own is None else own, attack.kind)
        right = (rows["adversarial"] == rows["label"]) | out
        counts = (rows["linf"] > 0) & ~out
        parts.append({"index": rows["index"], "score": rows["score"], "right": right, "counts": counts})
    return closest_calls(parts)


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
    """The class of an attack, inside its restarts."""
    inner = settings["init_args"].get("attack")
    is_restarts = settings["class_path"] == "attacks.Restarts" and isinstance(inner, Mapping)
    return _kernel(dict(inner)) if is_restarts else str(settings["class_path"])


def cost(spent: Sequence[Effort]) -> Results:
    """What all processes of all runs used besides the attacks' own counts, and the forecast beside the truth."""
    runs: dict[tuple[str, int], list[Effort]] = {}  # a run that was started again may bear the same name
    for e in spent:
        again = sum(e.rank == other.rank and e.run == other.run for part in runs.values() for other in part)
        runs.setdefault((e.run, again), []).append(e)
    energies = [e.energy for e in spent if e.energy is not None]
    told = next((r for r in runs.values() if all(e.done for e in r) and any(e.forecast for e in r)), None)
    return {
        "wall_seconds": _number(math.fsum(max(e.seconds for e in run) for run in runs.values())),
        "processes": next(reversed(runs.values()))[0].world if runs else 0,
        "peak_memory": max((e.peak_memory for e in spent), default=0),
        "energy": _number(math.fsum(energies)) if energies else None,
        "forecast": {
            "seconds": _number(max(e.forecast for e in told)),
            "actual_seconds": _number(max(e.seconds for e in told)),
            "processes": told[0].world,
            "how": "timed on the first batch of every attack",
        }
        if told
        else None,
    }


def refusals(suite: Mapping[str, Attack], obligations: Mapping[str, bool]) -> Refused:
    """Why a threat model gets no headline: its attacks do not do what an honest attacker of this defense must do.

    `obligations` comes from `defenses.obligations`. The detour around a step without gradient (BPDA) is built into
    every `Purified`; averaging over random draws (EOT) is the suite's part.
    """
    if not obligations.get("eot"):
        return {}
    return {
        model: "the defense is stochastic and no attack averages gradients over draws (EOT): set samples: 10 or more"
        for model, names in threat_models(suite).items()
        if not any(draws(suite[name]) > 1 for name in names)
    }


def draws(attack: Attack) -> int:
    """The largest number of gradients that the attack, or one it is made of, averages."""
    return max(getattr(attack, "samples", 1), *map(draws, members(attack)), 1)


def _complete(unit: Unit, expected: Fate, rows: Columns) -> None:
    name, restart = unit.name, unit.restart
    if len(missing := np.setdiff1d(expected, rows["index"])):
        raise Incomplete(
            f"{len(missing)} samples of {name} (restart {restart}) are not in the ledgers: {_some(missing)}; "
            "run the same command again, it does what is missing"
        )
    if len(extra := np.setdiff1d(rows["index"], expected)):
        raise ValueError(
            f"the ledgers hold {len(extra)} samples of {name} (restart {restart}) that do not belong there: "
            f"{_some(extra)}; something else has changed them: choose another --output"
        )


def _some(numbers: Fate) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else round(value, 6)
