"""Checks for masked gradients: AutoAttack's flags, per sample, and indicators of attack failure."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from adversarial_lightning.attacks import PGD, Attack, Targeted
from adversarial_lightning.attacks.core.gradient import margin
from adversarial_lightning.attacks.core.norms import divisor
from adversarial_lightning.evaluation.audit.check import NO_SAMPLES, Check, not_applicable, share_check
from adversarial_lightning.evaluation.audit.samples import AuditSamples, Connected
from adversarial_lightning.evaluation.audit.stronger_attacks import Budget, strongest_gradient_attack
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel, parts_of
from adversarial_lightning.networks.eval_mode import are_probabilities

_UNDERFLOW = 88.0  # exp(-88) is the smallest number that float32 holds in full
_BPDA = "The defense declares that its gradients are surrogates (BPDA)."


class Watch(nn.Module):
    """Records what an attack on rows with labels `y` sees of `model`: margins, and rows whose gradient is zero.

    Both lists hold one tensor (B,) for each pass of the whole batch; passes of a part of it are not recorded.
    """

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.model, self.y = Connected(model), y
        self.margins: list[Tensor] = []
        self.zero: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        if len(x) == len(self.y):
            self.margins.append(margin(logits.detach(), self.y))
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


def randomness(samples: AuditSamples) -> Check:
    """F1, AutoAttack's randomized: equal images with equal noise give equal logits, repeated and in other batches."""
    name, odd = "no undeclared randomness", 0.0
    if not len(samples):
        return not_applicable(id="F1", name=name, limit=0.0, why=NO_SAMPLES)
    first, back = samples.logits(samples.x), torch.arange(len(samples) - 1, -1, -1, device=samples.x.device)
    again = [samples.logits(samples.x) for _ in range(4)] + [samples[back].logits(samples.x[back])[back]]
    half = samples[slice(0, (len(samples) + 1) // 2)]
    for logits in [*again, half.logits(half.x)]:
        same = first[: len(logits)]
        apart = (logits - same).norm(dim=1) / divisor(same.norm(dim=1))
        odd = max(odd, float(apart.nan_to_num(torch.inf).max()))
    moves = odd > 1e-3
    sentence = f"Equal images with equal noise gave logits that differ by {odd:.2g} of their length: " + (
        "the model draws or remembers without declaring it, and attacks must average over it (EOT)."
        if moves
        else "all random draws come from the given noise."
    )
    return Check(id="F1", name=name, verdict="fail" if moves else "pass", figure=odd, limit=1e-3, sentence=sentence)


def output_range(samples: AuditSamples) -> Check:
    """F2, AutoAttack's range_output: outputs are logits or log-probabilities, not probabilities."""
    name, logits = "outputs are logits", samples.logits(samples.x)
    if not len(samples):
        return not_applicable(id="F2", name=name, limit=0.0, why=NO_SAMPLES)
    if bool(are_probabilities(logits)):
        sentence = "All rows are probabilities: attacks need the logits before the softmax, which flattens gradients."
        return Check(id="F2", name=name, verdict="fail", sentence=sentence)
    kind = (
        "log-probabilities, which serve attacks as well as logits"
        if bool((logits.logsumexp(1).abs() < 1e-4).all())
        else "logits"
    )
    return Check(id="F2", name=name, verdict="pass", sentence=f"Outputs are {kind}.")


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
        sentence=f"In {k} of {len(samples)} robust samples the label's logit leads by more than {_UNDERFLOW:g}",
        bad="float32 has no gradient of the cross-entropy there, and the suite has no other objective",
        good="float32 resolves the cross-entropy",
    )


def zero_gradients(samples: AuditSamples, threat_model: ThreatModel) -> Check:
    """F3, unavailable gradients: zero at half of the iterates or more, for all objectives of the suite."""
    blind = torch.ones_like(samples.y, dtype=torch.bool)
    for loss in threat_model.losses():
        attack = PGD(
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
        sentence=f"{int(blind.sum())} of {len(samples)} samples that are robust at {threat_model.title} have "
        f"zero gradients or none, with {' and '.join(threat_model.losses())}",
        bad="no gradient attack of the suite could change them",
        good="gradient attacks can change the images",
    )


def true_gradients(samples: AuditSamples, declared: bool) -> Check:
    """C10: gradients predict how every output, also a detector's score, changes under small steps.

    Central differences along 8 random sign vectors of 1/256 a value. It finds operations that are detached,
    rounded or switched, in classifier, purifier and detector. An output counts only where it changes.
    """
    name, step, most = "gradients predict changes", 1 / 256, 20
    if declared:
        return not_applicable(id="C10", name=name, limit=0.25, why=_BPDA)
    wrong = []
    for part in samples.parts():
        x, noise = part.x.clamp(step, 1 - step), part.noise("C10")
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
            with torch.no_grad():
                seen = (part.deciding(x + d).double() - part.deciding(x - d).double())[:, chosen] / 2
            power, error = power + seen.square(), error + (seen - predicted).square()
        rounding = 1e-5 * outputs.detach().double().abs().amax(1, keepdim=True)
        wrong.append((error > 0.5 * power) & (power.sqrt() > rounding))
    k = int(torch.cat(wrong).sum(0).max()) if wrong else 0
    return share_check(
        id="C10",
        name=name,
        k=k,
        n=len(samples),
        limit=0.25,
        sentence=f"For {k} of {len(samples)} samples the gradient of an output explains less than half of its changes",
        bad="an operation is detached, rounded or switched, and no surrogate gradient (BPDA) is declared",
        good="gradients describe the model that is evaluated",
    )


def computes_at_inference(samples: AuditSamples, purified: bool) -> Check:
    """F5, AutoAttack's dynamic: a forward pass runs no optimisation, unless a purifier declares it.

    It counts the saved tensors that autograd uses while gradients are off: there are none unless the model switches
    gradients on.
    """
    name, part, used = "no undeclared optimisation at inference", samples[slice(0, 8)], 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal used
        used += 1
        return tensor

    with saved_tensors_hooks(lambda tensor: tensor, count):
        part.logits(part.x)
    if not used:
        return Check(
            id="F5",
            name=name,
            verdict="pass",
            figure=0.0,
            limit=0.0,
            sentence="A forward pass computes no gradients of its own.",
        )
    meaning = "a purifier declares it." if purified else "put it into a Purifier, which declares what attacks must do."
    return Check(
        id="F5",
        name=name,
        verdict="pass" if purified else "fail",
        figure=float(used),
        limit=0.0,
        sentence=f"A forward pass computes gradients: {meaning}",
    )


def targets(attacks: Iterable[Attack], classes: int) -> Check:
    """F6, AutoAttack's n_classes: number of wrong classes that targeted attacks aim at; informative."""
    aimed = [min(a.n_targets, classes - 1) for attack in attacks for a in parts_of(attack) if isinstance(a, Targeted)]
    name = "target classes (informative)"
    if not aimed or not classes:
        return not_applicable(id="F6", name=name, why="The suite has no targeted attack.")
    sentence = f"The model has {classes} outputs; targeted attacks aim at {max(aimed)} of {classes - 1} wrong classes."
    return Check(id="F6", name=name, verdict="pass", figure=float(max(aimed)), sentence=sentence)


def stable_gradients(samples: AuditSamples, threat_model: ThreatModel, declared: bool) -> Check:
    """I2, unstable predictions: the margin's gradient keeps its direction a tenth of the radius away."""
    name, cosines = f"gradients are stable, {threat_model.title}", [samples.x.new_zeros(0)]
    if declared:
        return not_applicable(id="I2", name=name, limit=0.2, why=_BPDA)
    for part in samples.parts():
        noise = part.noise("I2")
        with torch.no_grad():
            rival = part.deciding(part.x).scatter(1, part.y[:, None], -torch.inf).argmax(1)
        found = []
        for _ in range(5):
            with torch.enable_grad():
                z = part.x.clone().requires_grad_()
                outputs = part.deciding(z)
                lead = outputs.gather(1, rival[:, None]) - outputs.gather(1, part.y[:, None])
                found.append(torch.autograd.grad(lead.sum(), z)[0].flatten(1))
            part = part.moved(threat_model.norm, threat_model.eps / 10, noise)
        cosines.append(torch.stack([torch.cosine_similarity(found[0], g, dim=1) for g in found[1:]]).mean(0))
    every = torch.cat(cosines)
    if not len(every):
        return not_applicable(id="I2", name=name, limit=0.2, why=NO_SAMPLES)
    middle = float(every.median())
    sentence = f"The cosine between gradients at an image and a tenth of the radius away is {middle:.2f} (median): " + (
        "they change within one step of an attack." if middle < 0.2 else "they hold for one step of an attack."
    )
    return Check(
        id="I2", name=name, verdict="fail" if middle < 0.2 else "pass", figure=middle, limit=0.2, sentence=sentence
    )


def silent_success(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Check:
    """I3, silent success: the strongest attack returns the adversarial points that it visits."""
    name, k = f"no success is lost, {threat_model.title}", 0
    if samples.draws > 1:
        return not_applicable(id="I3", name=name, limit=0.01)
    for part in samples.parts():
        watch, z = watched(part, strongest_gradient_attack(part, threat_model, budget), "I")
        if watch.margins:
            k += int(((torch.stack(watch.margins) > 0).any(0) & ~part.wrong(z)).sum())
    return share_check(
        id="I3",
        name=name,
        k=k,
        n=len(samples),
        limit=0.01,
        sentence=f"For {k} of {len(samples)} samples the strongest attack visited an adversarial point "
        "and returned another point",
        of=threat_model.of,
        bad="use an attack that returns its best point",
        good="attacks return the adversarial points that they visit",
    )


def optimised(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Check:
    """I4, incomplete optimisation: in the last tenth of the strongest attack's steps the margin hardly grows."""
    name, shares = f"the attack has converged, {threat_model.title}", [samples.x.new_zeros(0)]
    if samples.draws > 1:
        return not_applicable(id="I4", name=name, limit=0.05)
    for part in samples.parts():
        watch, _ = watched(part, strongest_gradient_attack(part, threat_model, budget), "I")
        if len(watch.margins) >= 10:
            best = torch.stack(watch.margins).cummax(0).values
            late = best[-1] - best[int(0.9 * len(best)) - 1]
            shares.append(late / divisor(best[-1] - best[0]))
    every = torch.cat(shares)
    if not len(every):
        return not_applicable(id="I4", name=name, limit=0.05, why=NO_SAMPLES)
    middle = float(every.median())
    sentence = f"The last tenth of the strongest attack's steps brings {100 * middle:.1f} % of its gain (median): " + (
        "it stops too early, or its steps are too short." if middle > 0.05 else "it has converged."
    )
    return Check(
        id="I4", name=name, verdict="fail" if middle > 0.05 else "pass", figure=middle, limit=0.05, sentence=sentence
    )
