"""Signs of masked gradients and misled attacks: AutoAttack's flags, per sample, and indicators of attack failure."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from adversarial_lightning.attacks import PGD, Attack, Targeted
from adversarial_lightning.attacks.core.gradient import margin
from adversarial_lightning.evaluation.audit.check import Check, not_applicable, share_check
from adversarial_lightning.evaluation.audit.samples import AuditSamples, Connected
from adversarial_lightning.evaluation.audit.stronger_attacks import Budget, strongest_gradient_attack
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel, parts_of

_UNDERFLOW = 88.0  # exp(-88) is the smallest number that float32 holds in full


class Watch(nn.Module):
    """`model`, and what an attack on rows with labels `y` saw of it: margins, and where its gradients were zero.

    Both lists hold one tensor (B,) a pass of the whole batch; passes of some of the rows are not recorded.
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
                x.register_hook(self.look)
        return logits

    def look(self, gradient: Tensor) -> None:
        flat = gradient.flatten(1)
        self.zero.append((flat == 0).all(1) | ~flat.isfinite().all(1))


def watched(samples: AuditSamples, attack: Attack, name: str) -> tuple[Watch, Tensor]:
    """What the attack on a panel of one batch saw, and what it returned."""
    watch = Watch(samples.model, samples.y)
    return watch, attack(watch, samples.x, samples.y, samples.noise(name))


def randomness(samples: AuditSamples) -> Check:
    """F1, AutoAttack's randomized: equal images with equal noise give equal logits, again and in other company."""
    name, odd = "no undeclared randomness", 0.0
    if not len(samples):
        return share_check("F1", name, 0, 0, 0.0, "", bad="", good="")
    first, back = samples.logits(samples.x), torch.arange(len(samples) - 1, -1, -1, device=samples.x.device)
    again = [samples.logits(samples.x) for _ in range(4)] + [samples[back].logits(samples.x[back])[back]]
    half = samples[slice(0, (len(samples) + 1) // 2)]
    for logits in [*again, half.logits(half.x)]:
        same = first[: len(logits)]
        apart = (logits - same).norm(dim=1) / same.norm(dim=1).clamp_min(1e-12)
        odd = max(odd, float(apart.nan_to_num(torch.inf).max()))
    moves = odd > 1e-3
    sentence = f"Equal images with equal noise gave logits that differ by {odd:.2g} of their length: " + (
        "the model draws or remembers in a way that it does not declare, and attacks must average over it (EOT)."
        if moves
        else "nothing is drawn but from the noise that is given."
    )
    return Check("F1", name, "fail" if moves else "pass", odd, 1e-3, sentence)


def output_range(samples: AuditSamples) -> Check:
    """F2, AutoAttack's range_output: outputs are logits (log-probabilities are), not probabilities."""
    name, logits = "outputs are logits", samples.logits(samples.x)
    if not len(samples):
        return share_check("F2", name, 0, 0, 0.0, "", bad="", good="")
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all()):
        sentence = "All rows are probabilities: attacks need the logits before the softmax, which flattens gradients."
        return Check("F2", name, "fail", None, None, sentence)
    kind = "log-probabilities, as good as logits" if bool((logits.logsumexp(1).abs() < 1e-4).all()) else "logits"
    return Check("F2", name, "pass", None, None, f"Outputs are {kind}.")


def saturation(samples: AuditSamples, threat_model: ThreatModel) -> Check:
    """F2, the temperature of the logits: float32 sees the cross-entropy of what stands, if that is all we follow."""
    name, logits = f"the cross-entropy is not saturated, {threat_model.title}", samples.logits(samples.x)
    if threat_model.losses() != ["ce"]:
        return not_applicable("F2", name, 0.05, "The suite follows other objectives than the cross-entropy too.")
    lead = -margin(logits, samples.y)
    k = int((lead > _UNDERFLOW).sum())
    return share_check(
        *("F2", name, k, len(samples), 0.05),
        f"In {k} of {len(samples)} samples that stand the label leads by more than {_UNDERFLOW:g}",
        bad="float32 has no gradient of the cross-entropy there, and the suite follows nothing else",
        good="the cross-entropy can be followed",
    )


def zero_gradients(samples: AuditSamples, threat_model: ThreatModel) -> Check:
    """F3, unavailable gradients: with all objectives of the suite, zero at half of the iterates or more."""
    blind = torch.ones_like(samples.y, dtype=torch.bool)
    for loss in threat_model.losses():
        attack = PGD(
            threat_model.norm, threat_model.eps, 10, random_start=False, loss=loss, eot_samples=samples.eot_samples
        )
        zero = [torch.stack(watched(part, attack, "F3")[0].zero).float().mean(0) for part in samples.parts()]
        blind &= torch.cat([*zero, samples.x.new_zeros(0)]) >= 0.5
    return share_check(
        *("F3", f"gradients exist, {threat_model.title}", int(blind.sum()), len(samples), 0.01),
        f"{int(blind.sum())} of {len(samples)} samples that stand at {threat_model.title} have gradients that are zero or none, "
        f"with {' and '.join(threat_model.losses())}",
        bad="no attack of the suite could move them",
        good="attacks can move",
    )


def true_gradients(samples: AuditSamples, declared: bool) -> Check:
    """C10: for small steps, gradients foretell how every output changes, the detector's score included.

    Central differences along 8 random sign vectors of 1/256 a value. Catches what is detached, rounded or switched on
    the way, in classifier, purifier and detector alike. An output counts where it changes at all.
    """
    name, step, most = "gradients foretell changes", 1 / 256, 20
    if declared:
        return not_applicable("C10", name, 0.25, "The defense declares that its gradients are stand-ins (BPDA).")
    wrong = []
    for part in samples.parts():
        x, noise = part.x.clamp(step, 1 - step), part.noise("C10")
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            outputs = part.deciding(leaf)
            chosen = outputs.sum(0).argsort(descending=True)[:most].sort().values.tolist()
            chosen = sorted({*chosen, outputs.shape[1] - 1})  # the last may be a detector's
            slopes = [torch.autograd.grad(outputs[:, c].sum(), leaf, retain_graph=True)[0] for c in chosen]
        power, error = torch.zeros(2, len(x), len(chosen), dtype=torch.float64, device=x.device)
        for _ in range(8):
            d = step * (noise.uniform(x) - 0.5).sign()
            foretold = torch.stack([(slope * d).flatten(1).sum(1) for slope in slopes], 1).double()
            with torch.no_grad():
                seen = (part.deciding(x + d).double() - part.deciding(x - d).double())[:, chosen] / 2
            power, error = power + seen.square(), error + (seen - foretold).square()
        rounding = 1e-5 * outputs.detach().double().abs().amax(1, keepdim=True)
        wrong.append((error > 0.5 * power) & (power.sqrt() > rounding))
    k = int(torch.cat(wrong).sum(0).max()) if wrong else 0
    return share_check(
        *("C10", name, k, len(samples), 0.25),
        f"For {k} of {len(samples)} samples the gradient of an output explains less than half of its changes",
        bad="something is detached, rounded or switched, and no stand-in (BPDA) is declared",
        good="attacks see the model that decides",
    )


def computes_at_inference(samples: AuditSamples, purified: bool) -> Check:
    """F5, AutoAttack's dynamic: one forward without gradients runs no optimisation, unless a purifier says so.

    Counts the tensors that autograd saved and uses while gradients are off, which only a model does that turns them on.
    """
    name, part, used = "no undeclared optimisation at inference", samples[slice(0, 8)], 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal used
        used += 1
        return tensor

    with saved_tensors_hooks(lambda tensor: tensor, count):
        part.logits(part.x)
    if not used:
        return Check("F5", name, "pass", 0.0, 0.0, "A forward takes no gradients of its own.")
    meaning = "a purifier declares it." if purified else "put it into a Purifier, which declares what attacks must do."
    return Check("F5", name, "pass" if purified else "fail", float(used), 0.0, f"A forward takes gradients: {meaning}")


def targets(attacks: Iterable[Attack], classes: int) -> Check:
    """F6, AutoAttack's n_classes: how many of the wrong classes the targeted attacks aim at; informative."""
    aimed = [min(a.n_targets, classes - 1) for attack in attacks for a in parts_of(attack) if isinstance(a, Targeted)]
    name = "classes aimed at (informative)"
    if not aimed or not classes:
        return not_applicable("F6", name, None, "The suite holds no targeted attack.")
    sentence = f"The model has {classes} outputs; targeted attacks aim at {max(aimed)} of {classes - 1} wrong classes."
    return Check("F6", name, "pass", float(max(aimed)), None, sentence)


def stable_gradients(samples: AuditSamples, threat_model: ThreatModel, declared: bool) -> Check:
    """I2, unstable predictions: the margin's gradient points the same way a tenth of the radius farther."""
    name, cosines = f"gradients are stable, {threat_model.title}", [samples.x.new_zeros(0)]
    if declared:
        return not_applicable("I2", name, 0.2, "The defense declares that its gradients are stand-ins (BPDA).")
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
        return share_check("I2", name, 0, 0, 0.2, "", bad="", good="")
    middle = float(every.median())
    sentence = f"The cosine between gradients at an image and a tenth of the radius away is {middle:.2f} (median): " + (
        "they change faster than an attack can step." if middle < 0.2 else "they hold for an attack's step."
    )
    return Check("I2", name, "fail" if middle < 0.2 else "pass", middle, 0.2, sentence)


def silent_success(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Check:
    """I3: the leading attack does not walk past points that fool."""
    name, k = f"no success is lost, {threat_model.title}", 0
    if samples.draws > 1:
        return not_applicable("I3", name, 0.01)
    for part in samples.parts():
        watch, z = watched(part, strongest_gradient_attack(part, threat_model, budget), "I")
        if watch.margins:
            k += int(((torch.stack(watch.margins) > 0).any(0) & ~part.wrong(z)).sum())
    return share_check(
        *("I3", name, k, len(samples), 0.01),
        f"For {k} of {len(samples)} samples the leading attack saw a point that fools and returned one that does not",
        of=threat_model.of,
        bad="take an attack that keeps its best point",
        good="successes are kept",
    )


def optimised(samples: AuditSamples, threat_model: ThreatModel, budget: Budget) -> Check:
    """I4, incomplete optimisation: in the last tenth of the leading attack's steps the margin hardly grows."""
    name, shares = f"the attack has converged, {threat_model.title}", [samples.x.new_zeros(0)]
    if samples.draws > 1:
        return not_applicable("I4", name, 0.05)
    for part in samples.parts():
        watch, _ = watched(part, strongest_gradient_attack(part, threat_model, budget), "I")
        if len(watch.margins) >= 10:
            best = torch.stack(watch.margins).cummax(0).values
            late = best[-1] - best[int(0.9 * len(best)) - 1]
            shares.append(late / (best[-1] - best[0]).clamp_min(1e-12))
    every = torch.cat(shares)
    if not len(every):
        return share_check("I4", name, 0, 0, 0.05, "", bad="", good="")
    middle = float(every.median())
    sentence = f"The last tenth of the leading attack's steps brings {100 * middle:.1f} % of its gain (median): " + (
        "it was stopped too early, or its steps are too short." if middle > 0.05 else "it has arrived."
    )
    return Check("I4", name, "fail" if middle > 0.05 else "pass", middle, 0.05, sentence)
