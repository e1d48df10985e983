"""Checks on the stored rows of a campaign, without the model."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adversarial_lightning.attacks import Attack, DetectorAwareAPGD, DetectorAwarePGD
from adversarial_lightning.evaluation.audit.check import (
    Check,
    Verdict,
    counted,
    lower_confidence_bound,
    not_applicable,
    share_check,
    upper_confidence_bound,
)
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
from adversarial_lightning.evaluation.outcomes.types import Columns, Flags

Tables = Mapping[tuple[str, int], Columns]  # the rows of every run: attack and restart
_NEEDED = 20  # draws of the defender's noise for a mean


def threat_model(suite: Mapping[str, Attack], tables: Tables) -> Check:
    """C1: every budget attack names norm and radius and stays inside its ball (`outside_ball`), with finite lengths."""
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
    return counted(id="C1", name="threat models are complete and kept", k=len(nameless) or left, sentence=sentence)


def clean_accuracy(status: SampleStatus, tables: Tables, results: Mapping[str, Any], rejects: bool) -> Check:
    """C2: clean accuracy is known on the attacked samples, and the ROC curve of a detector."""
    lost = len(np.setdiff1d(status.samples, tables[CLEAN, 0]["index"]))
    roc = not rejects or bool(results.get("detection"))
    sentence = f"{lost} of {len(status.samples)} samples lack their outcome without an attack" + (
        "; the accuracy of the detector is not reported." if not roc else "; both accuracies are of the same samples."
    )
    return counted(id="C2", name="clean accuracy of the same samples", k=lost or int(not roc), sentence=sentence)


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


def _broken_only_by(
    status: SampleStatus, threat_model: ThreatModel, ours: list[str], theirs: list[str]
) -> tuple[int, int]:
    """Samples run on by both lists of attacks that only `ours` broke, and that only `theirs` broke."""

    def union(names: list[str], what: Callable[[str], Flags]) -> Flags:
        any_of: Flags = np.any([what(name) for name in names], axis=0)
        return any_of

    broken = [union(names, lambda name: broken_by(status, name, threat_model)) for names in (ours, theirs)]
    saw = union(ours, lambda name: attacked(status, name)) & union(theirs, lambda name: attacked(status, name))
    return int((saw & broken[0] & ~broken[1]).sum()), int((saw & broken[1] & ~broken[0]).sum())


def _in_whole_ball(threat_model: ThreatModel) -> dict[str, Attack]:
    """Attacks that were allowed the whole ball; those in a smaller ball cannot be compared with them."""
    return in_whole_ball(threat_model.attacks, list(threat_model.attacks), threat_model.eps)


def iterative_beats_single_step(status: SampleStatus, threat_model: ThreatModel, excludes: float) -> Check:
    """C3: recorded iterative attacks break at least as many samples as recorded single steps."""
    whole = _in_whole_ball(threat_model)
    steps = {name: [setting(leaf, "steps") for leaf in leaves(attack)] for name, attack in whole.items()}
    single = [n for n in steps if {type(leaf).__name__ for leaf in leaves(whole[n])} == {"FGSM"}]
    many = [n for n, counts in steps.items() if any(isinstance(c, int) and c > 1 for c in counts)]
    name = f"recorded iterative attacks beat single steps, {threat_model.title}"
    if not single or not many:
        return not_applicable(id="C3", name=name, limit=0.005, why="The suite does not have both kinds of attacks.")
    only_single, only_many = _broken_only_by(status, threat_model, single, many)
    excess, n = only_single - only_many, len(status.samples)
    said = f"{only_single} samples were broken only by {', '.join(single)}, {only_many} only by {', '.join(many)}"
    surely = lower_confidence_bound(only_single, only_single + only_many) > 0.5
    bad = "more steps were weaker: gradients mislead after the first step, or the steps are badly chosen"
    return _excess("C3", name, excess, n, surely, excludes, said, bad)


def _excess(id: str, name: str, k: int, n: int, surely: bool, excludes: float, said: str, bad: str) -> Check:
    """A check that `k` of `n` samples, where that is `surely` more than chance, are no more than half a point."""
    limit, bound = 0.005, upper_confidence_bound(max(0, k), n) if n else 1.0
    verdict: Verdict = "passed" if k <= limit * n and bound <= excludes else "not shown"
    if k > limit * n and surely:
        verdict = "failed"
    ends = {
        "failed": bad,
        "passed": f"at most {100 * bound:.1f} points could be missed",
        "not shown": f"{n} samples are too few to tell",
    }
    sentence = f"{said}: {ends[verdict]}."
    return Check(id=id, name=name, verdict=verdict, figure=k / max(1, n), limit=limit, bound=bound, sentence=sentence)


def gradients_beat_queries(status: SampleStatus, threat_model: ThreatModel, excludes: float) -> Check:
    """C6: recorded attacks without gradients break no sample that the gradient attacks left robust."""
    whole = _in_whole_ball(threat_model)
    white = [n for n, attack in whole.items() if any(leaf.knowledge == "white-box" for leaf in leaves(attack))]
    black = [n for n in whole if n not in white]
    name = f"recorded gradient attacks beat queries, {threat_model.title}"
    if not black or not white:
        return not_applicable(id="C6", name=name, limit=0.002, why="The suite does not have both kinds of attacks.")
    only_black, _ = _broken_only_by(status, threat_model, black, white)
    return share_check(
        id="C6",
        name=name,
        k=only_black,
        n=len(status.samples),
        limit=0.002,
        excludes=excludes,
        what="points",
        sentence=f"{only_black} of {len(status.samples)} samples were broken only by {', '.join(black)}, not by "
        f"{', '.join(white)}",
        bad="gradients are masked or the gradient attacks too weak, and samples that queries did not break may be "
        "broken too",
    )


def monotone(results: Mapping[str, Any], n: int, excludes: float) -> Check:
    """C4: the same attack with a larger radius leaves no more samples robust."""
    name, rise, where = "accuracy decreases with the radius", 0.0, ""
    if not results.get("sweeps"):
        return not_applicable(id="C4", name=name, limit=0.005, why="No attack of the suite has several radii.")
    for sweep in results["sweeps"]:
        pairs = zip(sweep["robust_accuracy"], sweep["robust_accuracy"][1:], sweep["eps"][1:], strict=False)
        for before, after, eps in pairs:
            if after - before > rise:
                rise, where = after - before, f" ({sweep['attack']} at {sweep['norm']} {eps:g})"
    k = round(rise * n)
    said = f"The largest increase of accuracy from a radius to the next larger one is {100 * rise:.1f} points{where}"
    surely = lower_confidence_bound(k, n) > 0.005
    return _excess("C4", name, k, n, surely, excludes, said, "an attack is weaker in the larger ball")


def worst_case(status: SampleStatus, threat_model: ThreatModel, tables: Tables, results: Mapping[str, Any]) -> Check:
    """C9: the reported number is the mean over samples of the worst case, computed again from the rows."""
    name = f"the worst case of each sample, {threat_model.title}"
    if threat_model.quantile is not None:
        return not_applicable(id="C9", name=name, limit=0.0, why="The claim is a curve of lengths, not one number.")
    if threat_model.part_of_union:
        why = "The ball is part of a union, and no number is printed for it alone."
        return not_applicable(id="C9", name=name, limit=0.0, why=why)
    bits = dict(zip(tables[CLEAN, 0]["index"].tolist(), tables[CLEAN, 0]["right_draws"].tolist(), strict=True))
    for (attack, _restart), rows in tables.items():
        if attack in threat_model.attacks:
            far = does_not_count(rows, threat_model.attacks[attack], (threat_model.norm, threat_model.eps))
            for i, right in zip(rows["index"][~far].tolist(), rows["right_draws"][~far].tolist(), strict=True):
                bits[i] = bits.get(i, 0) & right
    reported = next(
        c["robust_accuracy"]
        for c in results["worst_case"]
        if (c["norm"], c["eps"]) == (threat_model.norm, threat_model.eps)
    )
    counted_again = sum(right.bit_count() for right in bits.values()) / (len(bits) * status.draws)
    fails = reported > counted_again + 1e-9
    sentence = f"The report has {100 * reported:.2f} %, the rows give {100 * counted_again:.2f} %: " + (
        "the report is not the worst case of each sample." if fails else "the report is the worst case of each sample."
    )
    verdict: Verdict = "failed" if fails else "passed"
    return Check(id="C9", name=name, verdict=verdict, figure=reported - counted_again, limit=0.0, sentence=sentence)


def declared(threat_model: ThreatModel, required_adaptations: Mapping[str, bool], detects: bool) -> Check:
    """C10: the suite makes the adaptations that the defense requires: BPDA, EOT, and evading the detector."""
    name = f"the suite adapts to the defense, {threat_model.title}"
    if not any(required_adaptations.values()) and not detects:
        return not_applicable(id="C10", name=name, why="The model requires no adaptation of its attackers.")
    whole = _in_whole_ball(threat_model).values()
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
    return Check(id="C10", name=name, verdict="failed" if lacks else "passed", sentence=sentence)


def attacks_draw(suite: Mapping[str, Attack], drawn: Collection[str]) -> Check:
    """F1 for attacks: none draws from a global generator; `drawn` are those under which one changed."""
    name = "attacks draw from the given noise"
    if CLEAN in drawn:
        return not_applicable(id="F1", name=name, limit=0, why="The model itself draws: attacks cannot be told apart.")
    odd = [attack for attack in suite if attack in drawn]
    sentence = f"{len(suite)} attacks drew from the noise of each sample alone."
    if odd:
        sentence = f"{', '.join(odd)}: a global generator changed, so other batches or an interruption change outcomes."
    return counted(id="F1", name=name, k=len(odd), sentence=sentence)


def several_draws(count: int, stochastic: bool) -> Check:
    """C11: the accuracy of a stochastic defense is a mean over several draws."""
    name = "a random defense is judged in several draws"
    if not stochastic:
        return not_applicable(id="C11", name=name, limit=_NEEDED, why="The model declares no randomness.")
    fails = count < _NEEDED
    sentence = f"Every image was judged in {count} draws of the defender's noise: " + (
        f"use --draws {_NEEDED} or more, since few draws say little." if fails else "its interval over draws is known."
    )
    verdict: Verdict = "failed" if fails else "passed"
    return Check(id="C11", name=name, verdict=verdict, figure=count, limit=_NEEDED, sentence=sentence)


def settings_stored(results: Mapping[str, Any], folder: Path) -> Check:
    """C12: all hyper-parameters of all attacks are stored, in the results and in campaign.json."""
    name = "hyper-parameters are stored"
    without = [a["name"] for a in results["attacks"] if not (a.get("settings") or {}).get("init_args")]
    try:
        suite = json.loads((folder / "campaign.json").read_text(encoding="utf-8"))["parts"]["suite"]
        without += [a["name"] for a in results["attacks"] if suite.get(a["name"]) != a["settings"]]
    except (OSError, ValueError, KeyError, TypeError):
        without += ["campaign.json"]
    sentence = f"Settings are missing of {', '.join(dict.fromkeys(without))}: the evaluation cannot be repeated."
    if not without:
        sentence = f"All settings of {len(results['attacks'])} attacks are stored."
    return counted(id="C12", name=name, k=len(without), sentence=sentence)
