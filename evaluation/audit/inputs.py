"""What the checks of one audit examine, computed when it is first needed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import Attack
from adversarial_lightning.defenses import Purified
from adversarial_lightning.evaluation.audit.check import Check
from adversarial_lightning.evaluation.audit.levels import LEVELS, Budget, Level
from adversarial_lightning.evaluation.audit.own_attacks import ascent
from adversarial_lightning.evaluation.audit.samples import AuditSamples
from adversarial_lightning.evaluation.audit.substitute import imitate, inner_network
from adversarial_lightning.evaluation.audit.threat_models import (
    QUANTILES,
    ThreatModel,
    audited_threat_models,
    held,
)
from adversarial_lightning.evaluation.audit.untouched import Forgetful, Untouched, untouched_copy
from adversarial_lightning.evaluation.campaign.ledger import run_costs
from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, SampleStatus, robust_share
from adversarial_lightning.evaluation.outcomes.subset import random_numbers
from adversarial_lightning.networks.eval_mode import device_of

T = TypeVar("T")
Group = Literal["right", "robust", "held"]  # without an attack; at a claim; by classifier and detector together


@dataclass
class Inputs:
    """A finished campaign of `model` and what checks compute of it; `found` holds the answers so far by key."""

    campaign: Campaign
    model: nn.Module
    results: Mapping[str, Any]
    required_adaptations: Mapping[str, bool]
    level: Level
    rows: int
    found: dict[str, Check] = field(default_factory=dict)
    untouched: Untouched | None = None

    def __post_init__(self) -> None:
        self.copies = "copies that were never asked"
        self.shared: dict[tuple[str, str], Any] = {}  # what checks of a claim share, by name and the claim's title
        if self.untouched is None:
            self.copies, self.untouched = "copies made when the audit began", untouched_copy(self.model)

    @cached_property
    def forgetful(self) -> Forgetful | None:
        """The model without a memory; None where it cannot be copied."""
        if self.untouched is None:
            return None
        self.untouched.model.to(self.device)
        if hasattr(self.model, "detector"):
            self.untouched.model.detector.theta = self.model.detector.theta  # type: ignore[union-attr]
        return Forgetful(self.untouched)

    def found_about(self, threat_model: ThreatModel) -> dict[str, Check]:
        """Answers so far of the checks of one claim, without the sum of them, A1."""
        end = f" {threat_model.title}"
        return {key: c for key, c in self.found.items() if key.endswith(end) and not key.startswith("A1")}

    @property
    def budget(self) -> Budget:
        return LEVELS[self.level]

    @property
    def stochastic(self) -> bool:
        return bool(self.required_adaptations.get("eot"))

    @cached_property
    def device(self) -> torch.device:
        return device_of(self.model)

    @cached_property
    def tables(self) -> dict[tuple[str, int], Any]:
        """Stored rows of every run, by attack and restart."""
        campaign = self.campaign
        runs = [run for name in (CLEAN, *campaign.suite) for run in campaign.runs(name)]
        return {(run.name, run.restart): campaign.table(run) for run in runs}

    @cached_property
    def status(self) -> SampleStatus:
        return self.campaign.status()

    @cached_property
    def drawn(self) -> set[str]:
        """Attacks of the campaign under which a global generator changed."""
        spent = run_costs(self.campaign.folder, identity=self.campaign.identity)
        return {name for entry in spent for name in entry.global_draws.splitlines()}

    @cached_property
    def audited_threat_models(self) -> list[ThreatModel]:
        quantiles = tuple(QUANTILES) if self.level == "full" else (0.5,)
        shape = self.campaign.batch(self.campaign.samples[:1], self.device)[0].shape[1:]
        return audited_threat_models(self.status, self.campaign.suite, tuple(shape), quantiles)

    @property
    def most(self) -> int:
        """Most samples of a claim that are examined: each of a stochastic model costs ten times as much."""
        return self.budget.samples // (4 if self.stochastic else 1)

    def samples(self, samples: Any, of: float) -> AuditSamples:
        """A random subset of these samples, as many as the budget allows."""
        count, averaged = (20, self.budget.averaged) if self.stochastic else (1, 1)
        x, y, index = self.campaign.batch(random_numbers(samples, self.most, self.campaign.sample_seed), self.device)
        about = {"of": of, "draws": count, "eot_samples": averaged, "rows": self.rows, "untouched": self.forgetful}
        return AuditSamples(
            self.model,
            x,
            y,
            index,
            self.campaign.seed,
            excludes=self.budget.excludes,
            **about,  # type: ignore[arg-type]
        )

    @cached_property
    def right(self) -> AuditSamples:
        """Samples that are right without an attack."""
        shares = robust_share(self.status.bits[CLEAN], self.status.draws)
        return self.samples(self.status.samples[shares >= 0.5], float(shares.mean()))

    def still_robust(self, threat_model: ThreatModel) -> AuditSamples:
        """Samples that are robust at a threat model; of a stochastic model, also when attacked once more."""
        samples = self.samples(threat_model.samples, threat_model.of)
        if not self.stochastic or not len(samples):
            return samples
        again = samples.broken_by(Task(self, threat_model, samples).strongest(), "again")
        return replace(samples[~again], of=threat_model.of * float((~again).float().mean()))

    def group(self, group: Group, threat_model: ThreatModel) -> AuditSamples:
        """The samples of a claim that a check examines."""
        if group == "right":
            return self.right
        if group == "robust":
            return self.once(("robust", threat_model.title), lambda: self.still_robust(threat_model))
        numbers = held(self.tables, threat_model, self.model.detector.theta)  # type: ignore[union-attr,arg-type]
        return self.samples(numbers, len(numbers) / self.campaign.n)

    def once(self, key: tuple[str, str], compute: Callable[[], T]) -> T:
        """What `compute` returns, computed once for all checks that share it."""
        if key not in self.shared:
            self.shared[key] = compute()
        shared: T = self.shared[key]
        return shared

    @cached_property
    def bare(self) -> nn.Module:
        """The classifier without its purifiers and its detector; the model itself where it has none."""
        bare = self.model
        while isinstance(bare, Purified) or (hasattr(bare, "classifier") and hasattr(bare, "detector")):
            bare = bare.classifier  # type: ignore[assignment]  # a detector's module: evaluation knows no detectors
        return bare

    @cached_property
    def purifiers(self) -> list[nn.Module]:
        return [m.purifier for m in self.model.modules() if isinstance(m, Purified)]

    @cached_property
    def inner(self) -> nn.Module | None:
        """A network inside the model that classifies images, and is not the model."""
        few = self.right[slice(0, 8)]
        return inner_network(self.model, few.x, few.y) if len(few) else None

    @cached_property
    def classes(self) -> int:
        return int(self.right.logits(self.right.x).shape[1]) if len(self.right) else 0

    def substitutes(self, threat_model: ThreatModel) -> dict[str, nn.Module]:
        """Surrogate networks for transfer: what the model defends, and an imitation of the model."""
        few = random_numbers(self.campaign.samples, self.budget.imitated, self.campaign.sample_seed)
        x, _, _ = self.campaign.batch(few, self.device)
        imitation = imitate(
            self.model, x, eps=_change(threat_model, x), steps=self.budget.imitation, seed=self.campaign.seed
        )
        inner = self.bare if self.purifiers else self.inner
        undefended = {"the undefended network": inner} if inner is not None else {}
        return undefended | {"an imitation": imitation}


@dataclass(frozen=True)
class Task:
    """What the check `id` examines: `samples`, and the claim `threat_model` (of checks of the model, the first one)."""

    audit: Inputs
    threat_model: ThreatModel
    samples: AuditSamples
    id: str = ""

    @property
    def budget(self) -> Budget:
        return self.audit.budget

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """What `compute` returns, computed once for all checks of this claim."""
        return self.audit.once((name, self.threat_model.title), compute)

    def ascent(self, steps: int, **settings: Any) -> Attack:
        """Ascent in the ball of the claim, with EOT where the model is stochastic."""
        eot = self.samples.eot_samples
        return ascent(self.threat_model.norm, self.threat_model.eps, steps, eot_samples=eot, **settings)

    def strongest(self, among: tuple[type, ...] = (Attack,)) -> Attack:
        """The suite's strongest gradient attack among some classes; ascent of the audit's where it has none."""
        own = [attack for attack in self.threat_model.gradient_attacks() if isinstance(attack, among)]
        return self.averaging(own[0]) if own else self.ascent(self.budget.steps)

    def averaging(self, attack: Attack, **settings: Any) -> Attack:
        """The attack with other `settings`, and with EOT where the model is stochastic and the attack can."""
        if any(f.name == "eot_samples" for f in fields(attack)):  # type: ignore[arg-type]
            settings["eot_samples"] = self.samples.eot_samples
        return replace(attack, **settings)  # type: ignore[type-var]


def _change(threat_model: ThreatModel, x: Tensor) -> float:
    """Change of one value where all values change by the same amount, on the surface of the ball; in l0 any change."""
    size = float(x.shape[1:].numel())
    if threat_model.norm == "l0":
        return 0.5
    return threat_model.eps / {"linf": 1.0, "l2": math.sqrt(size)}.get(threat_model.norm, size)
