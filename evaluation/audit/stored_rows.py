"""What the stored rows of a campaign show by themselves, without asking the model again."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adversarial_lightning.attacks import Attack, DetectorAwareAPGD, DetectorAwarePGD, threat
from adversarial_lightning.evaluation.audit.check import Check, at_least, share_check, unasked
from adversarial_lightning.evaluation.audit.threat_models import Claim, leaves, setting
from adversarial_lightning.evaluation.campaign.merge import draws
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, Cascade, outside, standing
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


def clean_accuracy(cascade: Cascade, tables: Tables, results: Mapping[str, Any], rejects: bool) -> Check:
    """C2: accuracy without an attack is known of the very samples that were attacked; of rejecting models the ROC."""
    lost = len(np.setdiff1d(cascade.samples, tables[CLEAN, 0]["index"]))
    roc = not rejects or bool(results.get("detection"))
    sentence = f"{lost} of {len(cascade.samples)} samples lack their outcome without an attack" + (
        "; the accuracy of the detector is not reported." if not roc else "; both accuracies are of the same samples."
    )
    return Check("C2", "clean accuracy of the same samples", "fail" if lost or not roc else "pass", lost, 0, sentence)


def beaten(cascade: Cascade, name: str, eps: float) -> Flags:
    """The samples that the attack felled in more than half of the draws, of those that were right without it."""
    alive = standing(cascade.fates[CLEAN], cascade.draws) >= 0.5
    fallen: Flags = alive & (standing(cascade.withstood(name, eps), cascade.draws) < 0.5)
    return fallen


def asked(cascade: Cascade, name: str) -> Flags:
    """The samples that the attack has seen."""
    union: Flags = np.any([seen for (attack, _), seen in cascade.seen.items() if attack == name], axis=0)
    return union


def _split(cascade: Cascade, claim: Claim, ours: list[str], theirs: list[str]) -> tuple[int, int]:
    """How many samples only `ours` felled that `theirs` had seen too, and the reverse."""

    def union(names: list[str], what: Callable[[str], Flags]) -> Flags:
        any_of: Flags = np.any([what(name) for name in names], axis=0)
        return any_of

    fell = [union(names, lambda name: beaten(cascade, name, claim.eps)) for names in (ours, theirs)]
    saw = union(ours, lambda name: asked(cascade, name)) & union(theirs, lambda name: asked(cascade, name))
    return int((saw & fell[0] & ~fell[1]).sum()), int((saw & fell[1] & ~fell[0]).sum())


def _whole(claim: Claim) -> dict[str, Attack]:
    """The attacks that had the claim's whole ball: one that was kept to a smaller one is no match for them."""
    return {name: attack for name, attack in claim.attacks.items() if threat(attack)[1] in (None, claim.eps)}


def iterative_beats_single_step(cascade: Cascade, claim: Claim) -> Check:
    """C3: recorded iterative attacks fell no fewer samples than recorded single steps."""
    whole = _whole(claim)
    steps = {name: [setting(leaf, "steps") for leaf in leaves(attack)] for name, attack in whole.items()}
    single = [n for n in steps if {type(leaf).__name__ for leaf in leaves(whole[n])} == {"FGSM"}]
    many = [n for n, counts in steps.items() if any(isinstance(c, int) and c > 1 for c in counts)]
    name = f"recorded iterative attacks beat single steps, {claim.title}"
    if not single or not many:
        return unasked("C3", name, 0.005, "The suite does not hold both kinds.")
    only_single, only_many = _split(cascade, claim, single, many)
    excess, n = only_single - only_many, len(cascade.samples)
    fails = excess > 0.005 * n and at_least(only_single, only_single + only_many) > 0.5
    sentence = f"{only_single} samples fell only to {', '.join(single)}, {only_many} only to {', '.join(many)}: " + (
        "gradients mislead beyond the first step." if fails else "more steps do more."
    )
    return Check("C3", name, "fail" if fails else "pass", excess / n, 0.005, sentence)


def gradients_beat_queries(cascade: Cascade, claim: Claim) -> Check:
    """C6: recorded attacks without gradients fell no sample that the gradient attacks saw and left standing."""
    whole = _whole(claim)
    white = [n for n, attack in whole.items() if any(leaf.knowledge == "white-box" for leaf in leaves(attack))]
    black = [n for n in whole if n not in white]
    name = f"recorded gradient attacks beat queries, {claim.title}"
    if not black or not white:
        return unasked("C6", name, 0.002, "The suite does not hold both kinds.")
    only_black, _ = _split(cascade, claim, black, white)
    return share_check(
        *("C6", name, only_black, len(cascade.samples), 0.002),
        f"{only_black} of {len(cascade.samples)} samples fell only to {', '.join(black)}, not to {', '.join(white)}",
        bad="gradients are masked, and what queries did not reach may fall too",
        good="gradients find what queries find",
    )


def monotone(results: Mapping[str, Any], n: int) -> Check:
    """C4: the same attack with a larger radius leaves no more samples standing."""
    name, rise, where = "accuracy falls with the radius", 0.0, ""
    if not results.get("sweeps"):
        return unasked("C4", name, 0.005, "No attack of the suite comes at several radii.")
    for sweep in results["sweeps"]:
        pairs = zip(sweep["robust_accuracy"], sweep["robust_accuracy"][1:], sweep["eps"][1:], strict=False)
        for before, after, eps in pairs:
            if after - before > rise:
                rise, where = after - before, f" ({sweep['attack']} at {sweep['norm']} {eps:g})"
    fails = at_least(round(rise * n), n) > 0.005
    sentence = (
        f"The largest rise of accuracy from a radius to the next larger one is {100 * rise:.1f} points{where}: "
        + ("attacks lose their way in larger balls." if fails else "larger balls hold more.")
    )
    return Check("C4", name, "fail" if fails else "pass", rise, 0.005, sentence)


def worst_case(cascade: Cascade, claim: Claim, tables: Tables, results: Mapping[str, Any]) -> Check:
    """C9: the reported number is the mean over samples of the worst case, counted here again from the rows."""
    fates = dict(zip(tables[CLEAN, 0]["index"].tolist(), tables[CLEAN, 0]["draws"].tolist(), strict=True))
    for (attack, _restart), rows in tables.items():
        if attack in claim.attacks:
            own = threat(claim.attacks[attack])[1]
            far = outside(rows, claim.norm, claim.eps if own is None else own, claim.attacks[attack].kind)
            for i, bits in zip(rows["index"][~far].tolist(), rows["draws"][~far].tolist(), strict=True):
                fates[i] = fates.get(i, 0) & bits
    reported = next(
        c["robust_accuracy"] for c in results["worst_case"] if (c["norm"], c["eps"]) == (claim.norm, claim.eps)
    )
    counted = sum(bits.bit_count() for bits in fates.values()) / (len(fates) * cascade.draws)
    fails = reported > counted + 1e-9
    sentence = f"Reported are {100 * reported:.2f} %, the rows say {100 * counted:.2f} %: " + (
        "the report is not the worst case of each sample." if fails else "the report is the worst case of each sample."
    )
    name = f"the worst case of each sample, {claim.title}"
    return Check("C9", name, "fail" if fails else "pass", reported - counted, 0.0, sentence)


def declared(claim: Claim, obligations: Mapping[str, bool], detects: bool) -> Check:
    """C10: the suite does what an honest attacker of this defense must do: BPDA, EOT, and look at the detector."""
    name = f"what the defense demands is done, {claim.title}"
    if not any(obligations.values()) and not detects:
        return unasked("C10", name, None, "The model demands nothing special of its attackers.")
    averaged = max(draws(attack) for attack in claim.attacks.values())
    knowing = DetectorAwarePGD, DetectorAwareAPGD
    aware = any(isinstance(leaf, knowing) for attack in claim.attacks.values() for leaf in leaves(attack))
    lacks: list[str] = []
    done = ["gradients go through the declared stand-in (BPDA)"] if obligations.get("bpda") else []
    if obligations.get("eot"):
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
        return unasked("C11", name, _NEEDED, "The model declares no randomness.")
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
