"""Checks with a known outcome: attacks that must succeed, and outcomes that must be reproduced."""

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
    """Radius of a ball in which every image can become every other."""
    size = float(x.shape[1:].numel())
    return {"linf": 1.0, "l2": math.sqrt(size)}.get(norm, size)


def unmoved(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Tensor:
    """Mask (B,) of samples that are robust even where the suite's objectives may change the whole image."""
    robust = ~samples.wrong(samples.x)
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
            robust &= ~samples.broken_by(attack, f"C4 {loss} {share}")
    return robust


def unbounded(samples: AuditSamples, threat_model: ThreatModel, budget: Budget, classes: int) -> Check:
    """C4, unconstrained failure: where any image is allowed, the suite's gradients must reach chance."""
    k = int(unmoved(samples, threat_model, budget).sum())
    return share_check(
        id="C4",
        name=f"unbounded attacks reach chance, {threat_model.title}",
        k=k,
        n=len(samples),
        limit=1 / max(1, classes),
        sentence=f"{k} of {len(samples)} samples are robust where gradients of {' and '.join(threat_model.losses())} "
        "may change the whole image",
        bad="gradients do not lead to adversarial examples, which certainly exist",
        good="gradients lead to adversarial examples",
    )


def undefended(
    samples: AuditSamples, threat_model: ThreatModel, budget: Budget, bare: nn.Module, classes: int
) -> Check:
    """C13: without the defense, the suite's strongest attack breaks every sample, or an unbounded one does.

    The second applies to classifiers that are robust by themselves.
    """
    alone = replace(samples, model=bare, draws=1, eot_samples=1)
    alone = alone[~alone.wrong(alone.x)]
    plain = (PGD, APGD, Langevin)  # other attacks may be made for the defense
    attack = strongest_gradient_attack(alone, threat_model, budget, among=plain)
    k, m = int((~alone.broken_by(attack, "C13")).sum()), len(alone)
    name = f"the attack works without the defense, {threat_model.title}"
    sentence = f"Without the defense {k} of {m} samples are robust"
    if lower_confidence_bound(k, m) <= 0.01:
        works = "the attack works on the undefended network"
        return share_check(id="C13", name=name, k=k, n=m, limit=0.01, sentence=sentence, good=works)
    k = int(unmoved(alone, threat_model, budget).sum())
    return share_check(
        id="C13",
        name=name,
        k=k,
        n=m,
        limit=1 / max(1, classes),
        sentence=f"{sentence}, and {k} where gradients may change the whole image",
        bad="the attack is broken",
        good="the attack works, and the classifier is robust by itself",
    )


class Readout(nn.Module):
    """Binary classifier on the logits of `model`: two logits -+ (w . logits - t), row i with its own `w` and `t`."""

    def __init__(self, model: nn.Module, w: Tensor, t: Tensor) -> None:
        super().__init__()
        self.model, self.w, self.t = model, w, t

    def forward(self, x: Tensor) -> Tensor:
        s = (self.model(x) * self.w).sum(1) - self.t
        return torch.stack([-s, s], 1)


def active(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Check:
    """C13, binarisation test (Zimmermann et al. 2022): the attack must find a planted adversarial point.

    For each sample a linear readout of the logits (`readouts`) gives the image and 30 random points near it class 0,
    and one random point of the ball class 1, so that an adversarial point is known to exist. Samples whose logits do
    not separate that point are left out.
    """
    name = f"points planted in the ball are found, {threat_model.title}"
    losses: list[Any] = ["ce" if loss == "ce" else "margin" for loss in threat_model.losses()]
    if samples.draws > 1:
        return not_applicable(id="C13", name=name, limit=0.05)
    attack = PGD(threat_model.norm, threat_model.eps, budget.steps, loss=losses[0])
    found = planted = 0
    for part in samples.parts():
        readout, separable = readouts(part, threat_model)
        zeros = torch.zeros_like(part.y)
        z = attack(readout, part.x, zeros, part.noise("C13 active"))
        predicted, _ = predict(readout, z, zeros, defender_noise(part.seed, part.index, 1))
        found, planted = found + int((predicted.eq(1) & separable).sum()), planted + int(separable.sum())
    return share_check(
        id="C13",
        name=name,
        k=planted - found,
        n=planted,
        limit=0.05,
        sentence=f"PGD missed {planted - found} of {planted} adversarial points planted at {threat_model.title}",
        bad="it would miss other adversarial points of this model too",
        good="it finds adversarial points that exist",
    )


def readouts(samples: AuditSamples, threat_model: ThreatModel) -> tuple[Readout, Tensor]:
    """The binarised model, and the mask (B,) of rows whose planted point it separates from the others.

    The binary classifier of Zimmermann et al. 2022 ("Increasing Confidence in Adversarial Robustness Evaluations"),
    Algorithm 1: inner points get class 0, a point farther out in the ball gets class 1, and a linear readout of the
    features separates them. Here the inner points are the image and 30 random points of half the radius, the features
    are the logits, and the readout is Fisher's linear discriminant w = (S + r I)^-1 (planted - mean), S the covariance
    of the inner points. The threshold t is halfway between the highest inner point and the planted one; w and t are
    scaled so that those get the values -1 and 1.
    """

    def logits(z: Tensor) -> Tensor:
        return samples.logits(z).double()

    near = RandomPoints(threat_model.norm, threat_model.eps / 2, 1)
    noise = samples.noise("planted")
    inner = [logits(samples.x)]
    inner += [logits(near.images(samples.model, samples.x, samples.y, noise.fork(i))) for i in range(30)]
    far = RandomPoints(threat_model.norm, threat_model.eps, 1)  # one random point, whatever the model says of it
    planted = logits(far.images(samples.model, samples.x, samples.y, noise))
    points = torch.stack(inner, 1)  # (B, 31, K)
    mean = points.mean(1)
    spread = (points - mean[:, None]).flatten(0, 1)
    covariance = spread.T @ spread / len(spread)
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    # The ridge keeps the system solvable: 31 points may not span all logits. It is small beside the mean variance.
    w = torch.linalg.solve(covariance + (1e-6 + 1e-3 * covariance.trace() / len(eye)) * eye, (planted - mean).T).T
    top, goal = (points * w[:, None]).sum(2).amax(1), (planted * w).sum(1)
    gap = goal - top
    scale = 2 / gap.clamp_min(1e-12)[:, None]
    separable = gap > 1e-3 * goal.abs().clamp_min(1e-6)
    dtype = samples.x.dtype
    return Readout(samples.model, (w * scale).to(dtype), ((top + goal) / 2 * scale[:, 0]).to(dtype)), separable


def repeated(stored: Sequence[int], again: Sequence[int], name: str) -> Check:
    """C16: recorded predictions are reproduced where the same samples are attacked again."""
    k = sum(a != b for a, b in zip(stored, again, strict=True))
    return share_check(
        id="C16",
        name="outcomes are reproduced",
        k=k,
        n=len(stored),
        limit=0.01,
        sentence=f"{k} of {len(stored)} predictions under {name} differed when it was run again",
        bad="the recorded outcomes cannot be verified",
        good="the recorded outcomes are verified",
    )
