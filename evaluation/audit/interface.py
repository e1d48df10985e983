"""Checks of what a model says of itself: randomness, outputs, optimisation in the forward pass; and of targets."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from adversarial_lightning.attacks import Attack, Targeted
from adversarial_lightning.evaluation.audit.check import NO_SAMPLES, Check, not_applicable, share_check
from adversarial_lightning.evaluation.audit.samples import AuditSamples
from adversarial_lightning.evaluation.outcomes.claims import parts_of
from adversarial_lightning.networks.eval_mode import are_probabilities


def resolution(outputs: Tensor) -> float:
    """Relative rounding of `outputs`: of float32 or, where all of them are such numbers, of half types."""
    for dtype in (torch.bfloat16, torch.float16):
        if bool((outputs.to(dtype).to(outputs.dtype) == outputs).all()):
            return float(torch.finfo(dtype).eps)
    return float(torch.finfo(torch.float32).eps)


def randomness(samples: AuditSamples) -> Check:
    """F1, AutoAttack's randomized: equal images with equal noise give equal logits, repeated and in other batches."""
    name = "no undeclared randomness"
    if not len(samples):
        return not_applicable(id="F1", name=name, limit=0.0, why=NO_SAMPLES)
    first, back = samples.logits(samples.x), torch.arange(len(samples) - 1, -1, -1, device=samples.x.device)
    again = [samples.logits(samples.x) for _ in range(4)] + [samples[back].logits(samples.x[back])[back]]
    half = samples[slice(0, (len(samples) + 1) // 2)]
    odd = first.new_zeros(len(first))
    for logits in [*again, half.logits(half.x)]:
        same = first[: len(logits)]
        size = same.norm(dim=1)
        apart = torch.where(size > 0, (logits - same).norm(dim=1) / size, (logits != same).any(1).float())
        odd[: len(logits)] = torch.maximum(odd[: len(logits)], apart.nan_to_num(torch.inf))
    tolerance = max(1e-3, 4 * resolution(first))
    k = int((odd > tolerance).sum())
    return share_check(
        id="F1",
        name=name,
        k=k,
        n=len(samples),
        limit=0.0,
        excludes=samples.excludes,
        of=samples.of,
        sentence=f"The logits of {k} of {len(samples)} images differed when they were asked again with equal noise, in "
        f"other orders and batches (by {float(odd.max()):.2g} of their length at most, {tolerance:.2g} allowed)",
        bad="the model draws, remembers or depends on its batch without declaring it; of a random model attacks must "
        "average gradients (EOT)",
    )


def output_range(samples: AuditSamples) -> Check:
    """F2, AutoAttack's range_output: outputs are logits or log-probabilities, not probabilities or percentages."""
    name, logits, n = "outputs are logits", samples.logits(samples.x), len(samples)
    if not n:
        return not_applicable(id="F2", name=name, limit=0.0, why=NO_SAMPLES)
    flat = "attacks need the logits before the softmax, which flattens gradients where the model is sure"
    if bool(are_probabilities(logits)):
        return Check(id="F2", name=name, verdict="failed", sentence=f"All {n} rows are probabilities: {flat}.")
    total = logits.double().sum(1)
    if bool((logits >= 0).all()) and bool(((total - total[0]).abs() < 1e-3 * total[0].abs()).all()) and n > 1:
        kind = "percentages" if abs(float(total[0]) - 100) < 0.1 else f"shares of {float(total[0]):.4g}"
        sentence = f"All {n} rows are {kind}, not logits: {flat}; whether these attacks suffer from it, F3, C6 and "
        return Check(id="F2", name=name, verdict="not shown", sentence=f"{sentence}C8 examine.")
    logs = bool((logits.logsumexp(1).abs() < 1e-4).all())
    kind = "log-probabilities, which serve attacks as well as logits" if logs else "neither probabilities nor shares"
    return share_check(
        id="F2",
        name=name,
        k=0,
        n=n,
        limit=0.0,
        excludes=samples.excludes,
        of=samples.of,
        sentence=f"The outputs for {n} images are {kind}",
        bad="",
    )


def computes_at_inference(samples: AuditSamples, purified: bool) -> Check:
    """F5, AutoAttack's dynamic: a forward pass runs no optimisation, unless a purifier declares it.

    It counts the saved tensors that autograd uses while gradients are off: there are none unless the model switches
    gradients on. torch.func refuses such counting, which says the same.
    """
    name, used, n = "no undeclared optimisation at inference", 0, len(samples)

    def count(tensor: Tensor) -> Tensor:
        nonlocal used
        used += 1
        return tensor

    try:
        with saved_tensors_hooks(lambda tensor: tensor, count):
            samples.logits(samples.x)
    except RuntimeError:
        samples.logits(samples.x)  # an error of another kind comes again
        used += 1
    if used and purified:
        sentence = "A forward pass computes gradients: a purifier declares it."
        return Check(id="F5", name=name, verdict="passed", figure=float(used), sentence=sentence)
    return share_check(
        id="F5",
        name=name,
        k=n if used else 0,
        n=n,
        limit=0.0,
        excludes=samples.excludes,
        of=samples.of,
        sentence=f"Forward passes of {n} images compute {'' if used else 'no '}gradients of their own",
        bad="put what computes them into a Purifier, which declares what attacks must do",
    )


def targets(attacks: Iterable[Attack], classes: int) -> Check:
    """F6, AutoAttack's n_classes: number of wrong classes that targeted attacks aim at; informative."""
    aimed = [min(a.n_targets, classes - 1) for attack in attacks for a in parts_of(attack) if isinstance(a, Targeted)]
    name = "target classes"
    if not aimed or not classes:
        return not_applicable(id="F6", name=name, why="The suite has no targeted attack.")
    sentence = f"The model has {classes} outputs; targeted attacks aim at {max(aimed)} of {classes - 1} wrong classes."
    return Check(id="F6", name=name, verdict="for information", figure=float(max(aimed)), sentence=sentence)
