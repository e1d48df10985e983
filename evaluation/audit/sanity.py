"""Checks with a known outcome: attacks that must succeed."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import APGD, PGD, Langevin, Noise
from adversarial_lightning.evaluation.audit.check import Share, lower_confidence_bound
from adversarial_lightning.evaluation.audit.inputs import Task
from adversarial_lightning.evaluation.audit.own_attacks import SparseAscent, ascent, random_point, widest
from adversarial_lightning.evaluation.audit.samples import AuditSamples, Connected
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel
from adversarial_lightning.evaluation.outcomes.outcome import defender_noise, predict


def unmoved(task: Task, samples: AuditSamples) -> Tensor:
    """Mask (B,) of samples that are robust even where the suite's objectives may change the whole image."""
    norm, steps, losses = task.threat_model.norm, task.budget.steps, task.threat_model.losses()
    robust = ~samples.wrong(samples.x)
    for share in (0.5, 1.0):
        radius = share * widest(norm, samples.x)
        settings = {} if norm == "l0" else {"step_size": 2.5 * radius / steps}
        for loss in losses:
            attack = ascent(norm, radius, steps, loss=loss, eot_samples=samples.eot_samples, **settings)
            robust &= ~samples.broken_by(attack, f"C4 {loss} {share}")
    return robust


def unbounded(task: Task) -> Share:
    """C4, unconstrained failure: where any image is allowed, the suite's gradients must reach chance.

    Chance is the share of all samples that a model has right which always says the same.
    """
    k, chance = int(unmoved(task, task.samples).sum()), 1 / max(1, task.audit.classes)
    return Share(
        k=k,
        limit=chance,
        sentence=f"{k} of {len(task.samples)} samples are robust where gradients of "
        f"{' and '.join(task.threat_model.losses())} may change the whole image (chance: {100 * chance:.0f} % of all "
        "samples)",
        of=task.threat_model.of,
        bad="gradients do not lead to adversarial examples, which certainly exist",
    )


def no_purifier(task: Task) -> str:
    """Why nothing is asked about the model without its purifiers."""
    return "" if task.audit.purifiers else "The model has no purifier that gradients could leave out."


def undefended(task: Task) -> Share:
    """C13: without the defense, the suite's strongest attack breaks every sample, or an unbounded one does.

    The second applies to classifiers that are robust by themselves.
    """
    alone = replace(task.samples, model=task.audit.bare, untouched=None, draws=1, eot_samples=1)
    alone = alone[~alone.wrong(alone.x)]
    plain = (PGD, APGD, Langevin, SparseAscent)  # other attacks may be made for the defense
    attack = replace(task, samples=alone).strongest(among=plain)
    k, m = int((~alone.broken_by(attack, "C13")).sum()), len(alone)
    sentence = f"Without the defense {k} of {m} samples are robust"
    if lower_confidence_bound(k, m) <= 0.01:
        return Share(k=k, n=m, of=task.samples.of * m / max(1, len(task.samples)), sentence=sentence)
    k = int(unmoved(task, alone).sum())
    return Share(
        k=k,
        n=m,
        limit=1 / max(1, task.audit.classes),
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


def draws_at_random(task: Task) -> str:
    """Why no points are planted."""
    return "Not applicable to a stochastic model." if task.audit.stochastic else ""


def active(task: Task) -> Share:
    """C13, binarisation test (Zimmermann et al. 2022): the attack must find a planted adversarial point.

    For each sample a linear readout of the logits (`readouts`) gives the image and 30 random points near it class 0,
    and one random point of the ball class 1, so that an adversarial point is known to exist. Samples whose logits do
    not separate that point are left out.
    """
    attack = task.ascent(task.budget.steps, loss="ce" if task.threat_model.losses()[0] == "ce" else "margin")
    found = planted = 0
    for part in task.samples.parts():
        readout, separable = readouts(part, task.threat_model)
        zeros = torch.zeros_like(part.y)
        z = attack(readout, part.x, zeros, part.noise("C13 active"))
        predicted, _ = predict(readout, z, zeros, defender_noise(part.seed, part.index, 1))
        found, planted = found + int((predicted.eq(1) & separable).sum()), planted + int(separable.sum())
    return Share(
        k=planted - found,
        n=planted,
        excludes=max(0.15, task.samples.excludes),
        sentence=f"Ascent missed {planted - found} of {planted} adversarial points planted at "
        f"{task.threat_model.title}",
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
