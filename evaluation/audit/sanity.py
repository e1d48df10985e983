"""Experiments whose outcome is known beforehand: attacks that must succeed, outcomes that must come again."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import APGD, PGD, Langevin
from adversarial_lightning.evaluation.audit.check import Check, lower_confidence_bound, not_applicable, share_check
from adversarial_lightning.evaluation.audit.samples import AuditSamples
from adversarial_lightning.evaluation.audit.stronger_attacks import Budget, RandomPoints, strongest_gradient_attack
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel
from adversarial_lightning.evaluation.outcomes.outcome import defender_noise, predict


def widest(norm: str, x: Tensor) -> float:
    """The radius in which every image can become every other."""
    size = float(x.shape[1:].numel())
    return {"linf": 1.0, "l2": math.sqrt(size)}.get(norm, size)


def unmoved(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Tensor:
    """The samples (B,) that stand even when the suite's objectives may change the whole image."""
    stands = ~samples.wrong(samples.x)
    for share in (0.5, 1.0):
        radius = share * widest(threat_model.norm, samples.x)
        for loss in threat_model.losses():
            attack = PGD(
                threat_model.norm,
                radius,
                budget.steps,
                2.5 * radius / budget.steps,
                loss=loss,
                eot_samples=samples.eot_samples,
            )
            stands &= ~samples.broken_by(attack, f"C4 {loss} {share}")
    return stands


def unbounded(samples: AuditSamples, threat_model: ThreatModel, budget: Budget, classes: int) -> Check:
    """C4, unconstrained failure: with room for any image at all, the suite's gradients must reach chance."""
    k = int(unmoved(samples, threat_model, budget).sum())
    return share_check(
        *("C4", f"unbounded attacks reach chance, {threat_model.title}", k, len(samples), 1 / max(1, classes)),
        f"{k} of {len(samples)} samples stand when gradients of {' and '.join(threat_model.losses())} may change everything",
        bad="gradients do not lead to what is certainly there",
        good="gradients lead somewhere",
    )


def undefended(
    samples: AuditSamples, threat_model: ThreatModel, budget: Budget, bare: nn.Module, classes: int
) -> Check:
    """C13: with the defense off, the suite's leading attack leaves nothing standing, or an unbounded one does.

    The second for classifiers that are robust by themselves.
    """
    alone = replace(samples, model=bare, draws=1, eot_samples=1)
    alone = alone[~alone.wrong(alone.x)]
    attack = strongest_gradient_attack(
        alone, threat_model, budget, among=(PGD, APGD, Langevin)
    )  # others may be made for the defense
    k, m = int((~alone.broken_by(attack, "C13")).sum()), len(alone)
    name, said = (
        f"the attack works without the defense, {threat_model.title}",
        f"With the defense off {k} of {m} samples stand",
    )
    if lower_confidence_bound(k, m) <= 0.01:
        return share_check("C13", name, k, m, 0.01, said, bad="", good="the attack works on the undefended network")
    k = int(unmoved(alone, threat_model, budget).sum())
    return share_check(
        *("C13", name, k, m, 1 / max(1, classes)),
        f"{said}, and {k} when gradients may change the whole image",
        bad="the attack is broken",
        good="the attack works, and the classifier is robust by itself",
    )


class Readout(nn.Module):
    """Two logits for each row out of all logits of `model`: -+ (w . logits - t), row i by its own `w` and `t`."""

    def __init__(self, model: nn.Module, w: Tensor, t: Tensor) -> None:
        super().__init__()
        self.model, self.w, self.t = model, w, t

    def forward(self, x: Tensor) -> Tensor:
        s = (self.model(x) * self.w).sum(1) - self.t
        return torch.stack([-s, s], 1)


def active(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Check:
    """C13, active test (Zimmermann et al. 2022): a point that surely fools must be found.

    For each sample the logits get a linear readout that calls the image and 30 random points near it class 0, and one
    point of the ball, drawn at random, class 1. Samples for which the logits do not tell that point apart are left out.
    """
    name = f"points planted in the ball are found, {threat_model.title}"
    losses: list[Any] = ["ce" if loss == "ce" else "margin" for loss in threat_model.losses()]
    if samples.draws > 1:
        return not_applicable("C13", name, 0.05)
    attack = PGD(threat_model.norm, threat_model.eps, budget.steps, loss=losses[0])
    found = planted = 0
    for part in samples.parts():
        readout, surely = readouts(part, threat_model)
        zeros = torch.zeros_like(part.y)
        z = attack(readout, part.x, zeros, part.noise("C13 active"))
        fooled, _ = predict(readout, z, zeros, defender_noise(part.seed, part.index, 1))
        found, planted = found + int((fooled.eq(1) & surely).sum()), planted + int(surely.sum())
    return share_check(
        *("C13", name, planted - found, planted, 0.05),
        f"PGD missed {planted - found} of {planted} adversarial points that were planted at {threat_model.title}",
        bad="it would miss others of this model too",
        good="it finds what is there",
    )


def readouts(samples: AuditSamples, threat_model: ThreatModel) -> tuple[Readout, Tensor]:
    """The altered model, and for which rows (B,) the planted point is told apart from the rest."""

    def logits(z: Tensor) -> Tensor:
        return samples.logits(z).double()

    near = RandomPoints(threat_model.norm, threat_model.eps / 2, 1)
    noise = samples.noise("planted")
    inner = [logits(samples.x)]
    inner += [logits(near.perturb(samples.model, samples.x, samples.y, noise.fork(i))) for i in range(30)]
    far = RandomPoints(threat_model.norm, threat_model.eps, 2)  # the second lies on the surface
    planted = logits(far.perturb(samples.model, samples.x, samples.y * 0 - 1, noise))
    points = torch.stack(inner, 1)  # (B, 31, K)
    mean = points.mean(1)
    spread = (points - mean[:, None]).flatten(0, 1)
    covariance = spread.T @ spread / len(spread)
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    w = torch.linalg.solve(covariance + (1e-6 + 1e-3 * covariance.trace() / len(eye)) * eye, (planted - mean).T).T
    top, goal = (points * w[:, None]).sum(2).amax(1), (planted * w).sum(1)
    gap = goal - top
    scale = 2 / gap.clamp_min(1e-12)[:, None]
    surely = gap > 1e-3 * goal.abs().clamp_min(1e-6)
    dtype = samples.x.dtype
    return Readout(samples.model, (w * scale).to(dtype), ((top + goal) / 2 * scale[:, 0]).to(dtype)), surely


def repeated(stored: Sequence[int], again: Sequence[int], name: str) -> Check:
    """C16: predictions that are recorded come again when the same samples are attacked again, by a fresh forward."""
    k = sum(a != b for a, b in zip(stored, again, strict=True))
    return share_check(
        *("C16", "outcomes come again", k, len(stored), 0.01),
        f"{k} of {len(stored)} predictions under {name} were others when it was run again",
        bad="what is recorded cannot be verified",
        good="what is recorded is verified",
    )
