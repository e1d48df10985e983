"""Checks with stronger and other attacks than the suite's, on the samples that it left robust."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import APGD, FGSM, PGD, Attack, HopSkipJump, Noise, RayS, Square, Targeted, Within
from adversarial_lightning.attacks.core.bpda import straight_through
from adversarial_lightning.attacks.core.norms import NORMS
from adversarial_lightning.evaluation.audit.check import NO_SAMPLES, Check, not_applicable, share_check
from adversarial_lightning.evaluation.audit.samples import AuditSamples
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel


@dataclass(frozen=True)
class Budget:
    """Budget of the audit: samples of a threat model, and steps, queries and points of one attack on one of them.

    `points` are random points of the ball; gradients are averaged over `averaged` draws of a stochastic model.
    The substitute learns from `imitated` images, in `imitation` steps. `repeated` outcomes are computed again.
    """

    samples: int
    steps: int
    queries: int
    points: int
    imitation: int
    imitated: int = 1000
    averaged: int = 10
    repeated: int = 16


LEVELS = {
    "brief": Budget(32, steps=10, queries=40, points=10, imitation=10, imitated=64, averaged=3, repeated=4),
    "quick": Budget(64, steps=40, queries=300, points=200, imitation=150),
    "full": Budget(512, steps=100, queries=5_000, points=10_000, imitation=2_000),
}


@dataclass(frozen=True)
class RandomPoints(Attack):
    """`n` random points, in turn inside the ball and on its surface: the first misclassified one, else the last."""

    norm: Any
    eps: float
    n: int

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        norm, z, found = NORMS[self.norm], x, torch.zeros_like(y, dtype=torch.bool)
        for i in range(self.n):
            d = norm.random(x, self.eps, noise)
            if i % 2:  # push the point to the surface: projecting a much longer vector keeps its direction (in l2)
                d = self.eps * d.sign() if self.norm == "linf" else norm.project(1e3 * d, self.eps)
            z = torch.where(found.view(-1, *[1] * (x.ndim - 1)), z, (x + d).clamp(0, 1))
            with torch.no_grad():
                found |= model(z).argmax(1) != y
        return z


def ascent(samples: AuditSamples, threat_model: ThreatModel, steps: int, **settings: Any) -> PGD:
    """PGD in the ball of the threat model, with EOT where the model is stochastic."""
    return PGD(threat_model.norm, threat_model.eps, steps, eot_samples=samples.eot_samples, **settings)


def strongest_gradient_attack(
    samples: AuditSamples, threat_model: ThreatModel, budget: Budget, among: tuple[type, ...] = (Attack,)
) -> Attack:
    """The suite's strongest gradient attack among some classes; PGD with the audit's budget where it has none."""
    own = [attack for attack in threat_model.gradient_attacks() if isinstance(attack, among)]
    if not own:
        return ascent(samples, threat_model, budget.steps)
    averages = any(f.name == "eot_samples" for f in fields(own[0]))  # type: ignore[arg-type]
    return replace(own[0], eot_samples=samples.eot_samples) if averages else own[0]  # type: ignore[type-var]


def no_new_adversarials(
    *,
    id: str,
    name: str,
    samples: AuditSamples,
    threat_model: ThreatModel,
    attacks: Mapping[str, Attack],
    limit: float,
    made_on: Mapping[str, nn.Module] | None = None,
) -> Check:
    """A check that no attack breaks samples that the suite left robust; `made_on`: surrogate networks by attack."""
    if not len(samples):
        return not_applicable(id=id, name=f"{name}, {threat_model.title}", limit=limit, why=NO_SAMPLES)
    made_on = made_on or {}
    broken = {
        label: samples.broken_by(attack, f"{id} {label}", made_on.get(label)) for label, attack in attacks.items()
    }
    k = int(torch.stack(list(broken.values())).any(0).sum())
    counts = "; ".join(f"{label}: {int(rows.sum())}" for label, rows in broken.items())
    return share_check(
        id=id,
        name=f"{name}, {threat_model.title}",
        k=k,
        n=len(samples),
        limit=limit,
        sentence=f"{k} of {len(samples)} samples that the suite left robust at {threat_model.title} were broken "
        f"({counts})",
        of=threat_model.of,
        bad=f"the robust accuracy is too high by about {100 * threat_model.of * k / len(samples):.1f} points",
        good="such attacks break no more samples than the suite",
    )


def single_step(samples: AuditSamples, threat_model: ThreatModel) -> Check:
    """C3: one gradient step breaks no more samples than the suite."""
    attacks = {
        f"FGSM {loss}": FGSM(threat_model.norm, threat_model.eps, loss, eot_samples=samples.eot_samples)
        for loss in ("ce", "margin")
    }
    return no_new_adversarials(
        id="C3",
        name="one step finds no more than many",
        samples=samples,
        threat_model=threat_model,
        attacks=attacks,
        limit=0.005,
    )


def converged(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Check:
    """C5: the suite's strongest attack with twice the steps or another start breaks no more samples."""
    attack: Any = strongest_gradient_attack(samples, threat_model, budget)
    attacks = {"twice the steps": replace(attack, steps=2 * attack.steps), "another start": attack}
    return no_new_adversarials(
        id="C5",
        name="more steps and starts find no more",
        samples=samples,
        threat_model=threat_model,
        attacks=attacks,
        limit=0.005,
    )


def gradient_free(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Check:
    """C6, AutoAttack's square_sr: attacks that query logits or labels break no sample that gradients did not."""
    attacks: dict[str, Attack] = {"Square": Square(threat_model.norm, threat_model.eps, budget.queries)}
    votes = 1 if samples.draws == 1 else 5
    if threat_model.norm == "linf":
        attacks["RayS"] = Within(RayS(queries=budget.queries * votes, votes=votes), threat_model.eps)
    elif threat_model.norm == "l2":
        jumps = HopSkipJump(queries=budget.queries * votes, votes=votes, starts=10, probes=30)
        attacks["HopSkipJump"] = Within(jumps, threat_model.eps)
    return no_new_adversarials(
        id="C6",
        name="attacks without gradients find no more",
        samples=samples,
        threat_model=threat_model,
        attacks=attacks,
        limit=0.002,
    )


def random_points(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Check:
    """C7: random points of the ball break no more samples."""
    attacks = {f"{budget.points} draws": RandomPoints(threat_model.norm, threat_model.eps, budget.points)}
    return no_new_adversarials(
        id="C7",
        name="random noise finds no more",
        samples=samples,
        threat_model=threat_model,
        attacks=attacks,
        limit=0.002,
    )


def transferred(
    samples: AuditSamples, threat_model: ThreatModel, budget: Budget, substitutes: Mapping[str, nn.Module]
) -> Check:
    """C8, transfer failure: adversarial examples of networks without masked gradients break no more samples."""
    attacks = {
        label: ascent(samples, threat_model, budget.steps, loss="margin", momentum=0.75) for label in substitutes
    }
    return no_new_adversarials(
        id="C8",
        name="examples of other networks find no more",
        samples=samples,
        threat_model=threat_model,
        attacks=attacks,
        limit=0.002,
        made_on=substitutes,
    )


def around_purifiers(
    samples: AuditSamples, threat_model: ThreatModel, budget: Budget, purifiers: list[nn.Module]
) -> Check:
    """C10: gradients that leave out the purifiers (BPDA with the identity) break no more samples."""
    with ExitStack() as stack:
        for purifier in purifiers:
            stack.enter_context(straight_through(purifier))
        attacks = {f"PGD {loss}": ascent(samples, threat_model, budget.steps, loss=loss) for loss in ("ce", "margin")}
        return no_new_adversarials(
            id="C10",
            name="gradients past the defense find no more",
            samples=samples,
            threat_model=threat_model,
            attacks=attacks,
            limit=0.005,
        )


def tuned(samples: AuditSamples, threat_model: ThreatModel, budget: Budget, classes: int, level: str) -> Check:
    """C15: other step sizes and objectives than the suite's break no more samples."""
    steps, loss = budget.steps, threat_model.losses()[0]
    attacks: dict[str, Attack] = {
        f"PGD {loss}, steps of {share:g} eps": ascent(
            samples, threat_model, steps, loss=loss, step_size=share * threat_model.eps
        )
        for share in (0.02, 0.1, 0.5)
    }
    losses: list[Any] = ["ce", "margin", *["dlr"][: classes > 2]]
    for loss in losses:
        attacks[f"APGD {loss}"] = APGD(
            threat_model.norm, threat_model.eps, steps, loss, eot_samples=samples.eot_samples
        )
    if level == "full":
        aim: Any = "dlr" if classes > 3 else "margin"
        attacks["targeted"] = Targeted(
            APGD(threat_model.norm, threat_model.eps, steps, aim, targeted=True, eot_samples=samples.eot_samples)
        )
    return no_new_adversarials(
        id="C15",
        name="other objectives and step sizes find no more",
        samples=samples,
        threat_model=threat_model,
        attacks=attacks,
        limit=0.01,
    )
