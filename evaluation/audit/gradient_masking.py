"""Checks for masked gradients: zero, saturated, false or unstable ones, and attacks that lose what they found."""

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import Attack
from adversarial_lightning.attacks.core.gradient import margin
from adversarial_lightning.attacks.core.norms import batch_view
from adversarial_lightning.evaluation.audit.check import Check, not_applicable, share_check
from adversarial_lightning.evaluation.audit.interface import resolution
from adversarial_lightning.evaluation.audit.own_attacks import ascent
from adversarial_lightning.evaluation.audit.samples import AuditSamples, Connected
from adversarial_lightning.evaluation.audit.stronger_attacks import Budget, strongest_gradient_attack
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel

_UNDERFLOW = 88.0  # exp(-88) is the smallest number that float32 holds in full
_BPDA = "The defense declares that its gradients are surrogates (BPDA)."
_STOCHASTIC = "Not applicable to a stochastic model."
_NO_OWN = "The suite has no iterative gradient attack in this ball."


class Watch(nn.Module):
    """Records what an attack on rows with labels `y` sees of `model`: margins, and rows whose gradient is zero.

    Both lists hold one tensor (B,) for each pass of the whole batch; passes of a part of it are not recorded. `visited`
    holds the first adversarial point (B, C, H, W) of each row, or its first point.
    """

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.model, self.y = Connected(model), y
        self.margins: list[Tensor] = []
        self.zero: list[Tensor] = []
        self.visited: Tensor | None = None
        self.fooled = torch.zeros_like(y, dtype=torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        if len(x) == len(self.y):
            found = margin(logits.detach(), self.y)
            kept, first = x.detach() if self.visited is None else self.visited, (found > 0) & ~self.fooled
            self.visited, self.fooled = torch.where(batch_view(first, x), x.detach(), kept), self.fooled | first
            self.margins.append(found)
            if x.requires_grad and logits.requires_grad:
                x.register_hook(self.record_zero)
        return logits

    def record_zero(self, gradient: Tensor) -> None:
        flat = gradient.flatten(1)
        self.zero.append((flat == 0).all(1) | ~flat.isfinite().all(1))


def watched(samples: AuditSamples, attack: Attack, name: str) -> tuple[Watch, Tensor]:
    """Run the attack on samples of one batch; returns the `Watch` of its passes and its images."""
    watch = Watch(samples.model, samples.y)
    return watch, attack(watch, samples.x, samples.y, samples.noise(name))


def saturation(samples: AuditSamples, threat_model: ThreatModel) -> Check:
    """F2, temperature of the logits: float32 resolves the cross-entropy, if the suite has no other objective."""
    name, logits = f"the cross-entropy is not saturated, {threat_model.title}", samples.logits(samples.x)
    if threat_model.losses() != ["ce"]:
        return not_applicable(
            id="F2", name=name, limit=0.05, why="The suite also increases objectives other than the cross-entropy."
        )
    lead = -margin(logits, samples.y)
    k = int((lead > _UNDERFLOW).sum())
    return share_check(
        id="F2",
        name=name,
        k=k,
        n=len(samples),
        limit=0.05,
        excludes=samples.excludes,
        of=samples.of,
        sentence=f"In {k} of {len(samples)} robust samples the label's logit leads by more than {_UNDERFLOW:g}",
        bad="float32 has no gradient of the cross-entropy there, and the suite has no other objective",
    )


def zero_gradients(samples: AuditSamples, threat_model: ThreatModel) -> Check:
    """F3, unavailable gradients: zero at half of the iterates or more, for all objectives of the suite."""
    blind = torch.ones_like(samples.y, dtype=torch.bool)
    for loss in threat_model.losses():
        attack = ascent(
            threat_model.norm, threat_model.eps, 10, random_start=False, loss=loss, eot_samples=samples.eot_samples
        )
        zero = [torch.stack(watched(part, attack, "F3")[0].zero).float().mean(0) for part in samples.parts()]
        blind &= torch.cat([*zero, samples.x.new_zeros(0)]) >= 0.5
    return share_check(
        id="F3",
        name=f"gradients exist, {threat_model.title}",
        k=int(blind.sum()),
        n=len(samples),
        limit=0.01,
        excludes=samples.excludes,
        of=samples.of,
        sentence=f"{int(blind.sum())} of {len(samples)} samples that are robust at {threat_model.title} have "
        f"zero gradients or none, with {' and '.join(threat_model.losses())}",
        bad="no gradient attack of the suite could change them",
    )


def true_gradients(samples: AuditSamples, declared: bool) -> Check:
    """C10: gradients predict how every output, also a detector's score, changes under small steps.

    Differences to both sides along 8 random sign vectors of 1/256 a value: a step that is the same on both sides has
    no central difference. It finds operations that are detached, rounded or steep, and outputs that are no numbers, in
    classifier, purifier and detector. An output counts only where it changes by more than it is rounded. The images are
    mixed with a tenth of noise: stored images have many equal values, at which an honest selection, such as a median's,
    has no gradient.
    """
    name, step, most = "gradients predict changes", 1 / 256, 20
    if declared:
        return not_applicable(id="C10", name=name, limit=0.25, why=_BPDA)
    wrong = []
    for part in samples.parts():
        noise = part.noise("C10")
        x = (0.9 * part.x + 0.1 * noise.uniform(part.x)).clamp(step, 1 - step)
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            outputs = part.deciding(leaf)
            chosen = outputs.sum(0).argsort(descending=True)[:most].sort().values.tolist()
            chosen = sorted({*chosen, outputs.shape[1] - 1})  # the last may be a detector's
            gradients = [torch.autograd.grad(outputs[:, c].sum(), leaf, retain_graph=True)[0] for c in chosen]
        power, error = torch.zeros(2, len(x), len(chosen), dtype=torch.float64, device=x.device)
        for _ in range(8):
            d = step * (noise.uniform(x) - 0.5).sign()
            predicted = torch.stack([(g * d).flatten(1).sum(1) for g in gradients], 1).double()
            for side in (1, -1):
                with torch.no_grad():
                    seen = (part.deciding(x + side * d).double() - outputs.detach().double())[:, chosen]
                power, error = power + seen.square() / 2, error + (seen - side * predicted).square() / 2
        logits = outputs.detach()
        rounding = max(1e-5, 2 * resolution(logits)) * logits.double().abs().amax(1, keepdim=True)
        moves = (power.sqrt() > rounding) | ~power.isfinite()
        wrong.append(~(error <= 0.5 * power) & moves)  # so that what is not a number is wrong
    k = int(torch.cat(wrong).sum(0).max()) if wrong else 0
    return share_check(
        id="C10",
        name=name,
        k=k,
        n=len(samples),
        limit=0.25,
        excludes=samples.excludes,
        sentence=f"For {k} of {len(samples)} samples the gradient of an output explains less than half of its changes",
        bad="something is detached, rounded, random or too steep for gradients, and no surrogate gradient (BPDA) is "
        "declared",
    )


def stable_gradients(samples: AuditSamples, threat_model: ThreatModel, declared: bool) -> Check:
    """I2, unstable predictions: the margin's gradient keeps its direction a tenth of the radius away."""
    name, cosines = f"gradients are stable, {threat_model.title}", [samples.x.new_zeros(0)]
    if declared:
        return not_applicable(id="I2", name=name, limit=0.5, why=_BPDA)
    if threat_model.norm == "l0":
        return not_applicable(id="I2", name=name, limit=0.5, why="Steps in l0 are not small: values may change wholly.")
    for part in samples.parts():
        noise = part.noise("I2")
        with torch.no_grad():
            rival = part.deciding(part.x, score=False).scatter(1, part.y[:, None], -torch.inf).argmax(1)
        found = []
        for _ in range(5):
            with torch.enable_grad():
                z = part.x.clone().requires_grad_()
                outputs = part.deciding(z)
                lead = outputs.gather(1, rival[:, None]) - outputs.gather(1, part.y[:, None])
                gradient = torch.autograd.grad(lead.sum(), z)[0].flatten(1).double()
                found.append(gradient / gradient.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.double).tiny))
            part = part.moved(threat_model.norm, threat_model.eps / 10, noise)
        cosines.append(torch.stack([(found[0] * g).sum(1) for g in found[1:]]).mean(0).to(samples.x))
    every = torch.cat(cosines)
    k, middle = int((~(every >= 0.2)).sum()), float(every.median()) if len(every) else 0.0
    return share_check(
        id="I2",
        name=name,
        k=k,
        n=len(every),
        limit=0.5,
        excludes=0.5,
        sentence=f"The cosine between gradients at an image and a tenth of the radius away is {middle:.2f} (median), "
        f"and below 0.2 for {k} of {len(every)} samples",
        bad="most gradients change within one step of an attack",
    )


def silent_success(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Check:
    """I3, silent success: the strongest attack returns the adversarial points that it visits."""
    name, lost = f"no success is lost, {threat_model.title}", [torch.zeros_like(samples.y[:0], dtype=torch.bool)]
    if why := _cannot_be_watched(samples, threat_model):
        return not_applicable(id="I3", name=name, limit=0.01, why=why)
    for part in samples.parts():
        watch, z = watched(part, strongest_gradient_attack(part, threat_model, budget), "I")
        visited = z if watch.visited is None else watch.visited
        lost.append(part.wrong(visited) & part.inside(visited, threat_model.norm, threat_model.eps) & ~part.wrong(z))
    rows = torch.cat(lost)
    return share_check(
        id="I3",
        name=name,
        k=int(rows.sum()),
        n=len(samples),
        limit=0.01,
        excludes=samples.excludes,
        sentence=f"For {int(rows.sum())} of {len(samples)} samples the strongest attack visited an adversarial point "
        "and returned another point",
        of=threat_model.of,
        what="points",
        bad="use an attack that returns its best point",
        broken=samples.numbers(rows),
    )


def optimised(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Check:
    """I4, incomplete optimisation: in the last tenth of the strongest attack's steps the margin hardly grows."""
    name, shares = f"the attack has converged, {threat_model.title}", [samples.x.new_zeros(0)]
    if why := _cannot_be_watched(samples, threat_model):
        return not_applicable(id="I4", name=name, limit=0.5, why=why)
    for part in samples.parts():
        watch, _ = watched(part, strongest_gradient_attack(part, threat_model, budget), "I")
        if len(watch.margins) >= 10:
            best = torch.stack(watch.margins).cummax(0).values
            late, gain = best[-1] - best[int(0.9 * len(best)) - 1], best[-1] - best[0]
            shares.append(torch.where(gain > 0, late / gain, 0.0))
    every = torch.cat(shares)
    k, middle = int((every > 0.05).sum()), float(every.median()) if len(every) else 0.0
    return share_check(
        id="I4",
        name=name,
        k=k,
        n=len(every),
        limit=0.5,
        excludes=0.5,
        sentence=f"The last tenth of the strongest attack's steps brings {100 * middle:.1f} % of its gain (median), "
        f"and more than 5 % for {k} of {len(every)} samples",
        bad="it stops too early, or its steps are too short or too long",
    )


def _cannot_be_watched(samples: AuditSamples, threat_model: ThreatModel) -> str:
    """Reason why the suite's own attack cannot be followed step by step; empty where it can."""
    if samples.draws > 1:
        return _STOCHASTIC
    return "" if threat_model.gradient_attacks() else _NO_OWN
