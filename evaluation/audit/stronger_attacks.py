"""Checks with stronger and other attacks than the suite's, on the samples that it left robust."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from adversarial_lightning.attacks import (
    APGD,
    JSMA,
    Attack,
    HopSkipJump,
    RayS,
    SaltAndPepperSearch,
    Square,
    Targeted,
    Within,
    threat,
)
from adversarial_lightning.attacks.core.bpda import straight_through
from adversarial_lightning.evaluation.audit.check import Share
from adversarial_lightning.evaluation.audit.inputs import Task
from adversarial_lightning.evaluation.audit.own_attacks import RandomPoints, SparseSearch, nearest, one_step
from adversarial_lightning.evaluation.outcomes.claims import leaves

BOTH: tuple[Any, ...] = ("ce", "margin")
_LONGEST = 200  # most steps of a minimum-norm attack of the suite that the audit repeats with twice the steps

Attacks = Mapping[str, Attack | tuple[Attack, nn.Module]]  # by label; on another model than the one that is audited


def no_more(attacks: Callable[[Task], Attacks]) -> Callable[[Task], Share]:
    """The question whether these attacks break samples that the suite left robust."""

    def ask(task: Task) -> Share:
        broken = {}
        for label, attack in attacks(task).items():
            attack, model = attack if isinstance(attack, tuple) else (attack, None)
            broken[label] = task.samples.broken_by(attack, f"{task.id} {label}", model)
        counts = "; ".join(f"{label}: {int(found.sum())}" for label, found in broken.items())
        return too_high(task, task.samples.numbers(torch.stack(list(broken.values())).any(0)), counts)

    return ask


def too_high(task: Task, broken: tuple[int, ...], by: str) -> Share:
    """Answer that `broken` are the numbers of the samples of the claim by which its accuracy is too high."""
    k, n, claim = len(broken), len(task.samples), task.threat_model
    return Share(
        k=k,
        sentence=f"{k} of {n} samples that the suite left robust at {claim.words} were broken ({by})",
        of=claim.of,
        what="points",
        bad=f"the accuracy there is too high by about {100 * claim.of * k / max(1, n):.1f} points",
        broken=broken,
    )


def single_step(task: Task) -> Attacks:
    """C3: one gradient step breaks no more samples than the suite."""
    norm, eps, draws = task.threat_model.norm, task.threat_model.eps, task.samples.eot_samples
    return {f"FGSM {loss}": one_step(norm, eps, loss=loss, eot_samples=draws) for loss in BOTH}


def converged(task: Task) -> Attacks:
    """C5: the suite's strongest attack with twice the steps or another start breaks no more samples.

    Of a suite of minimum-norm attacks, each that is not too long runs with twice the steps.
    """
    claim, attack = task.threat_model, task.strongest()
    twice: Any = attack
    attacks: dict[str, Attack] = {"twice the steps": task.averaging(attack, steps=2 * twice.steps)}
    attacks["another start"] = attack
    plain = [leaf for entry in claim.attacks.values() for leaf in leaves(entry)]
    for leaf in plain if not claim.gradient_attacks() else ():
        steps = getattr(leaf, "steps", None)
        iterates = leaf.kind == "minimum-norm" and leaf.knowledge == "white-box" and not leaf.targeted
        if iterates and isinstance(steps, int) and steps <= _LONGEST and threat(leaf) == (claim.norm, None):
            name = f"{type(leaf).__name__}, {2 * steps} steps"
            attacks[name] = Within(task.averaging(leaf, steps=2 * steps), claim.eps)
    return attacks


def gradient_free(task: Task) -> Attacks:
    """C6, AutoAttack's square_sr: attacks that query logits or labels break no sample that gradients did not."""
    votes, queries = 1 if task.samples.draws == 1 else 5, task.budget.queries
    norm, eps, asked = task.threat_model.norm, task.threat_model.eps, queries * votes
    if norm == "l0":
        search = SaltAndPepperSearch(queries=asked, votes=votes)
        return {"random search": SparseSearch(eps, queries), "salt and pepper": Within(search, eps)}
    attacks: dict[str, Attack] = {"Square": Square(norm, eps, queries)}
    if norm == "linf":
        attacks["RayS"] = Within(RayS(queries=asked, votes=votes), eps)
    elif norm == "l2":
        attacks["HopSkipJump"] = Within(HopSkipJump(queries=asked, votes=votes, starts=10, probes=30), eps)
    return attacks


def random_points(task: Task) -> Attacks:
    """C7: random points of the ball break no more samples."""
    points = task.budget.points
    return {f"{points} draws": RandomPoints(task.threat_model.norm, task.threat_model.eps, points)}


def transferred(task: Task) -> Attacks:
    """C8, transfer failure: adversarial examples of networks without masked gradients break no more samples.

    In l0 a saliency map (JSMA) makes a second set of them.
    """
    eps, networks = task.threat_model.eps, task.audit.substitutes(task.threat_model)
    ascent = task.ascent(task.budget.steps, loss="margin", momentum=0.75)
    attacks = {label: (ascent, net) for label, net in networks.items()}
    if task.threat_model.norm == "l0":
        saliency = Within(JSMA(gamma=min(1.0, (eps + 1) / task.samples.x[:1].numel())), eps)
        attacks |= {f"{label}, JSMA": (saliency, net) for label, net in networks.items()}
    return attacks


def around_purifiers(task: Task) -> Share:
    """C10: gradients that leave out the purifiers (BPDA with the identity) break no more samples."""
    with ExitStack() as stack:
        for purifier in task.audit.purifiers:
            stack.enter_context(straight_through(purifier))
        return no_more(lambda task: {f"ascent {loss}": task.ascent(task.budget.steps, loss=loss) for loss in BOTH})(
            task
        )


def tuned(task: Task) -> Attacks:
    """C15: other step sizes and objectives than the suite's and, but for linf, minimum-norm attacks break no more."""
    norm, eps, steps, classes = task.threat_model.norm, task.threat_model.eps, task.budget.steps, task.audit.classes
    losses: list[Any] = ["ce", "margin", *["dlr"][: classes > 2]]
    draws, loss, level = task.samples.eot_samples, task.threat_model.losses()[0], task.audit.level
    attacks: dict[str, Attack] = {}
    if norm == "l0":
        attacks = {f"ascent {each}": task.ascent(steps, loss=each) for each in losses}
    else:
        for share in (0.02, 0.5):
            attacks[f"PGD {loss}, steps of {share:g} eps"] = task.ascent(steps, loss=loss, step_size=share * eps)
        attacks |= {f"APGD {each}": APGD(norm, eps, steps, each, eot_samples=draws) for each in losses}
    if norm != "linf":
        attacks["FMN"] = nearest(norm, eps, 2 * steps, draws)
    if level != "brief" and norm != "l0" and classes > 2:  # one class at a time, where untargeted steps cannot decide
        aim: Any = "dlr" if level == "full" and classes > 3 else "margin"
        each_steps = steps if level == "full" else steps // 2
        attacks["targeted"] = Targeted(APGD(norm, eps, each_steps, aim, targeted=True, eot_samples=draws))
    return attacks


def without_memory(task: Task) -> Attacks:
    """M3: attacks on copies that were never asked anything, judged by other such copies, break no more samples."""
    judge, ours = task.samples.judge, task.ascent(task.budget.steps, loss="margin", momentum=0.75)
    return {"ascent margin": (ours, judge), "the suite's strongest": (task.strongest(), judge)}


def altogether(task: Task) -> Share:
    """A1: all experiments of the audit together; samples that each check breaks below its limit add up."""
    found = task.audit.found_about(task.threat_model)
    by = {key.removesuffix(f" {task.threat_model.title}"): len(c.broken) for key, c in found.items() if c.broken}
    every = tuple(sorted({number for check in found.values() for number in check.broken}))
    return too_high(task, every, "; ".join(f"{key}: {k}" for key, k in by.items()) or "by none")
