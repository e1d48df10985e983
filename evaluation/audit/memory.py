"""Checks for models whose answers depend on more than the image: on earlier questions, and on who asks."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from adversarial_lightning.evaluation.audit.check import Share
from adversarial_lightning.evaluation.audit.inputs import Task
from adversarial_lightning.evaluation.audit.own_attacks import ascent
from adversarial_lightning.evaluation.audit.samples import Connected, differs


class Questions(nn.Module):
    """Keeps every fifth question of an attack on `rows` images, and what `model` answered: `asked`."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        super().__init__()
        self.model, self.rows, self.count = model, rows, 0
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        self.count += len(x) == self.rows
        if len(x) == self.rows and self.count % 5 == 0:
            self.asked.append((x.detach().clone(), logits.detach().clone()))
        return logits


def same_answers(task: Task) -> Share:
    """M1: what an attack was told is what a copy says that was never asked, and what the model says afterwards.

    The images that an ascent asks of the model are asked again, in the other order and not by an attack.
    """
    samples, claim, odd = task.samples, task.threat_model, []
    attack = ascent(claim.norm, claim.eps, task.budget.steps // 2, loss="margin", eot_samples=1)
    for part in samples.parts():
        record, unasked = Questions(part.model, len(part)), replace(part, model=samples.judge)
        points = attack(Connected(record), part.x, part.y, part.noise("M1"))
        asked = record.asked if samples.draws == 1 else []  # in an attack a stochastic model draws other noise
        rows = torch.zeros_like(part.y, dtype=torch.bool)
        with torch.no_grad():
            for z, told in reversed([*asked, (points, part.deciding(points, score=False))]):
                true = unasked.deciding(z, score=False)
                rows |= differs(true, told) | differs(true, part.deciding(z, score=False))
            rows |= differs(unasked.deciding(part.x, score=False), part.logits(part.x))
        odd.append(rows)
    k = int(torch.cat(odd).sum())
    return Share(
        k=k,
        of=samples.of,
        sentence=f"For {k} of {len(samples)} samples the model gave an attack, or gave afterwards, other answers than "
        f"{task.audit.copies} give to the same images",
        bad="it draws, remembers, or sees who asks",
    )
