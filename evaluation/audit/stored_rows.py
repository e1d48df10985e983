"""Checks on the stored rows of a campaign, without the model."""

import json
from collections.abc import Callable

import numpy as np

from adversarial_lightning.attacks import Attack, DetectorAwareAPGD, DetectorAwarePGD
from adversarial_lightning.evaluation.audit.check import (
    Answer,
    Said,
    Share,
    Verdict,
    counted,
    lower_confidence_bound,
    upper_confidence_bound,
)
from adversarial_lightning.evaluation.audit.inputs import Task
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel, setting
from adversarial_lightning.evaluation.campaign.merge import eot_samples_of
from adversarial_lightning.evaluation.campaign.sample_status import (
    CLEAN,
    SampleStatus,
    does_not_count,
    in_whole_ball,
    robust_share,
)
from adversarial_lightning.evaluation.campaign.unions import balls
from adversarial_lightning.evaluation.outcomes.claims import leaves
from adversarial_lightning.evaluation.outcomes.types import Flags

NEEDED = 20  # draws of the defender's noise for a mean
EXCESS = 0.005  # share of samples by which one kind of attack may seem stronger by chance
_ONE_KIND = "The suite does not have both kinds of attacks."


def threat_model(task: Task) -> Said:
    """C1: every budget attack names norm and radius and stays inside its ball (`outside_ball`), with finite lengths."""
    suite, tables = task.audit.campaign.suite, task.audit.tables
    nameless = [n for n, a in suite.items() if a.kind == "budget" and not balls(a)]
    left = rows_seen = 0
    for (name, _), rows in tables.items():
        if name != CLEAN:
            far = does_not_count(rows, suite[name]) if suite[name].kind == "budget" else False
            left += int((far | ~np.isfinite(rows["linf"])).sum())
            rows_seen += len(rows["index"])
    if nameless:
        sentence = f"{', '.join(nameless)}: no norm or radius is known, so their successes count for no threat model."
    else:
        sentence = f"{left} of {rows_seen} recorded perturbations leave their ball or are not finite: " + (
            "they count as failures, which a real attacker would correct."
            if left
            else "the attacks kept to their balls."
        )
    return counted(len(nameless) or left, sentence)


def clean_accuracy(task: Task) -> Said:
    """C2: clean accuracy is known on the attacked samples, and the ROC curve of a detector."""
    status = task.audit.status
    lost = len(np.setdiff1d(status.samples, task.audit.tables[CLEAN, 0]["index"]))
    roc = not task.audit.campaign.scored or bool(task.audit.results.get("detection"))
    sentence = f"{lost} of {len(status.samples)} samples lack their outcome without an attack" + (
        "; the accuracy of the detector is not reported." if not roc else "; both accuracies are of the same samples."
    )
    return counted(lost or int(not roc), sentence)


def broken_by(status: SampleStatus, name: str, threat_model: ThreatModel) -> Flags:
    """Samples that were right without an attack and are broken by this one in more than half of the draws."""
    right = robust_share(status.bits[CLEAN], status.draws) >= 0.5
    bits = status.bits_under(name, threat_model.norm, threat_model.eps)
    broken: Flags = right & (robust_share(bits, status.draws) < 0.5)
    return broken


def attacked(status: SampleStatus, name: str) -> Flags:
    """Samples that the attack has run on."""
    union: Flags = np.any([seen for (attack, _), seen in status.seen.items() if attack == name], axis=0)
    return union


def _broken_only_by(task: Task, ours: list[str], theirs: list[str]) -> tuple[int, int]:
    """Samples run on by both lists of attacks that only `ours` broke, and that only `theirs` broke."""
    status = task.audit.status

    def union(names: list[str], what: Callable[[str], Flags]) -> Flags:
        any_of: Flags = np.any([what(name) for name in names], axis=0)
        return any_of

    broken = [union(names, lambda name: broken_by(status, name, task.threat_model)) for names in (ours, theirs)]
    saw = union(ours, lambda name: attacked(status, name)) & union(theirs, lambda name: attacked(status, name))
    return int((saw & broken[0] & ~broken[1]).sum()), int((saw & broken[1] & ~broken[0]).sum())


def _in_whole_ball(threat_model: ThreatModel) -> dict[str, Attack]:
    """Attacks that were allowed the whole ball; those in a smaller ball cannot be compared with them."""
    return in_whole_ball(threat_model.attacks, list(threat_model.attacks), threat_model.eps)


def iterative_beats_single_step(task: Task) -> Answer:
    """C3: recorded iterative attacks break at least as many samples as recorded single steps."""
    whole = _in_whole_ball(task.threat_model)
    steps = {name: [setting(leaf, "steps") for leaf in leaves(attack)] for name, attack in whole.items()}
    single = [n for n in steps if {type(leaf).__name__ for leaf in leaves(whole[n])} == {"FGSM"}]
    many = [n for n, counts in steps.items() if any(isinstance(c, int) and c > 1 for c in counts)]
    if not single or not many:
        return _ONE_KIND
    only_single, only_many = _broken_only_by(task, single, many)
    said = f"{only_single} samples were broken only by {', '.join(single)}, {only_many} only by {', '.join(many)}"
    surely = lower_confidence_bound(only_single, only_single + only_many) > 0.5
    bad = "more steps were weaker: gradients mislead after the first step, or the steps are badly chosen"
    return _excess(only_single - only_many, len(task.audit.status.samples), surely, task.budget.excludes, said, bad)


def _excess(k: int, n: int, surely: bool, excludes: float, said: str, bad: str) -> Said:
    """Answer that `k` of `n` samples, where that is `surely` more than chance, are no more than half a point."""
    bound = upper_confidence_bound(max(0, k), n) if n else 1.0
    verdict: Verdict = "passed" if k <= EXCESS * n and bound <= excludes else "not shown"
    if k > EXCESS * n and surely:
        verdict = "failed"
    ends = {
        "failed": bad,
        "passed": f"at most {100 * bound:.1f} points could be missed",
        "not shown": f"{n} samples are too few to tell",
    }
    return Said(verdict=verdict, figure=k / max(1, n), bound=bound, sentence=f"{said}: {ends[verdict]}.")


def gradients_beat_queries(task: Task) -> Answer:
    """C6: recorded attacks without gradients break no sample that the gradient attacks left robust."""
    whole, n = _in_whole_ball(task.threat_model), len(task.audit.status.samples)
    white = [name for name, attack in whole.items() if any(leaf.knowledge == "white-box" for leaf in leaves(attack))]
    black = [name for name in whole if name not in white]
    if not black or not white:
        return _ONE_KIND
    only_black, _ = _broken_only_by(task, black, white)
    return Share(
        k=only_black,
        n=n,
        what="points",
        sentence=f"{only_black} of {n} samples were broken only by {', '.join(black)}, not by {', '.join(white)}",
        bad="gradients are masked or the gradient attacks too weak, and samples that queries did not break may be "
        "broken too",
    )


def monotone(task: Task) -> Answer:
    """C4: the same attack with a larger radius leaves no more samples robust."""
    rise, where, sweeps = 0.0, "", task.audit.results.get("sweeps")
    if not sweeps:
        return "No attack of the suite has several radii."
    for sweep in sweeps:
        pairs = zip(sweep["robust_accuracy"], sweep["robust_accuracy"][1:], sweep["eps"][1:], strict=False)
        for before, after, eps in pairs:
            if after - before > rise:
                rise, where = after - before, f" ({sweep['attack']} at {sweep['norm']} {eps:g})"
    n = task.audit.campaign.n
    k = round(rise * n)
    said = f"The largest increase of accuracy from a radius to the next larger one is {100 * rise:.1f} points{where}"
    surely = lower_confidence_bound(k, n) > EXCESS
    return _excess(k, n, surely, task.budget.excludes, said, "an attack is weaker in the larger ball")


def worst_case(task: Task) -> Answer:
    """C9: the reported number is the mean over samples of the worst case, computed again from the rows."""
    claim, tables = task.threat_model, task.audit.tables
    if claim.quantile is not None:
        return "The claim is a curve of lengths, not one number."
    if claim.part_of_union:
        return "The ball is part of a union, and no number is printed for it alone."
    bits = dict(zip(tables[CLEAN, 0]["index"].tolist(), tables[CLEAN, 0]["right_draws"].tolist(), strict=True))
    for (name, _restart), rows in tables.items():
        if name in claim.attacks:
            far = does_not_count(rows, claim.attacks[name], (claim.norm, claim.eps))
            for i, right in zip(rows["index"][~far].tolist(), rows["right_draws"][~far].tolist(), strict=True):
                bits[i] = bits.get(i, 0) & right
    cases = task.audit.results["worst_case"]
    reported = next(c["robust_accuracy"] for c in cases if (c["norm"], c["eps"]) == (claim.norm, claim.eps))
    counted_again = sum(right.bit_count() for right in bits.values()) / (len(bits) * task.audit.status.draws)
    fails = reported > counted_again + 1e-9
    sentence = f"The report has {100 * reported:.2f} %, the rows give {100 * counted_again:.2f} %: " + (
        "the report is not the worst case of each sample." if fails else "the report is the worst case of each sample."
    )
    return Said(verdict="failed" if fails else "passed", figure=reported - counted_again, sentence=sentence)


def declared(task: Task) -> Answer:
    """C10: the suite makes the adaptations that the defense requires: BPDA, EOT, and evading the detector."""
    required_adaptations, detects = task.audit.required_adaptations, task.audit.campaign.scored
    if not any(required_adaptations.values()) and not detects:
        return "The model requires no adaptation of its attackers."
    whole = _in_whole_ball(task.threat_model).values()
    averaged = max((eot_samples_of(attack) for attack in whole), default=1)
    knowing = DetectorAwarePGD, DetectorAwareAPGD
    aware = any(isinstance(leaf, knowing) for attack in whole for leaf in leaves(attack))
    lacks: list[str] = []
    done = ["gradients go through the declared surrogate (BPDA)"] if required_adaptations.get("bpda") else []
    if required_adaptations.get("eot"):
        (done if averaged > 1 else lacks).append(f"gradients are means over {averaged} draws (EOT)")
    if detects:
        (done if aware else lacks).append("an attack evades the detector")
    sentence = (
        f"Missing, though the defense requires it: {' and '.join(lacks)}." if lacks else f"Done: {' and '.join(done)}."
    )
    return Said(verdict="failed" if lacks else "passed", sentence=sentence)


def attacks_draw(task: Task) -> Answer:
    """F1 for attacks: none draws from a global generator."""
    suite, drawn = task.audit.campaign.suite, task.audit.drawn
    if CLEAN in drawn:
        return "The model itself draws: attacks cannot be told apart."
    odd = [attack for attack in suite if attack in drawn]
    sentence = f"{len(suite)} attacks drew from the noise of each sample alone."
    if odd:
        sentence = f"{', '.join(odd)}: a global generator changed, so other batches or an interruption change outcomes."
    return counted(len(odd), sentence)


def several_draws(task: Task) -> Answer:
    """C11: the accuracy of a stochastic defense is a mean over several draws."""
    if not task.audit.stochastic:
        return "The model declares no randomness."
    count = task.audit.campaign.draws
    sentence = f"Every image was judged in {count} draws of the defender's noise: " + (
        f"use --draws {NEEDED} or more, since few draws say little."
        if count < NEEDED
        else "its interval over draws is known."
    )
    return Said(verdict="failed" if count < NEEDED else "passed", figure=count, sentence=sentence)


def settings_stored(task: Task) -> Said:
    """C12: all hyper-parameters of all attacks are stored, in the results and in campaign.json."""
    attacks = task.audit.results["attacks"]
    without = [a["name"] for a in attacks if not (a.get("settings") or {}).get("init_args")]
    try:
        text = (task.audit.campaign.folder / "campaign.json").read_text(encoding="utf-8")
        suite = json.loads(text)["parts"]["suite"]
        without += [a["name"] for a in attacks if suite.get(a["name"]) != a["settings"]]
    except (OSError, ValueError, KeyError, TypeError):
        without += ["campaign.json"]
    sentence = f"Settings are missing of {', '.join(dict.fromkeys(without))}: the evaluation cannot be repeated."
    return counted(len(without), sentence if without else f"All settings of {len(attacks)} attacks are stored.")
