"""Checks that recorded outcomes are reproduced where the same samples are attacked again."""

from typing import Any

import numpy as np
import torch
from torch import nn

from adversarial_lightning.evaluation.audit.check import Answer, Share
from adversarial_lightning.evaluation.audit.inputs import Task
from adversarial_lightning.evaluation.campaign.sample_status import AttackRun
from adversarial_lightning.evaluation.outcomes.outcome import evaluate_batch
from adversarial_lightning.evaluation.outcomes.subset import random_numbers

_LONGEST = 400  # most passes a sample of a run that is repeated on copies


def repeated(task: Task) -> Answer:
    """C16: repeat the cheapest run of the suite, of an attack if it has one, on some of its samples."""
    runs = list(_runs(task))
    runs = [run for run in runs if run.attack is not None and run.attack.kind != "corruption"] or runs
    if not runs:
        return Share(k=0, n=0, sentence="")
    changed, n, of = _run_again(task, runs[0], task.audit.model)
    return Share(
        k=changed,
        n=n,
        of=of,
        sentence=f"{changed} of {n} predictions under {runs[0].name} differed when it was run again",
        bad="the recorded outcomes cannot be repeated",
    )


def repeated_on_copies(task: Task) -> Answer:
    """M2: the successes and failures of the suite's longest run that is not too long, on copies never asked before."""
    runs = [run for run, passes in _runs(task).items() if passes <= _LONGEST]
    if not runs:
        return f"Every run of the suite takes more than {_LONGEST} passes."
    changed, n, of = _run_again(task, runs[-1], task.samples.judge)
    return Share(
        k=changed,
        n=n,
        of=of,
        sentence=f"{changed} of {n} predictions under {runs[-1].name} differed on {task.audit.copies}",
        bad="the recorded outcomes hold only for a model that was asked these questions in this order",
    )


def _runs(task: Task) -> dict[AttackRun, float]:
    """Runs of the suite that have rows, with the passes that a sample cost, ascending in these."""
    campaign = task.audit.campaign
    runs = [run for name in campaign.suite for run in campaign.runs(name)]
    tables = {run: task.audit.tables[run.name, run.restart] for run in runs}
    cost = {run: float((t["forwards"] + t["backwards"]).mean()) for run, t in tables.items() if len(t["index"])}
    return dict(sorted(cost.items(), key=lambda item: item[1]))


def _run_again(task: Task, run: AttackRun, model: nn.Module) -> tuple[int, int, float]:
    """Predictions that changed where `model` is attacked again, of how many, and the share of all that these are."""
    campaign, device, table = task.audit.campaign, task.audit.device, task.audit.tables[run.name, run.restart]
    few = random_numbers(table["index"], task.budget.repeated, campaign.sample_seed)
    rows = {key: column[np.isin(table["index"], few)] for key, column in table.items()}
    x, y, index = campaign.batch(rows["index"].tolist(), device)
    keyed: dict[str, Any] = {"seed": campaign.seed, "name": run.name, "restart": run.restart, "draws": campaign.draws}
    clean = torch.from_numpy(rows["clean"]).to(device)
    again, _ = evaluate_batch(model, run.attack, x, y, index, clean=clean, **keyed)
    changed = sum(a != o.adversarial for a, o in zip(rows["adversarial"].tolist(), again, strict=True))
    return changed, len(again), len(table["index"]) / campaign.n
