"""Merge of the ledgers of a finished campaign: robust accuracies, worst cases per sample, costs."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from adversarial_lightning.attacks import Attack, members
from adversarial_lightning.attacks.core.threshold import flagged
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.campaign.identity import code, suite_part
from adversarial_lightning.evaluation.campaign.ledger import raised, run_costs
from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.sample_status import (
    CLEAN,
    AttackRun,
    SampleStatus,
    counting_against,
    does_not_count,
    in_balls,
    in_whole_ball,
    robust_share,
    threat_models,
)
from adversarial_lightning.evaluation.campaign.unions import UNION, Ball, joined, threat_of, unions
from adversarial_lightning.evaluation.outcomes.by_class import by_class
from adversarial_lightning.evaluation.outcomes.claims import claim, claim_on_union
from adversarial_lightning.evaluation.outcomes.detection import (
    LEVELS,
    account,
    calibrated,
    closest_calls,
    threshold,
)
from adversarial_lightning.evaluation.outcomes.outcome import PROBABILITIES
from adversarial_lightning.evaluation.outcomes.statistics import (
    Results,
    accuracy,
    cost,
    number,
    sampling_interval,
    shortest,
    sweeps,
)
from adversarial_lightning.evaluation.outcomes.types import Bits, Columns, Flags

GLOBAL_DRAWS = (
    "{} draws from a global generator or seeds it, instead of using the noise it is given: outcomes depend on "
    "batch size, number of processes and interruptions, and do not come again"
)
Refused = dict[tuple[Ball, ...], str]  # why a threat model, one ball or the union of several, gets no headline
_NO_AVERAGE = "the defense is stochastic and no attack averages gradients over draws: set eot_samples: 10 or more"


class Incomplete(UserError):
    """Samples are missing in the ledgers."""


def merge(campaign: Campaign) -> Results:
    """Numbers of a finished campaign: results.json without "checkpoint", "data" and "defenses".

    docs/results_schema.md says what each of them means. Raises `Incomplete` where samples are missing and ValueError
    where one is recorded twice or should not be there.
    """
    status, notes = campaign.blank_status(campaign.samples), []
    attacks: list[Results] = []
    samples = campaign.chosen
    results: Results = {"schema": 3, "mode": campaign.mode, "n": campaign.n, "samples": asdict(samples)}
    results["seed"] = campaign.seed
    settings = suite_part(campaign.suite)
    errors = raised(campaign.folder, identity=campaign.identity)
    results["raised"] = [
        {"attack": name, "n": count, "error": error}
        for (name, error), count in Counter((name, error) for name, _, error in errors).items()
    ]
    for name in (CLEAN, *campaign.suite):
        before, entry, rows = status.bits_before(name), AttackTotals(len(status.samples)), {}
        for run in campaign.runs(name):
            rows = campaign.table(run)
            _complete(run, status.samples[status.needs(run)], rows)
            status.record(run, rows)
            entry.take(status, run, rows)
        silent = {number for attack, number, _ in errors if attack == name}
        entry.invalid &= ~np.isin(status.samples, list(silent))
        notes += [
            f"{name}: the model raised an error on {each['n']} samples, which count as wrong: {each['error']}"
            for each in results["raised"]
            if each["attack"] == name
        ]
        if entry.invalid.any():
            count = int(entry.invalid.sum())
            notes.append(f"{name}: {count} samples count as wrong because logits were not finite")
        if entry.failed.any():
            notes.append(
                f"{name}: this attack is broken: its pixels for {int(entry.failed.sum())} samples were not finite, "
                "twice; they count as not broken by it"
            )
        if entry.left_ball:
            notes.append(
                f"{name}: {entry.left_ball} adversarial images left the ball and count as failures of the attack"
            )
        if name == CLEAN:
            label = rows["label"]
            results |= accuracy("clean_", status.bits[CLEAN], campaign.draws, samples)
            results["invalid"] = int(entry.invalid.sum())
            continue
        attack = campaign.suite[name]
        norm, eps = threat_of(attack)
        several = joined(attack)
        after = before & status.bits_under(name)
        attacked = robust_share(before, campaign.draws)
        broken = attacked - robust_share(after, campaign.draws)
        attacks.append(
            {
                **{"name": name, "norm": UNION if several else norm, "eps": eps, **_members(several)},
                **{"kind": attack.kind, "settings": settings[name]},
                **accuracy("", after, campaign.draws, samples),
                **{"n": campaign.n, "attacked": int((before != 0).sum()), "succeeded": number(math.fsum(broken))},
                "success_rate": number(math.fsum(broken) / math.fsum(attacked)) if attacked.any() else None,
                **{"invalid": int(entry.invalid.sum()), "errors": int(entry.failed.sum()), "raised": len(silent)},
                **{"restarts": len(campaign.runs(name)), **entry.costs()},
            }
        )
        if attack.kind == "minimum-norm" and norm is not None:
            whole = bool((before == status.bits[CLEAN]).all())
            figures = shortest(rows, norm, samples)
            attacks[-1] |= figures if whole else dict.fromkeys(figures)
    worst, bits = _worst_cases(campaign, status)
    shares = [robust_share(b, campaign.draws) for b in (status.bits[CLEAN], *bits)]
    results["classes"] = by_class(label, shares[0], shares[1:])
    if campaign.scored:
        results["detection"] = _detection(campaign, attacks, worst)
        for name in (CLEAN, *campaign.suite):
            tables = [campaign.table(run)["score"] for run in campaign.runs(name)]
            # -infinite is the score of samples on which the model raised an error.
            if count := sum(int((np.isnan(scores) | (scores == np.inf)).sum()) for scores in tables):
                notes.append(f"{name}: {count} scores of the detector were not finite and count as flagged")
    spent = run_costs(campaign.folder, identity=campaign.identity)
    drawn = {name for e in spent for name in e.global_draws.splitlines()}
    notes += [GLOBAL_DRAWS.format(name) for name in (["the model"] if CLEAN in drawn else sorted(drawn))]
    if any(e.probabilities for e in spent):
        notes.append(PROBABILITIES)
    if {e.code for e in spent} - {code()}:
        notes.append(
            "the code of attacks, checkpoints, data modules, defenses, detectors or networks changed between the runs "
            "of this campaign or since: today's might find other outcomes; choose another --output to have them anew"
        )
    totals = {key: number(math.fsum(a[key] for a in attacks)) for key in ("seconds", "forwards", "backwards")}
    return {
        **results,
        **{"attacks": attacks, "worst_case": worst, "sweeps": sweeps(attacks, results)},
        **{"audit": None, "cost": {**totals, **cost(spent)}, "warnings": notes},
    }


def _worst_cases(campaign: Campaign, status: SampleStatus) -> tuple[list[Results], list[Bits]]:
    """Entries "worst_case", one for each threat model and each union of several norms, and the bits of the samples."""
    suite, worst = campaign.suite, []
    for (norm, eps), names in threat_models(suite).items():
        called = claim(norm, in_whole_ball(suite, names, eps))
        worst.append(({"norm": norm, "eps": eps, "attacks": names}, status.worst_case(norm, eps), called))
    for balls in unions(suite):
        entry = {"norm": UNION, "eps": None, **_members(balls), "attacks": counting_against(suite, balls)}
        worst.append((entry, status.union(balls), claim_on_union(in_balls(suite, balls))))
    entries = [
        {**entry, **accuracy("", bits, campaign.draws, campaign.chosen), "claim": called}
        for entry, bits, called in worst
    ]
    return entries, [bits for _, bits, _ in worst]


def _members(balls: Sequence[Ball]) -> Results:
    """The balls of a union as in results.json; nothing for one ball."""
    return {"members": [{"norm": norm, "eps": eps} for norm, eps in balls]} if balls else {}


def balls_of(case: Mapping[str, Any]) -> tuple[Ball, ...]:
    """Balls of an entry of results.json: of a union its members, else its own, none without a radius."""
    if case.get("members"):
        return tuple((member["norm"], member["eps"]) for member in case["members"])
    return () if case["norm"] is None or case["eps"] is None else ((case["norm"], case["eps"]),)


class AttackTotals:
    """Totals over the runs of one attack: invalid samples, failures, images outside the ball, passes and seconds."""

    def __init__(self, n: int) -> None:
        self.invalid: Flags = np.zeros(n, bool)
        self.failed: Flags = np.zeros(n, bool)
        self.left_ball = 0
        self.sums: dict[str, list[float]] = {"forwards": [], "backwards": [], "seconds": []}

    def take(self, status: SampleStatus, run: AttackRun, rows: Columns) -> None:
        self.invalid |= np.isin(status.samples, rows["index"][rows["adversarial"] == -1])
        self.failed |= np.isin(status.samples, rows["index"][rows["attack_failed"] == 1])
        for key, values in self.sums.items():
            values.append(math.fsum(rows[key]))
        attack = status.suite.get(run.name)
        if attack is not None and attack.kind == "budget":
            self.left_ball += int(does_not_count(rows, attack).sum())

    def costs(self) -> dict[str, float]:
        return {key: number(math.fsum(values)) for key, values in self.sums.items()}


def reasons_for_no_headline(suite: Mapping[str, Attack], required_adaptations: Mapping[str, bool]) -> Refused:
    """Reasons for no headline: no attack of a threat model does what an honest attacker of this defense must do.

    `required_adaptations` is what the defenses declare. The detour around a step without gradient (BPDA) is built into
    every `Purified`; averaging over random draws (EOT) is the suite's part.
    """
    if not required_adaptations.get("eot"):
        return {}
    lacking = [
        ball
        for ball, names in threat_models(suite).items()
        if not _averages(in_whole_ball(suite, names, ball[1]).values())
    ]
    refused: Refused = {(ball,): _NO_AVERAGE for ball in lacking}
    for balls in unions(suite):
        if missing := [ball for ball, attacks in in_balls(suite, balls).items() if not _averages(attacks.values())]:
            refused[balls] = f"{_NO_AVERAGE} (in {', '.join(norm for norm, _ in missing)})"
    return refused


def _averages(attacks: Iterable[Attack]) -> bool:
    return any(eot_samples_of(attack) > 1 for attack in attacks)


def eot_samples_of(attack: Attack) -> int:
    """Largest number of gradients that the attack, or one it is made of, averages."""
    return max(getattr(attack, "eot_samples", 1), *map(eot_samples_of, members(attack)), 1)


def _complete(run: AttackRun, expected: Bits, rows: Columns) -> None:
    name, restart = run.name, run.restart
    if len(missing := np.setdiff1d(expected, rows["index"])):
        raise Incomplete(
            f"{len(missing)} samples of {name} (restart {restart}) are not in the ledgers: {_some(missing)}; "
            "run the same command again, it does what is missing"
        )
    if len(extra := np.setdiff1d(rows["index"], expected)):
        raise UserError(
            f"the ledgers hold {len(extra)} samples of {name} (restart {restart}) that do not belong there: "
            f"{_some(extra)}; something else has changed them: choose another --output"
        )


def _some(numbers: Bits) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _detection(campaign: Campaign, attacks: Sequence[Results], worst: Sequence[Results]) -> Results:
    """Give every attack and worst case its entry "detection"; returns that of the whole campaign."""
    held_out, about = calibrated(campaign.folder)
    rates = sorted({*LEVELS, about["aimed_fpr"]})
    thresholds: dict[float | None, float] = {fpr: threshold(held_out, fpr) for fpr in rates}
    if (own := about.pop("own_theta", None)) is not None:
        thresholds[None] = own
    clean = campaign.table(campaign.runs(CLEAN)[0])
    clean = {key: clean[key] for key in ("index", "score")} | {"right": clean["adversarial"] == clean["label"]}
    for entry in attacks:
        entry["detection"] = account(clean, _calls(campaign, {None: [entry["name"]]}), thresholds)
    for case in worst:
        asked: dict[Ball | None, list[str]] = {
            ball: counting_against(campaign.suite, [ball]) for ball in balls_of(case)
        }
        case["detection"] = account(clean, _calls(campaign, asked), thresholds)
    realised = {fpr: float(flagged(clean["score"], theta).mean()) for fpr, theta in thresholds.items()}
    levels = [
        {
            **{"fpr": fpr, "theta": None if math.isinf(theta) else theta},
            **{"realised_fpr": realised[fpr], "interval": sampling_interval(realised[fpr], campaign.chosen)},
        }
        for fpr, theta in thresholds.items()
    ]
    detector, aimed = about.pop("detector"), about.pop("aimed_fpr")
    return {"detector": detector, "calibration": about, "aimed_fpr": aimed, "clean": {"levels": levels}}


def _calls(campaign: Campaign, asked: Mapping[Ball | None, Sequence[str]]) -> Columns:
    """Closest calls of the attacks that count in each ball (None: in their own); an image outside is no success."""
    parts = []
    for ball, names in asked.items():
        for run in (run for name in names for run in campaign.runs(name)):
            rows = campaign.table(run)
            out = does_not_count(rows, campaign.suite[run.name], ball)
            right = (rows["adversarial"] == rows["label"]) | out
            counts = (rows["linf"] > 0) & ~out
            parts.append({"index": rows["index"], "score": rows["score"], "right": right, "counts": counts})
    return closest_calls(parts)
