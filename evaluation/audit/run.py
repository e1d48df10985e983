"""Runs all checks of the audit in their order, each on its samples."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.norms import NORMS
from adversarial_lightning.defenses import Purified
from adversarial_lightning.evaluation.audit import gradient_masking, sanity, stored_rows, stronger_attacks
from adversarial_lightning.evaluation.audit.check import Check
from adversarial_lightning.evaluation.audit.other_threats import broader_threats
from adversarial_lightning.evaluation.audit.samples import AuditSamples, undisturbed
from adversarial_lightning.evaluation.audit.substitute import imitate
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel, audited_threat_models
from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, SampleStatus, robust_share
from adversarial_lightning.evaluation.outcomes.outcome import evaluate_batch
from adversarial_lightning.evaluation.outcomes.subset import random_numbers
from adversarial_lightning.networks.eval_mode import device_of

Level = Literal["brief", "quick", "full"]


def audit(
    campaign: Campaign,
    model: nn.Module,
    results: Mapping[str, Any],
    *,
    required_adaptations: Mapping[str, bool],
    level: Level = "quick",
    rows: int = 128,
    known: Mapping[str, Check] | None = None,
    tell: Callable[[str, Check, int], None] = lambda key, check, total: None,
) -> list[Check]:
    """Run every check on a finished campaign of `model` whose merged numbers are `results` (schema 3).

    `required_adaptations` is what the defenses declare; `rows` are attacked at once. Checks that are `known` by their
    key are not repeated; `tell` is called with every new one and the number of all. Deterministic, given the seed of
    the campaign.

    quick attacks up to 64 robust samples of each threat model, with up to 3,000 forwards and 1,500 backwards each; full
    attacks up to 512, with up to 30,000 and 5,000. Gradients of stochastic models are means
    over 10 draws and cost ten times that, so only a fourth of the samples is attacked. brief is for defenses that take
    a good part of a second for each image: up to 32 samples (8 of stochastic models, means over 3 draws) and a tenth
    of the passes; it finds only gross failures.
    """
    found: dict[str, Check] = dict(known or {})
    audit_run = AuditRun(campaign, model, results, required_adaptations, level, rows)
    with undisturbed(audit_run.device):
        checks = audit_run.checks()
        for key, check in checks.items():
            if key not in found:
                torch.manual_seed(campaign.seed)  # for models that draw from torch's own generator
                found[key] = check()
                tell(key, found[key], len(checks))
    return [found[key] for key in checks]


@dataclass
class AuditRun:
    """Lazily computed inputs of the checks."""

    campaign: Campaign
    model: nn.Module
    results: Mapping[str, Any]
    required_adaptations: Mapping[str, bool]
    level: Level
    rows: int

    @property
    def budget(self) -> stronger_attacks.Budget:
        return stronger_attacks.LEVELS[self.level]

    @property
    def stochastic(self) -> bool:
        return bool(self.required_adaptations.get("eot"))

    @cached_property
    def device(self) -> torch.device:
        return device_of(self.model)

    @cached_property
    def tables(self) -> dict[tuple[str, int], Any]:
        campaign = self.campaign
        runs = [run for name in (CLEAN, *campaign.suite) for run in campaign.runs(name)]
        return {(run.name, run.restart): campaign.table(run) for run in runs}

    @cached_property
    def status(self) -> SampleStatus:
        return self.campaign.status()

    @cached_property
    def audited_threat_models(self) -> list[ThreatModel]:
        return audited_threat_models(self.status, self.campaign.suite)

    def samples(self, samples: Any, of: float) -> AuditSamples:
        """A random subset of these samples, as many as the budget allows."""
        count, averaged = (20, self.budget.averaged) if self.stochastic else (1, 1)
        most = self.budget.samples // (4 if self.stochastic else 1)  # each of them costs ten times as much
        chosen = self.campaign.batch(random_numbers(samples, most, self.campaign.sample_seed), self.device)
        return AuditSamples(self.model, *chosen, self.campaign.seed, of, count, averaged, self.rows)

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
        again = samples.broken_by(
            stronger_attacks.strongest_gradient_attack(samples, threat_model, self.budget), "again"
        )
        return replace(samples[~again], of=threat_model.of * float((~again).float().mean()))

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
    def classes(self) -> int:
        return int(self.right.logits(self.right.x).shape[1]) if len(self.right) else 0

    def substitutes(self, threat_model: ThreatModel) -> dict[str, nn.Module]:
        """Surrogate networks for transfer: the undefended classifier, and an imitation of the model."""
        few = random_numbers(self.campaign.samples, self.budget.imitated, self.campaign.sample_seed)
        x, _, _ = self.campaign.batch(few, self.device)
        imitation = imitate(
            self.model, x, eps=_radius(threat_model, x), steps=self.budget.imitation, seed=self.campaign.seed
        )
        undefended = {"the undefended network": self.bare} if self.purifiers else {}
        return undefended | {"an imitation": imitation}

    def checks(self) -> dict[str, Callable[[], Check]]:
        """Checks by a unique key, in the order in which they run and are reported."""
        campaign, declares_bpda = self.campaign, bool(self.required_adaptations.get("bpda"))
        checks: dict[str, Callable[[], Check]] = {
            "C1": lambda: stored_rows.threat_model(campaign.suite, self.tables),
            "C2": lambda: stored_rows.clean_accuracy(self.status, self.tables, self.results, campaign.scored),
            "C4 recorded": lambda: stored_rows.monotone(self.results, campaign.n),
            "C10 predicted": lambda: gradient_masking.true_gradients(self.right, declares_bpda),
            "C11": lambda: stored_rows.several_draws(campaign.draws, self.stochastic),
            "C12": lambda: stored_rows.settings_stored(self.results, campaign.folder),
            "C16": self.repeated,
            "C17": lambda: broader_threats(self.right),
            "F1": lambda: gradient_masking.randomness(self.right),
            "F2": lambda: gradient_masking.output_range(self.right),
            "F5": lambda: gradient_masking.computes_at_inference(self.right, bool(self.purifiers)),
            "F6": lambda: gradient_masking.targets(campaign.suite.values(), self.classes),
        }
        for threat_model in self.audited_threat_models:
            checks |= {f"{key} {threat_model.title}": check for key, check in self.about(threat_model).items()}
        return checks

    def about(self, threat_model: ThreatModel) -> dict[str, Callable[[], Check]]:
        """Checks of one threat model by key."""
        cache: list[AuditSamples] = []

        def samples() -> AuditSamples:
            if not cache:
                cache.append(self.still_robust(threat_model))
            return cache[0]

        budget = self.budget
        checks: dict[str, Callable[[], Check]] = {
            "C3 recorded": lambda: stored_rows.iterative_beats_single_step(self.status, threat_model),
            "C3": lambda: stronger_attacks.single_step(samples(), threat_model),
            "C4": lambda: sanity.unbounded(samples(), threat_model, budget, self.classes),
            "C5": lambda: stronger_attacks.converged(samples(), threat_model, budget),
            "C6 recorded": lambda: stored_rows.gradients_beat_queries(self.status, threat_model),
            "C6": lambda: stronger_attacks.gradient_free(samples(), threat_model, budget),
            "C7": lambda: stronger_attacks.random_points(samples(), threat_model, budget),
            "C8": lambda: stronger_attacks.transferred(
                samples(), threat_model, budget, self.substitutes(threat_model) if len(samples()) else {}
            ),
            "C9": lambda: stored_rows.worst_case(self.status, threat_model, self.tables, self.results),
            "C10 declared": lambda: stored_rows.declared(threat_model, self.required_adaptations, self.campaign.scored),
            "C13 active": lambda: sanity.active(self.right, threat_model, budget),
            "C15": lambda: stronger_attacks.tuned(samples(), threat_model, budget, self.classes, self.level),
            "F2": lambda: gradient_masking.saturation(samples(), threat_model),
            "F3": lambda: gradient_masking.zero_gradients(samples(), threat_model),
            "I2": lambda: gradient_masking.stable_gradients(
                samples(), threat_model, bool(self.required_adaptations.get("bpda"))
            ),
            "I3": lambda: gradient_masking.silent_success(samples(), threat_model, budget),
            "I4": lambda: gradient_masking.optimised(samples(), threat_model, budget),
        }
        if threat_model.norm not in NORMS:  # such as l0: the audit has no attack in that ball
            return {key: check for key, check in checks.items() if key.split()[-1] in ("recorded", "C9", "declared")}
        if self.purifiers:
            checks["C10 past"] = lambda: stronger_attacks.around_purifiers(
                samples(), threat_model, budget, self.purifiers
            )
            checks["C13 off"] = lambda: sanity.undefended(self.right, threat_model, budget, self.bare, self.classes)
        return checks

    def repeated(self) -> Check:
        """C16: repeat the cheapest run of the suite on some of its samples."""
        campaign, tables = self.campaign, self.tables
        runs = [u for name in campaign.suite for u in campaign.runs(name) if len(tables[name, u.restart]["index"])]
        if not runs:
            return sanity.repeated([], [], "any attack")
        run = min(runs, key=lambda u: float(tables[u.name, u.restart]["forwards"].mean()))
        table = tables[run.name, run.restart]
        few = random_numbers(table["index"], self.budget.repeated, campaign.sample_seed)
        rows = {key: column[np.isin(table["index"], few)] for key, column in table.items()}
        clean = torch.from_numpy(rows["clean"]).to(self.device)
        x, y, index = self.campaign.batch(rows["index"].tolist(), self.device)
        again, _ = evaluate_batch(
            self.model,
            run.attack,
            x,
            y,
            index,
            seed=campaign.seed,
            name=run.name,
            restart=run.restart,
            clean=clean,
            draws=campaign.draws,
        )
        return sanity.repeated(rows["adversarial"].tolist(), [o.adversarial for o in again], run.name)


def _radius(threat_model: ThreatModel, x: Tensor) -> float:
    """Change of one value where all values change by the same amount, on the surface of the ball."""
    size = float(x.shape[1:].numel())
    return threat_model.eps / {"linf": 1.0, "l2": math.sqrt(size)}.get(threat_model.norm, size)
