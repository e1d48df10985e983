"""Checks for models whose answers depend on more than the image: on earlier questions, and on who asks."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from adversarial_lightning.evaluation.audit.check import NO_SAMPLES, Check, not_applicable, share_check
from adversarial_lightning.evaluation.audit.interface import resolution
from adversarial_lightning.evaluation.audit.levels import Budget
from adversarial_lightning.evaluation.audit.own_attacks import ascent
from adversarial_lightning.evaluation.audit.samples import AuditSamples, Connected
from adversarial_lightning.evaluation.audit.stronger_attacks import no_new_adversarials, strongest_gradient_attack
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel

OUTCOMES = "recorded outcomes hold without a memory"


class Questions(nn.Module):
    """Keeps every fifth question of an attack on `rows` images, and what `model` answered: `asked`."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        super().__init__()
        self.model, self.rows, self.count = model, rows, 0
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        self.count += len(x) == self.rows
        if len(x) == self.rows and self.count % 5 == 0:
            self.asked.append((x.detach().clone(), logits.detach().clone()))
        return logits


def differs(one: Tensor, other: Tensor) -> Tensor:
    """Mask (B,) of rows whose logits (B, K) differ by more than rounding."""
    size, tolerance = one.norm(dim=1), max(1e-3, 4 * resolution(one))
    same: Tensor = (other - one).norm(dim=1) <= tolerance * size
    return ~same  # so that what is not a number differs


def same_answers(samples: AuditSamples, threat_model: ThreatModel, budget: Budget, copies: str) -> Check:
    """M1: what an attack was told is what a copy says that was never asked, and what the model says afterwards.

    The images that an ascent asks of the model are asked again, in the other order and not by an attack.
    """
    name, forgetful = "answers do not depend on earlier questions or on who asks", samples.judge
    if not len(samples):
        return not_applicable(id="M1", name=name, limit=0.0, why=NO_SAMPLES)
    attack = ascent(threat_model.norm, threat_model.eps, budget.steps // 2, loss="margin", eot_samples=1)
    odd = []
    for part in samples.parts():
        record = Questions(part.model, len(part))
        points = attack(Connected(record), part.x, part.y, part.noise("M1"))
        asked = record.asked if samples.draws == 1 else []  # in an attack a stochastic model draws other noise
        rows = torch.zeros_like(part.y, dtype=torch.bool)
        with torch.no_grad():
            for z, told in reversed([*asked, (points, part.deciding(points, score=False))]):
                unasked = replace(part, model=forgetful).deciding(z, score=False)
                rows |= differs(unasked, told) | differs(unasked, part.deciding(z, score=False))
            rows |= differs(replace(part, model=forgetful).deciding(part.x, score=False), part.logits(part.x))
        odd.append(rows)
    k = int(torch.cat(odd).sum())
    return share_check(
        id="M1",
        name=name,
        k=k,
        n=len(samples),
        limit=0.0,
        excludes=samples.excludes,
        of=samples.of,
        sentence=f"For {k} of {len(samples)} samples the model gave an attack, or gave afterwards, other answers than "
        f"{copies} give to the same images",
        bad="it draws, remembers, or sees who asks",
    )


def same_outcomes(
    stored: Sequence[int], now: Sequence[int], attack: str, copies: str, of: float, excludes: float
) -> Check:
    """M2: recorded successes and failures are the same where only copies are asked that were never asked before."""
    k = sum(a != b for a, b in zip(stored, now, strict=True))
    return share_check(
        id="M2",
        name=OUTCOMES,
        k=k,
        n=len(stored),
        limit=0.01,
        excludes=excludes,
        of=of,
        sentence=f"{k} of {len(stored)} predictions under {attack} differed on {copies}",
        bad="the recorded outcomes hold only for a model that was asked these questions in this order",
    )


def without_memory(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Check:
    """M3: attacks on copies that were never asked anything, judged by other such copies, break no more samples."""
    ours = ascent(
        threat_model.norm,
        threat_model.eps,
        budget.steps,
        loss="margin",
        momentum=0.75,
        eot_samples=samples.eot_samples,
    )
    attacks = {"ascent margin": ours, "the suite's strongest": strongest_gradient_attack(samples, threat_model, budget)}
    return no_new_adversarials(
        id="M3",
        name="attacks on copies without a memory find no more",
        samples=samples,
        threat_model=threat_model,
        attacks=attacks,
        limit=0.005,
        made_on=dict.fromkeys(attacks, samples.judge),
    )
