"""Checks with a known outcome: attacks that must succeed, and outcomes that must be reproduced."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import APGD, PGD, Langevin, Noise
from adversarial_lightning.evaluation.audit.check import Check, lower_confidence_bound, not_applicable, share_check
from adversarial_lightning.evaluation.audit.levels import Budget
from adversarial_lightning.evaluation.audit.own_attacks import SparseAscent, ascent, random_point, widest
from adversarial_lightning.evaluation.audit.samples import AuditSamples, Connected
from adversarial_lightning.evaluation.audit.stronger_attacks import strongest_gradient_attack
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel
from adversarial_lightning.evaluation.outcomes.outcome import defender_noise, predict


def unmoved(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Tensor:
    """Mask (B,) of samples that are robust even where the suite's objectives may change the whole image."""
    robust = ~samples.wrong(samples.x)
    for share in (0.5, 1.0):
        radius = share * widest(threat_model.norm, samples.x)
        for loss in threat_model.losses():
            settings = {} if threat_model.norm == "l0" else {"step_size": 2.5 * radius / budget.steps}
            attack = ascent(
                threat_model.norm, radius, budget.steps, loss=loss, eot_samples=samples.eot_samples, **settings
            )
            robust &= ~samples.broken_by(attack, f"C4 {loss} {share}")
    return robust


def unbounded(samples: AuditSamples, threat_model: ThreatModel, budget: Budget, classes: int) -> Check:
    """C4, unconstrained failure: where any image is allowed, the suite's gradients must reach chance.

    Chance is the share of all samples that a model has right which always says the same.
    """
    k = int(unmoved(samples, threat_model, budget).sum())
    chance = 1 / max(1, classes)
    return share_check(
        id="C4",
        name=f"unbounded attacks reach chance, {threat_model.title}",
        k=k,
        n=len(samples),
        limit=chance,
        excludes=samples.excludes,
        sentence=f"{k} of {len(samples)} samples are robust where gradients of {' and '.join(threat_model.losses())} "
        f"may change the whole image (chance: {100 * chance:.0f} % of all samples)",
        of=threat_model.of,
        bad="gradients do not lead to adversarial examples, which certainly exist",
    )


def undefended(
    samples: AuditSamples, threat_model: ThreatModel, budget: Budget, bare: nn.Module, classes: int
) -> Check:
    """C13: without the defense, the suite's strongest attack breaks every sample, or an unbounded one does.

    The second applies to classifiers that are robust by themselves.
    """
    alone = replace(samples, model=bare, untouched=None, draws=1, eot_samples=1)
    alone = alone[~alone.wrong(alone.x)]
    plain = (PGD, APGD, Langevin, SparseAscent)  # other attacks may be made for the defense
    attack = strongest_gradient_attack(alone, threat_model, budget, among=plain)
    k, m = int((~alone.broken_by(attack, "C13")).sum()), len(alone)
    name = f"the attack works without the defense, {threat_model.title}"
    sentence, of = f"Without the defense {k} of {m} samples are robust", samples.of * m / max(1, len(samples))
    if lower_confidence_bound(k, m) <= 0.01:
        return share_check(
            id="C13", name=name, k=k, n=m, limit=0.01, excludes=samples.excludes, of=of, sentence=sentence, bad=""
        )
    k = int(unmoved(alone, threat_model, budget).sum())
    return share_check(
        id="C13",
        name=name,
        k=k,
        n=m,
        limit=1 / max(1, classes),
        excludes=samples.excludes,
        sentence=f"{sentence}, and {k} where gradients may change the whole image",
        bad="the attack is broken, or too weak for the undefended network too",
    )


class Readout(nn.Module):
    """Binary classifier on the logits of `model`: two logits -+ (w . logits - t), row i with its own `w` and `t`."""

    def __init__(self, model: nn.Module, w: Tensor, t: Tensor) -> None:
        super().__init__()
        self.model, self.w, self.t = Connected(model), w, t

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
    if samples.draws > 1:
        return not_applicable(id="C13", name=name, limit=0.05, why="Not applicable to a stochastic model.")
    loss = "ce" if threat_model.losses()[0] == "ce" else "margin"
    attack = ascent(threat_model.norm, threat_model.eps, budget.steps, loss=loss)
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
        excludes=max(0.15, samples.excludes),
        sentence=f"Ascent missed {planted - found} of {planted} adversarial points planted at {threat_model.title}",
        bad="it may miss other adversarial points of this model too",
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

    def near(radius: float, noise: Noise) -> Tensor:
        return random_point(threat_model.norm, samples.x, radius, noise, surface=False)

    noise, half = samples.noise("planted"), threat_model.eps / 2
    inner = [logits(samples.x), *(logits(near(half, noise.fork(i))) for i in range(30))]
    planted = logits(near(threat_model.eps, noise))
    points = torch.stack(inner, 1)  # (B, 31, K)
    mean = points.mean(1)
    spread = (points - mean[:, None]).flatten(0, 1)
    covariance = spread.T @ spread / len(spread)
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    tiny = torch.finfo(torch.double).tiny
    # The ridge keeps the system solvable: 31 points may not span all logits. It is small beside the mean variance.
    w = torch.linalg.solve(covariance + (1e-3 * covariance.trace() / len(eye) + tiny) * eye, (planted - mean).T).T
    top, goal = (points * w[:, None]).sum(2).amax(1), (planted * w).sum(1)
    gap = goal - top
    scale = 2 / gap.clamp_min(tiny)[:, None]
    separable = (gap > 1e-3 * goal.abs()) & scale[:, 0].isfinite()
    dtype = samples.x.dtype
    return Readout(samples.model, (w * scale).to(dtype), ((top + goal) / 2 * scale[:, 0]).to(dtype)), separable


def repeated(stored: Sequence[int], again: Sequence[int], name: str, of: float, excludes: float) -> Check:
    """C16: recorded predictions are reproduced where the same samples are attacked again."""
    k = sum(a != b for a, b in zip(stored, again, strict=True))
    return share_check(
        id="C16",
        name="outcomes are reproduced",
        k=k,
        n=len(stored),
        limit=0.01,
        excludes=excludes,
        of=of,
        sentence=f"{k} of {len(stored)} predictions under {name} differed when it was run again",
        bad="the recorded outcomes cannot be repeated",
    )
