"""First attack run that broke each sample: the data of pictures, histograms and confusions."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adversarial_lightning.attacks import threat
from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, AttackRun, applies, outside, threat_models
from adversarial_lightning.evaluation.outcomes.types import Columns
from adversarial_lightning.evaluation.report import formatting

Array = NDArray[Any]


@dataclass
class Successes:
    """Successes of one threat model's attacks on samples that are right without one (arrays over samples).

    `eps` None: no ball, but the nearest adversarial point that minimum-norm attacks of `norm` found. `sample` are
    sample numbers, ascending; `adversarial` is the predicted class under the run that broke the sample, the label for
    a robust one; `run` is the position of that run in `runs`, -1 for a robust one. `cost` orders broken samples from
    easy to hard: number of runs that failed before or, without a ball, length. `seconds` is the mean time of a sample
    in each run.
    """

    norm: str
    eps: float | None
    sample: Array
    label: Array
    runs: list[AttackRun] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.adversarial, self.run = self.label.copy(), np.full(len(self.sample), -1)
        self.cost = np.zeros(len(self.sample))

    @property
    def title(self) -> str:
        return formatting.threat(self.norm, self.eps) if self.eps is not None else f"{self.norm} nearest"

    @property
    def heading(self) -> str:
        """Title with the symbols of norms."""
        shape = formatting.threat(self.norm, self.eps, symbols=True)
        return shape if self.eps is not None else f"{shape}, nearest adversarial points"

    def record(self, run: AttackRun, rows: Columns) -> None:
        """Add one run: the first success of a sample counts or, without a ball, the shortest perturbation."""
        rows = {key: column[np.isin(rows["index"], self.sample)] for key, column in rows.items()}
        at = np.searchsorted(self.sample, rows["index"])
        broken = rows["adversarial"] != rows["label"]
        if self.eps is not None:
            broken &= ~outside(rows, self.norm, self.eps, run.attack.kind if run.attack else "budget")
            self.cost[at] += ~broken & (self.run[at] < 0)
            better = broken & (self.run[at] < 0)
        else:
            better = broken & ((self.run[at] < 0) | (rows[self.norm] < self.cost[at]))
            self.cost[at[better]] = rows[self.norm][better]
        self.run[at[better]] = len(self.runs)
        self.adversarial[at[better]] = rows["adversarial"][better]
        self.runs.append(run)
        self.seconds.append(float(rows["seconds"].mean()) if len(at) else 0.0)

    def shown(self, position: int) -> int:
        """Run to show for a sample: the one that broke it; for a robust one, the budget run that broke the most."""
        if self.run[position] >= 0:
            return int(self.run[position])
        broken_by = np.bincount(self.run[self.run >= 0], minlength=len(self.runs))
        budget = [run.attack is not None and run.attack.kind == "budget" for run in self.runs]
        return int(np.where(budget, broken_by + len(self.run), broken_by).argmax())  # budget attacks come first


@dataclass
class Records:
    """Data of all ledgers: `cases`, `lengths` found by minimum-norm attacks, by norm and attack, detector `scores`.

    `scores` are those of clean images and, by attack, of the attacked ones (the last run of each); empty without a
    detector.
    """

    cases: list[Successes]
    lengths: dict[str, dict[str, Array]]
    scores: dict[str, Array]


def gather(campaign: Campaign) -> Records:
    """Read every ledger once: cases are the first threat model of each norm, and the nearest points."""
    clean = campaign.table(campaign.runs(CLEAN)[0])
    right = clean["clean"] == clean["label"]
    known: tuple[Array, Array] = clean["index"][right], clean["label"][right]
    shortest = [threat(a)[0] for a in campaign.suite.values() if a.kind == "minimum-norm"]
    first = {norm: eps for norm, eps in reversed(threat_models(campaign.suite))}
    cases = [Successes(*model, *known) for model in threat_models(campaign.suite) if model in first.items()]
    cases += [Successes(shape, None, *known) for shape in dict.fromkeys(shortest) if shape is not None]
    records = Records(cases, {}, {CLEAN: clean["score"]} if campaign.scored else {})
    for name, attack in campaign.suite.items():
        norm = threat(attack)[0]
        for run in campaign.runs(name):
            rows = campaign.table(run)
            for case in cases:
                nearest = case.eps is None and attack.kind == "minimum-norm" and norm == case.norm
                if nearest or applies(attack, case.norm, case.eps):
                    case.record(run, rows)
            if campaign.scored:
                records.scores[name] = rows["score"]
        if attack.kind == "minimum-norm" and norm is not None:
            found = (rows["clean"] == rows["label"]) & (rows["adversarial"] != rows["label"])
            records.lengths.setdefault(norm, {})[name] = rows[norm][found]
    return records
