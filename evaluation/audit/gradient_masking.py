"""Checks for masked gradients: zero, saturated, false or unstable ones, and attacks that lose what they found."""

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import Attack
from adversarial_lightning.attacks.core.gradient import margin
from adversarial_lightning.attacks.core.norms import batch_view
from adversarial_lightning.evaluation.audit.check import Share
from adversarial_lightning.evaluation.audit.inputs import Task
from adversarial_lightning.evaluation.audit.samples import AuditSamples, Connected, resolution

_UNDERFLOW = 88.0  # exp(-88) is the smallest number that float32 holds in full
_BPDA = "The defense declares that its gradients are surrogates (BPDA)."
_OTHER_OBJECTIVES = "The suite also increases objectives other than the cross-entropy."
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


def losses_beside_cross_entropy(task: Task) -> str:
    """Why F2 does not apply: the suite has other objectives."""
    return "" if task.threat_model.losses() == ["ce"] else _OTHER_OBJECTIVES


def saturation(task: Task) -> Share:
    """F2, temperature of the logits: float32 resolves the cross-entropy, if the suite has no other objective."""
    samples = task.samples
    k = int((-margin(samples.logits(samples.x), samples.y) > _UNDERFLOW).sum())
    return Share(
        k=k,
        of=samples.of,
        sentence=f"In {k} of {len(samples)} robust samples the label's logit leads by more than {_UNDERFLOW:g}",
        bad="float32 has no gradient of the cross-entropy there, and the suite has no other objective",
    )


def zero_gradients(task: Task) -> Share:
    """F3, unavailable gradients: zero at half of the iterates or more, for all objectives of the suite."""
    samples, losses = task.samples, task.threat_model.losses()
    blind = torch.ones_like(samples.y, dtype=torch.bool)
    for loss in losses:
        attack = task.ascent(10, random_start=False, loss=loss)
        zero = [torch.stack(watched(part, attack, "F3")[0].zero).float().mean(0) for part in samples.parts()]
        blind &= torch.cat(zero) >= 0.5
    k = int(blind.sum())
    return Share(
        k=k,
        of=samples.of,
        sentence=f"{k} of {len(samples)} samples that are robust at {task.threat_model.title} have "
        f"zero gradients or none, with {' and '.join(losses)}",
        bad="no gradient attack of the suite could change them",
    )


def declared_surrogate(task: Task) -> str:
    """Why gradients are not compared with the outputs: they are declared to be those of a surrogate."""
    return _BPDA if task.audit.required_adaptations.get("bpda") else ""


def true_gradients(task: Task) -> Share:
    """C10: gradients predict how every output, also a detector's score, changes under small steps.

    Differences to both sides along 8 random sign vectors of 1/256 a value: a step that is the same on both sides has
    no central difference. It finds operations that are detached, rounded or steep, and outputs that are no numbers, in
    classifier, purifier and detector. An output counts only where it changes by more than it is rounded. The images are
    mixed with a tenth of noise: stored images have many equal values, at which an honest selection, such as a median's,
    has no gradient.
    """
    samples, step, most, wrong = task.samples, 1 / 256, 20, []
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
    k = int(torch.cat(wrong).sum(0).max())
    return Share(
        k=k,
        sentence=f"For {k} of {len(samples)} samples the gradient of an output explains less than half of its changes",
        bad="something is detached, rounded, random or too steep for gradients, and no surrogate gradient (BPDA) is "
        "declared",
    )


def no_small_steps(task: Task) -> str:
    """Why I2 does not apply."""
    steps = "Steps in l0 are not small: values may change wholly." if task.threat_model.norm == "l0" else ""
    return declared_surrogate(task) or steps


def stable_gradients(task: Task) -> Share:
    """I2, unstable predictions: the margin's gradient keeps its direction a tenth of the radius away."""
    samples, cosines = task.samples, []
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
            part = part.moved(task.threat_model.norm, task.threat_model.eps / 10, noise)
        cosines.append(torch.stack([(found[0] * g).sum(1) for g in found[1:]]).mean(0).to(samples.x))
    every = torch.cat(cosines)
    k, middle = int((~(every >= 0.2)).sum()), float(every.median())
    return Share(
        k=k,
        excludes=0.5,
        sentence=f"The cosine between gradients at an image and a tenth of the radius away is {middle:.2f} (median), "
        f"and below 0.2 for {k} of {len(every)} samples",
        bad="most gradients change within one step of an attack",
    )


def cannot_be_watched(task: Task) -> str:
    """Why the suite's own attack is not followed step by step."""
    if task.audit.stochastic:
        return _STOCHASTIC
    return "" if task.threat_model.gradient_attacks() else _NO_OWN


def silent_success(task: Task) -> Share:
    """I3, silent success: the strongest attack returns the adversarial points that it visits."""
    samples, claim, lost = task.samples, task.threat_model, []
    for part, (watch, z) in zip(samples.parts(), _followed(task), strict=True):
        visited = z if watch.visited is None else watch.visited
        lost.append(part.wrong(visited) & part.inside(visited, claim.norm, claim.eps) & ~part.wrong(z))
    rows = torch.cat(lost)
    return Share(
        k=int(rows.sum()),
        sentence=f"For {int(rows.sum())} of {len(samples)} samples the strongest attack visited an adversarial point "
        "and returned another point",
        of=claim.of,
        what="points",
        bad="use an attack that returns its best point",
        broken=samples.numbers(rows),
    )


def optimised(task: Task) -> Share:
    """I4, incomplete optimisation: in the last tenth of the strongest attack's steps the margin hardly grows."""
    shares = [task.samples.x.new_zeros(0)]
    for watch, _ in _followed(task):
        if len(watch.margins) >= 10:
            best = torch.stack(watch.margins).cummax(0).values
            late, gain = best[-1] - best[int(0.9 * len(best)) - 1], best[-1] - best[0]
            shares.append(torch.where(gain > 0, late / gain, 0.0))
    every = torch.cat(shares)
    k, middle = int((every > 0.05).sum()), float(every.median()) if len(every) else 0.0
    return Share(
        k=k,
        n=len(every),
        excludes=0.5,
        sentence=f"The last tenth of the strongest attack's steps brings {100 * middle:.1f} % of its gain (median), "
        f"and more than 5 % for {k} of {len(every)} samples",
        bad="it stops too early, or its steps are too short or too long",
    )


def _followed(task: Task) -> list[tuple[Watch, Tensor]]:
    """What the suite's strongest attack sees and returns, in each batch; run once for all checks of a claim."""
    attack = task.strongest()
    return task.once("followed", lambda: [watched(part, attack, "I") for part in task.samples.parts()])
