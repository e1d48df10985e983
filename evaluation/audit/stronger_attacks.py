"""Checks with stronger and other attacks than the suite's, on the samples that it left robust."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from adversarial_lightning.attacks import (
    APGD,
    JSMA,
    Attack,
    HopSkipJump,
    RayS,
    SaltAndPepperSearch,
    Square,
    Targeted,
    Within,
    threat,
)
from adversarial_lightning.attacks.core.bpda import straight_through
from adversarial_lightning.evaluation.audit.check import NO_SAMPLES, Check, not_applicable, share_check
from adversarial_lightning.evaluation.audit.levels import Budget
from adversarial_lightning.evaluation.audit.own_attacks import RandomPoints, SparseSearch, ascent, nearest, one_step
from adversarial_lightning.evaluation.audit.samples import AuditSamples
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel
from adversarial_lightning.evaluation.outcomes.claims import leaves

_BOTH: tuple[Any, ...] = ("ce", "margin")
_LONGEST = 200  # most steps of a minimum-norm attack of the suite that the audit repeats with twice the steps


def _ascent(samples: AuditSamples, threat_model: ThreatModel, steps: int, **settings: Any) -> Attack:
    """Ascent in the ball of the claim, with EOT where the model is stochastic."""
    return ascent(threat_model.norm, threat_model.eps, steps, eot_samples=samples.eot_samples, **settings)


def strongest_gradient_attack(
    samples: AuditSamples, threat_model: ThreatModel, budget: Budget, among: tuple[type, ...] = (Attack,)
) -> Attack:
    """The suite's strongest gradient attack among some classes; ascent with the audit's budget where it has none."""
    own = [attack for attack in threat_model.gradient_attacks() if isinstance(attack, among)]
    if not own:
        return _ascent(samples, threat_model, budget.steps)
    return _averaging(own[0], samples)


def _averaging(attack: Attack, samples: AuditSamples, **settings: Any) -> Attack:
    if any(f.name == "eot_samples" for f in fields(attack)):  # type: ignore[arg-type]
        settings["eot_samples"] = samples.eot_samples
    return replace(attack, **settings)  # type: ignore[type-var]


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
    rows = torch.stack(list(broken.values())).any(0)
    counts = "; ".join(f"{label}: {int(found.sum())}" for label, found in broken.items())
    return too_high(id, f"{name}, {threat_model.title}", samples, threat_model, samples.numbers(rows), limit, counts)


def too_high(
    id: str, name: str, samples: AuditSamples, threat_model: ThreatModel, broken: tuple[int, ...], limit: float, by: str
) -> Check:
    """A check that fails where surely more than `limit` of accuracy is lost: `broken` of the samples of a claim."""
    k, n = len(broken), len(samples)
    lost = 100 * threat_model.of * k / max(1, n)
    return share_check(
        id=id,
        name=name,
        k=k,
        n=n,
        limit=limit,
        excludes=samples.excludes,
        sentence=f"{k} of {n} samples that the suite left robust at {threat_model.words} were broken ({by})",
        of=threat_model.of,
        what="points",
        bad=f"the accuracy there is too high by about {lost:.1f} points",
        broken=broken,
    )


def single_step(samples: AuditSamples, threat_model: ThreatModel) -> Check:
    """C3: one gradient step breaks no more samples than the suite."""
    attacks = {
        f"FGSM {loss}": one_step(threat_model.norm, threat_model.eps, loss=loss, eot_samples=samples.eot_samples)
        for loss in _BOTH
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
    """C5: the suite's strongest attack with twice the steps or another start breaks no more samples.

    Of a suite of minimum-norm attacks, each that is not too long runs with twice the steps.
    """
    attack: Any = strongest_gradient_attack(samples, threat_model, budget)
    attacks: dict[str, Attack] = {"twice the steps": replace(attack, steps=2 * attack.steps), "another start": attack}
    plain = [leaf for entry in threat_model.attacks.values() for leaf in leaves(entry)]
    for leaf in plain if not threat_model.gradient_attacks() else ():
        steps = getattr(leaf, "steps", None)
        iterates = leaf.kind == "minimum-norm" and leaf.knowledge == "white-box" and not leaf.targeted
        if iterates and isinstance(steps, int) and steps <= _LONGEST and threat(leaf) == (threat_model.norm, None):
            name = f"{type(leaf).__name__}, {2 * steps} steps"
            attacks[name] = Within(_averaging(leaf, samples, steps=2 * steps), threat_model.eps)
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
    votes, eps = 1 if samples.draws == 1 else 5, threat_model.eps
    asked = budget.queries * votes
    attacks: dict[str, Attack]
    if threat_model.norm == "l0":
        search = SaltAndPepperSearch(queries=asked, votes=votes)
        attacks = {"random search": SparseSearch(eps, budget.queries), "salt and pepper": Within(search, eps)}
    else:
        attacks = {"Square": Square(threat_model.norm, eps, budget.queries)}
    if threat_model.norm == "linf":
        attacks["RayS"] = Within(RayS(queries=asked, votes=votes), eps)
    elif threat_model.norm == "l2":
        attacks["HopSkipJump"] = Within(HopSkipJump(queries=asked, votes=votes, starts=10, probes=30), eps)
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
    """C8, transfer failure: adversarial examples of networks without masked gradients break no more samples.

    In l0 a saliency map (JSMA) makes a second set of them.
    """
    attacks = {
        label: _ascent(samples, threat_model, budget.steps, loss="margin", momentum=0.75) for label in substitutes
    }
    made_on = dict(substitutes)
    if threat_model.norm == "l0":
        saliency = Within(JSMA(gamma=min(1.0, (threat_model.eps + 1) / samples.x[:1].numel())), threat_model.eps)
        attacks |= {f"{label}, JSMA": saliency for label in substitutes}
        made_on |= {f"{label}, JSMA": net for label, net in substitutes.items()}
    return no_new_adversarials(
        id="C8",
        name="examples of other networks find no more",
        samples=samples,
        threat_model=threat_model,
        attacks=attacks,
        limit=0.002,
        made_on=made_on,
    )


def around_purifiers(
    samples: AuditSamples, threat_model: ThreatModel, budget: Budget, purifiers: list[nn.Module]
) -> Check:
    """C10: gradients that leave out the purifiers (BPDA with the identity) break no more samples."""
    with ExitStack() as stack:
        for purifier in purifiers:
            stack.enter_context(straight_through(purifier))
        attacks = {f"ascent {loss}": _ascent(samples, threat_model, budget.steps, loss=loss) for loss in _BOTH}
        return no_new_adversarials(
            id="C10",
            name="gradients past the defense find no more",
            samples=samples,
            threat_model=threat_model,
            attacks=attacks,
            limit=0.005,
        )


def tuned(samples: AuditSamples, threat_model: ThreatModel, budget: Budget, classes: int, level: str) -> Check:
    """C15: other step sizes and objectives than the suite's and, but for linf, minimum-norm attacks break no more."""
    norm, eps, steps, loss = threat_model.norm, threat_model.eps, budget.steps, threat_model.losses()[0]
    losses: list[Any] = ["ce", "margin", *["dlr"][: classes > 2]]
    attacks: dict[str, Attack] = {}
    if norm == "l0":
        attacks = {f"ascent {each}": _ascent(samples, threat_model, steps, loss=each) for each in losses}
    else:
        for share in (0.02, 0.5):
            step_size = share * eps
            attacks[f"PGD {loss}, steps of {share:g} eps"] = _ascent(
                samples, threat_model, steps, loss=loss, step_size=step_size
            )
        for each in losses:
            attacks[f"APGD {each}"] = APGD(norm, eps, steps, each, eot_samples=samples.eot_samples)
    if norm != "linf":
        attacks["FMN"] = nearest(norm, eps, 2 * steps, samples.eot_samples)
    if level != "brief" and norm != "l0" and classes > 2:  # one class at a time, where untargeted steps cannot decide
        aim: Any = "dlr" if level == "full" and classes > 3 else "margin"
        each_steps = steps if level == "full" else steps // 2
        targeted = APGD(norm, eps, each_steps, aim, targeted=True, eot_samples=samples.eot_samples)
        attacks["targeted"] = Targeted(targeted)
    return no_new_adversarials(
        id="C15",
        name="other objectives and step sizes find no more",
        samples=samples,
        threat_model=threat_model,
        attacks=attacks,
        limit=0.01,
    )


def altogether(samples: AuditSamples, threat_model: ThreatModel, checks: Mapping[str, Check]) -> Check:
    """A1: all experiments of the audit together; samples that each check breaks below its limit add up."""
    by = {key.removesuffix(f" {threat_model.title}"): len(c.broken) for key, c in checks.items() if c.broken}
    every = tuple(sorted({number for check in checks.values() for number in check.broken}))
    counts = "; ".join(f"{key}: {k}" for key, k in by.items()) or "by none"
    name = f"all experiments together find no more, {threat_model.title}"
    return too_high("A1", name, samples, threat_model, every, 0.01, counts)
