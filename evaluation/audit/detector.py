"""Checks of what classifier and detector hold together: samples that stay right, or are turned away."""

from contextlib import suppress

import torch
from torch import Tensor

from adversarial_lightning.attacks import DetectorAwareAPGD
from adversarial_lightning.evaluation.audit.check import Share
from adversarial_lightning.evaluation.audit.evasion import Evasion, StandIn, fitted, search, stand_ins
from adversarial_lightning.evaluation.audit.inputs import Task
from adversarial_lightning.evaluation.audit.samples import AuditSamples

_POINTS = 16  # between an image and an adversarial one


def evasion_of(task: Task) -> Evasion:
    """What was tried against classifier and detector; once for both checks of a claim."""
    return task.once("evasion", lambda: _tried(task))


def _tried(task: Task) -> Evasion:
    samples, claim, budget = task.samples, task.threat_model, task.budget
    evasion = Evasion(samples, claim.norm, claim.eps, task.audit.model.detector.theta)  # type: ignore[union-attr,arg-type]
    stand_ins(evasion, samples.judge, budget.steps // 2)
    if claim.norm != "l0":
        guarded = {"gradients of the score": samples.judge}
        guarded["a fitted score"] = StandIn(samples.judge, fitted(evasion, 2 * budget.imitation))
        for label, victim in guarded.items():
            for weight in (0.1, 1.0, 10.0):
                attack = DetectorAwareAPGD(claim.norm, claim.eps, budget.steps, weight, eot_samples=samples.eot_samples)
                with suppress(Exception):  # the score has no graph: D1 says so
                    evasion.offer(samples.points(attack, f"D2 {label} {weight}", victim), label)
    search(evasion, budget.queries // 2)
    return evasion


def got_past(task: Task) -> Share:
    """D2: nothing that was held by classifier and detector gets past both."""
    evasion, samples = evasion_of(task), task.samples
    k = int(evasion.past.sum())
    counts = "; ".join(f"{label}: {found}" for label, found in evasion.by.items() if found) or "by nothing"
    return Share(
        k=k,
        of=samples.of,
        what="points",
        sentence=f"{k} of {len(samples)} samples that were right, or turned away, under every attack of the suite at "
        f"{task.threat_model.title} were got past both classifier and detector ({counts})",
        bad="what classifier and detector hold together is too high by about "
        f"{100 * samples.of * k / len(samples):.1f} points",
        broken=samples.numbers(evasion.past),
    )


def slopes(task: Task) -> Share:
    """D1: on the way to an image that breaks the classifier alone, the score's slope explains how the score changes.

    The mean slope at 16 points between them is compared with the difference. It finds steps, whatever their size,
    what is detached, and scores that are no numbers.
    """
    evasion = evasion_of(task)
    samples, far, rows = evasion.samples, evasion.seen[1][0], []
    for part, z in zip(samples.parts(), far.split(samples.rows), strict=True):
        risen, slope = -_scored(part, part.x)[0] + _scored(part, z)[0], torch.zeros(len(z), dtype=torch.float64)
        for i in range(_POINTS):
            _, gradient = _scored(part, part.x + (i + 0.5) / _POINTS * (z - part.x))
            slope = slope + ((gradient * (z - part.x)).flatten(1).sum(1).double() / _POINTS).cpu()
        still = risen.abs() <= 1e-6 * _scored(part, z)[0].abs()
        rows.append(~(((risen - slope).abs() <= 0.5 * risen.abs()) | still))
    k = int(torch.cat(rows).sum())
    return Share(
        k=k,
        sentence=f"For {k} of {len(samples)} samples the slope of the detector's score explains less than half of its "
        "change on the way to an adversarial image",
        bad="something in the detector is stepped, detached or not a number, and gradients do not lead past it",
    )


def _scored(part: AuditSamples, z: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (B,), on the CPU, and their gradients; zero where there are none."""
    with torch.enable_grad():
        leaf = z.detach().clone().requires_grad_()
        scores = part.deciding(leaf)[:, -1]
        gradient = torch.autograd.grad(scores.sum(), leaf)[0]
    return scores.detach().double().cpu(), gradient
