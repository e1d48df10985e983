"""Checks of what a model says of itself: randomness, outputs, optimisation in the forward pass; and of targets."""

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from adversarial_lightning.attacks import Targeted
from adversarial_lightning.evaluation.audit.check import Answer, Said, Share
from adversarial_lightning.evaluation.audit.inputs import Task
from adversarial_lightning.evaluation.audit.samples import allowed, apart
from adversarial_lightning.evaluation.outcomes.claims import parts_of
from adversarial_lightning.networks.eval_mode import are_probabilities


def randomness(task: Task) -> Share:
    """F1, AutoAttack's randomized: equal images with equal noise give equal logits, repeated and in other batches."""
    samples = task.samples
    first, back = samples.logits(samples.x), torch.arange(len(samples) - 1, -1, -1, device=samples.x.device)
    again = [samples.logits(samples.x) for _ in range(4)] + [samples[back].logits(samples.x[back])[back]]
    half = samples[slice(0, (len(samples) + 1) // 2)]
    odd = first.new_zeros(len(first))
    for logits in [*again, half.logits(half.x)]:
        odd[: len(logits)] = torch.maximum(odd[: len(logits)], apart(first[: len(logits)], logits))
    tolerance = allowed(first)
    k = int((odd > tolerance).sum())
    return Share(
        k=k,
        of=samples.of,
        sentence=f"The logits of {k} of {len(samples)} images differed when they were asked again with equal noise, in "
        f"other orders and batches (by {float(odd.max()):.2g} of their length at most, {tolerance:.2g} allowed)",
        bad="the model draws, remembers or depends on its batch without declaring it; of a random model attacks must "
        "average gradients (EOT)",
    )


def output_range(task: Task) -> Answer:
    """F2, AutoAttack's range_output: outputs are logits or log-probabilities, not probabilities or percentages."""
    logits, n = task.samples.logits(task.samples.x), len(task.samples)
    flat = "attacks need the logits before the softmax, which flattens gradients where the model is sure"
    if bool(are_probabilities(logits)):
        return Said(verdict="failed", sentence=f"All {n} rows are probabilities: {flat}.")
    total = logits.double().sum(1)
    if bool((logits >= 0).all()) and bool(((total - total[0]).abs() < 1e-3 * total[0].abs()).all()) and n > 1:
        kind = "percentages" if abs(float(total[0]) - 100) < 0.1 else f"shares of {float(total[0]):.4g}"
        sentence = f"All {n} rows are {kind}, not logits: {flat}; whether these attacks suffer from it, F3, C6 and "
        return Said(verdict="not shown", sentence=f"{sentence}C8 examine.")
    logs = bool((logits.logsumexp(1).abs() < 1e-4).all())
    kind = "log-probabilities, which serve attacks as well as logits" if logs else "neither probabilities nor shares"
    return Share(k=0, of=task.samples.of, sentence=f"The outputs for {n} images are {kind}")


def computes_at_inference(task: Task) -> Answer:
    """F5, AutoAttack's dynamic: a forward pass runs no optimisation, unless a purifier declares it.

    It counts the saved tensors that autograd uses while gradients are off: there are none unless the model switches
    gradients on. torch.func refuses such counting, which says the same.
    """
    samples, n, used = task.samples, len(task.samples), 0

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
    if used and task.audit.purifiers:
        return Said(verdict="passed", sentence="A forward pass computes gradients: a purifier declares it.")
    return Share(
        k=n if used else 0,
        of=samples.of,
        sentence=f"Forward passes of {n} images compute {'' if used else 'no '}gradients of their own",
        bad="put what computes them into a Purifier, which declares what attacks must do",
    )


def targets(task: Task) -> Answer:
    """F6, AutoAttack's n_classes: number of wrong classes that targeted attacks aim at; informative."""
    attacks, classes = task.audit.campaign.suite.values(), task.audit.classes
    aimed = [min(a.n_targets, classes - 1) for attack in attacks for a in parts_of(attack) if isinstance(a, Targeted)]
    if not aimed or not classes:
        return "The suite has no targeted attack."
    sentence = f"The model has {classes} outputs; targeted attacks aim at {max(aimed)} of {classes - 1} wrong classes."
    return Said(verdict="for information", figure=float(max(aimed)), sentence=sentence)
