"""The ledgers of a finished campaign merged strictly: robust accuracies, worst cases per sample, costs."""

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from attacks import Attack, members, threat
from evaluation.campaign import CLEAN, Campaign
from evaluation.outcome import Outcome, outside

Results = dict[str, Any]
Refused = dict[tuple[str, float], str]  # why a threat model (norm, eps) gets no headline


class Incomplete(ValueError):
    """Samples are missing in the ledgers."""


def merge(campaign: Campaign) -> Results:
    """The numbers of a finished campaign: the schema of results.json without "checkpoint", "data" and "defenses".

    Robust accuracy counts a sample where the model is right without the attack and withstands every run of it; the
    worst case of a threat model (norm, eps), where it withstands every attack of it. Raises `Incomplete` where samples
    are missing and ValueError where one is recorded twice or should not be there.
    """
    chosen = set(campaign.samples)
    standing: dict[str, set[int]] = {CLEAN: chosen}
    attacks: list[Results] = []
    notes: list[str] = []
    for name in (CLEAN, *campaign.suite):
        left = chosen if name == CLEAN else standing[CLEAN]
        costs: dict[str, list[float]] = {"forwards": [], "backwards": [], "seconds": []}
        broken = left_ball = 0
        units = campaign.units(name)
        for unit in units:
            outcomes = list(campaign.outcomes(unit))
            _complete(name, unit.restart, left, {o.index for o in outcomes})
            left = {o.index for o in outcomes if campaign.stands(name, o)}
            broken += sum(o.adversarial == -1 for o in outcomes)
            left_ball += name != CLEAN and sum(_left_ball(campaign.suite[name], o) for o in outcomes)
            for key, values in costs.items():
                values.extend(getattr(o, key) for o in outcomes)
        standing[name] = left
        if broken:
            notes.append(f"{name}: {broken} samples count as wrong because logits or pixels were not finite")
        if left_ball:
            notes.append(f"{name}: {left_ball} adversarial images left the ball and count as failures of the attack")
        if name != CLEAN:
            norm, eps = threat(campaign.suite[name])
            sums = {key: _number(math.fsum(values)) for key, values in costs.items()}
            entry = {"name": name, "norm": norm, "eps": eps, "robust_accuracy": len(left) / campaign.n, "n": campaign.n}
            attacks.append({**entry, **sums, "restarts": len(units)})
            if campaign.suite[name].kind == "minimum-norm" and norm is not None:
                found = [float(getattr(o, norm)) for o in outcomes if o.adversarial != o.label]
                attacks[-1] |= lengths(found, len(standing[CLEAN]), campaign.n)
    return {
        "schema": 1,
        "n": campaign.n,
        "seed": campaign.seed,
        "clean_accuracy": len(standing[CLEAN]) / campaign.n,
        "attacks": attacks,
        "worst_case": [
            {
                "norm": norm,
                "eps": eps,
                "robust_accuracy": len(set.intersection(*(standing[name] for name in names))) / campaign.n,
                "attacks": names,
            }
            for (norm, eps), names in threat_models(campaign.suite).items()
        ],
        "warnings": notes,
    }


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


def threat_models(suite: Mapping[str, Attack]) -> dict[tuple[str, float], list[str]]:
    """Names of the attacks for every (norm, eps) of the suite; corruptions have neither."""
    models: dict[tuple[str, float], list[str]] = {}
    for name, attack in suite.items():
        norm, eps = threat(attack)
        if norm is not None and eps is not None:
            models.setdefault((norm, float(eps)), []).append(name)
    return models


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


def _complete(name: str, restart: int, expected: set[int], found: set[int]) -> None:
    if missing := sorted(expected - found):
        raise Incomplete(
            f"{len(missing)} samples of {name} (restart {restart}) are not in the ledgers: {_some(missing)}; "
            "run the same command again, it does what is missing"
        )
    if extra := sorted(found - expected):
        raise ValueError(
            f"the ledgers hold {len(extra)} samples of {name} (restart {restart}) that do not belong there: "
            f"{_some(extra)}; something else has changed them: choose another --output"
        )


def _left_ball(attack: Attack, outcome: Outcome) -> bool:
    return attack.kind == "budget" and outside(outcome, *threat(attack), attack.kind)


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _number(value: float) -> float | int:
    return int(value) if value.is_integer() else round(value, 6)
