"""What the stored rows of a campaign show by themselves, without asking the model again."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adversarial_lightning.attacks import Attack, DetectorAwareAPGD, DetectorAwarePGD, threat
from adversarial_lightning.evaluation.audit.check import Check, lower_confidence_bound, not_applicable, share_check
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel, leaves, setting
from adversarial_lightning.evaluation.campaign.merge import eot_samples_of
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, SampleStatus, outside, robust_share
from adversarial_lightning.evaluation.outcomes.types import Columns, Flags

Tables = Mapping[tuple[str, int], Columns]  # the rows of every run: attack and restart
_NEEDED = 20  # draws of the defender's noise that a mean over them should have


def threat_model(suite: Mapping[str, Attack], tables: Tables) -> Check:
    """C1: every attack on a ball names norm and radius, and stays inside: eps (1 + 1e-6) + 1e-7, finite lengths."""
    nameless = [n for n, attack in suite.items() if attack.kind == "budget" and None in threat(attack)]
    left = rows_seen = 0
    for (name, _), rows in tables.items():
        if name != CLEAN:
            far = outside(rows, *threat(suite[name]), suite[name].kind) if suite[name].kind == "budget" else False
            left += int((far | ~np.isfinite(rows["linf"])).sum())
            rows_seen += len(rows["index"])
    if nameless:
        sentence = f"No norm or radius is known of {', '.join(nameless)}: what they find counts for no threat model."
    else:
        sentence = f"{left} of {rows_seen} recorded perturbations leave their ball or are not finite: " + (
            "such attacks fail for a reason that no attacker has." if left else "the threat models are kept."
        )
    return Check("C1", "threat models are complete and kept", "fail" if nameless or left else "pass", left, 0, sentence)


def clean_accuracy(status: SampleStatus, tables: Tables, results: Mapping[str, Any], rejects: bool) -> Check:
    """C2: accuracy without an attack is known of the very samples that were attacked; of rejecting models the ROC."""
    lost = len(np.setdiff1d(status.samples, tables[CLEAN, 0]["index"]))
    roc = not rejects or bool(results.get("detection"))
    sentence = f"{lost} of {len(status.samples)} samples lack their outcome without an attack" + (
        "; the accuracy of the detector is not reported." if not roc else "; both accuracies are of the same samples."
    )
    return Check("C2", "clean accuracy of the same samples", "fail" if lost or not roc else "pass", lost, 0, sentence)


def beaten(status: SampleStatus, name: str, eps: float) -> Flags:
    """The samples that the attack felled in more than half of the draws, of those that were right without it."""
    alive = robust_share(status.bits[CLEAN], status.draws) >= 0.5
    fallen: Flags = alive & (robust_share(status.bits_under(name, eps), status.draws) < 0.5)
    return fallen


def attacked(status: SampleStatus, name: str) -> Flags:
    """The samples that the attack has seen."""
    union: Flags = np.any([seen for (attack, _), seen in status.seen.items() if attack == name], axis=0)
    return union


def _split(status: SampleStatus, threat_model: ThreatModel, ours: list[str], theirs: list[str]) -> tuple[int, int]:
    """How many samples only `ours` felled that `theirs` had seen too, and the reverse."""

    def union(names: list[str], what: Callable[[str], Flags]) -> Flags:
        any_of: Flags = np.any([what(name) for name in names], axis=0)
        return any_of

    fell = [union(names, lambda name: beaten(status, name, threat_model.eps)) for names in (ours, theirs)]
    saw = union(ours, lambda name: attacked(status, name)) & union(theirs, lambda name: attacked(status, name))
    return int((saw & fell[0] & ~fell[1]).sum()), int((saw & fell[1] & ~fell[0]).sum())


def _whole(threat_model: ThreatModel) -> dict[str, Attack]:
    """The attacks that had the claim's whole ball: one that was kept to a smaller one is no match for them."""
    return {
        name: attack for name, attack in threat_model.attacks.items() if threat(attack)[1] in (None, threat_model.eps)
    }


def iterative_beats_single_step(status: SampleStatus, threat_model: ThreatModel) -> Check:
    """C3: recorded iterative attacks fell no fewer samples than recorded single steps."""
    whole = _whole(threat_model)
    steps = {name: [setting(leaf, "steps") for leaf in leaves(attack)] for name, attack in whole.items()}
    single = [n for n in steps if {type(leaf).__name__ for leaf in leaves(whole[n])} == {"FGSM"}]
    many = [n for n, counts in steps.items() if any(isinstance(c, int) and c > 1 for c in counts)]
    name = f"recorded iterative attacks beat single steps, {threat_model.title}"
    if not single or not many:
        return not_applicable("C3", name, 0.005, "The suite does not hold both kinds.")
    only_single, only_many = _split(status, threat_model, single, many)
    excess, n = only_single - only_many, len(status.samples)
    fails = excess > 0.005 * n and lower_confidence_bound(only_single, only_single + only_many) > 0.5
    sentence = f"{only_single} samples fell only to {', '.join(single)}, {only_many} only to {', '.join(many)}: " + (
        "gradients mislead beyond the first step." if fails else "more steps do more."
    )
    return Check("C3", name, "fail" if fails else "pass", excess / n, 0.005, sentence)


def gradients_beat_queries(status: SampleStatus, threat_model: ThreatModel) -> Check:
    """C6: recorded attacks without gradients fell no sample that the gradient attacks saw and left standing."""
    whole = _whole(threat_model)
    white = [n for n, attack in whole.items() if any(leaf.knowledge == "white-box" for leaf in leaves(attack))]
    black = [n for n in whole if n not in white]
    name = f"recorded gradient attacks beat queries, {threat_model.title}"
    if not black or not white:
        return not_applicable("C6", name, 0.002, "The suite does not hold both kinds.")
    only_black, _ = _split(status, threat_model, black, white)
    return share_check(
        *("C6", name, only_black, len(status.samples), 0.002),
        f"{only_black} of {len(status.samples)} samples fell only to {', '.join(black)}, not to {', '.join(white)}",
        bad="gradients are masked, and what queries did not reach may fall too",
        good="gradients find what queries find",
    )


def monotone(results: Mapping[str, Any], n: int) -> Check:
    """C4: the same attack with a larger radius leaves no more samples standing."""
    name, rise, where = "accuracy falls with the radius", 0.0, ""
    if not results.get("sweeps"):
        return not_applicable("C4", name, 0.005, "No attack of the suite comes at several radii.")
    for sweep in results["sweeps"]:
        pairs = zip(sweep["robust_accuracy"], sweep["robust_accuracy"][1:], sweep["eps"][1:], strict=False)
        for before, after, eps in pairs:
            if after - before > rise:
                rise, where = after - before, f" ({sweep['attack']} at {sweep['norm']} {eps:g})"
    fails = lower_confidence_bound(round(rise * n), n) > 0.005
    sentence = (
        f"The largest rise of accuracy from a radius to the next larger one is {100 * rise:.1f} points{where}: "
        + ("attacks lose their way in larger balls." if fails else "larger balls hold more.")
    )
    return Check("C4", name, "fail" if fails else "pass", rise, 0.005, sentence)


def worst_case(status: SampleStatus, threat_model: ThreatModel, tables: Tables, results: Mapping[str, Any]) -> Check:
    """C9: the reported number is the mean over samples of the worst case, counted here again from the rows."""
    bits = dict(zip(tables[CLEAN, 0]["index"].tolist(), tables[CLEAN, 0]["draws"].tolist(), strict=True))
    for (attack, _restart), rows in tables.items():
        if attack in threat_model.attacks:
            own = threat(threat_model.attacks[attack])[1]
            far = outside(
                rows, threat_model.norm, threat_model.eps if own is None else own, threat_model.attacks[attack].kind
            )
            for i, right in zip(rows["index"][~far].tolist(), rows["draws"][~far].tolist(), strict=True):
                bits[i] = bits.get(i, 0) & right
    reported = next(
        c["robust_accuracy"]
        for c in results["worst_case"]
        if (c["norm"], c["eps"]) == (threat_model.norm, threat_model.eps)
    )
    counted = sum(right.bit_count() for right in bits.values()) / (len(bits) * status.draws)
    fails = reported > counted + 1e-9
    sentence = f"Reported are {100 * reported:.2f} %, the rows say {100 * counted:.2f} %: " + (
        "the report is not the worst case of each sample." if fails else "the report is the worst case of each sample."
    )
    name = f"the worst case of each sample, {threat_model.title}"
    return Check("C9", name, "fail" if fails else "pass", reported - counted, 0.0, sentence)


def declared(threat_model: ThreatModel, required_adaptations: Mapping[str, bool], detects: bool) -> Check:
    """C10: the suite does what an honest attacker of this defense must do: BPDA, EOT, and look at the detector."""
    name = f"what the defense demands is done, {threat_model.title}"
    if not any(required_adaptations.values()) and not detects:
        return not_applicable("C10", name, None, "The model demands nothing special of its attackers.")
    averaged = max(eot_samples_of(attack) for attack in threat_model.attacks.values())
    knowing = DetectorAwarePGD, DetectorAwareAPGD
    aware = any(isinstance(leaf, knowing) for attack in threat_model.attacks.values() for leaf in leaves(attack))
    lacks: list[str] = []
    done = ["gradients go through the declared stand-in (BPDA)"] if required_adaptations.get("bpda") else []
    if required_adaptations.get("eot"):
        (done if averaged > 1 else lacks).append(f"gradients are means over {averaged} draws (EOT)")
    if detects:
        (done if aware else lacks).append("an attack hides from the detector")
    sentence = (
        f"Not done, though the defense demands it: {' and '.join(lacks)}." if lacks else f"Done: {' and '.join(done)}."
    )
    return Check("C10", name, "fail" if lacks else "pass", None, None, sentence)


def several_draws(count: int, stochastic: bool) -> Check:
    """C11: what a stochastic defense is worth is a mean over draws."""
    name = "a random defense is judged in several draws"
    if not stochastic:
        return not_applicable("C11", name, _NEEDED, "The model declares no randomness.")
    fails = count < _NEEDED
    sentence = f"Every image was judged in {count} draws of the defender's noise: " + (
        f"take --draws {_NEEDED} or more, one draw says little." if fails else "its interval over draws is known."
    )
    return Check("C11", name, "fail" if fails else "pass", count, _NEEDED, sentence)


def settings_stored(results: Mapping[str, Any], folder: Path) -> Check:
    """C12: all hyper-parameters of all attacks are in the results and in campaign.json."""
    name = "hyper-parameters are stored"
    without = [a["name"] for a in results["attacks"] if not (a.get("settings") or {}).get("init_args")]
    try:
        suite = json.loads((folder / "campaign.json").read_text(encoding="utf-8"))["parts"]["suite"]
        without += [a["name"] for a in results["attacks"] if suite.get(a["name"]) != a["settings"]]
    except (OSError, ValueError, KeyError, TypeError):
        without += ["campaign.json"]
    sentence = f"Not all settings are stored of {', '.join(dict.fromkeys(without))}: nobody can repeat it."
    if not without:
        sentence = f"All settings of {len(results['attacks'])} attacks are stored."
    return Check("C12", name, "fail" if without else "pass", len(without), 0, sentence)
