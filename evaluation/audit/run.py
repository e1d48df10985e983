"""Runs all checks of the audit in their order, each on its samples."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import threat
from adversarial_lightning.defenses import Purified
from adversarial_lightning.evaluation.audit import (
    detector,
    gradient_masking,
    interface,
    memory,
    sanity,
    stored_rows,
    stronger_attacks,
    surroundings,
)
from adversarial_lightning.evaluation.audit.check import Check, not_applicable
from adversarial_lightning.evaluation.audit.levels import LEVELS, Budget, Level
from adversarial_lightning.evaluation.audit.other_threats import broader_threats
from adversarial_lightning.evaluation.audit.samples import AuditSamples, undisturbed
from adversarial_lightning.evaluation.audit.substitute import imitate, inner_network
from adversarial_lightning.evaluation.audit.threat_models import (
    QUANTILES,
    ThreatModel,
    audited_threat_models,
    lengths_only,
)
from adversarial_lightning.evaluation.audit.untouched import Forgetful, Untouched, untouched_copy
from adversarial_lightning.evaluation.campaign.ledger import run_costs
from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, AttackRun, SampleStatus, robust_share
from adversarial_lightning.evaluation.campaign.unions import balls
from adversarial_lightning.evaluation.outcomes.model_error import raised_by
from adversarial_lightning.evaluation.outcomes.outcome import evaluate_batch
from adversarial_lightning.evaluation.outcomes.subset import random_numbers
from adversarial_lightning.networks.eval_mode import device_of

Checks = dict[str, Callable[[], Check]]
_LONGEST = 400  # most passes a sample of a run that is repeated on copies


def audit(
    campaign: Campaign,
    model: nn.Module,
    results: Mapping[str, Any],
    *,
    required_adaptations: Mapping[str, bool],
    level: Level = "quick",
    rows: int = 128,
    untouched: Untouched | None = None,
) -> list[Check]:
    """Run every check on a finished campaign of `model` whose merged numbers are `results` (schema 3).

    `required_adaptations` is what the defenses declare; `rows` are attacked at once. `untouched` is the model before
    its first forward; without it, the model as it is now. Deterministic,
    given the seed of the campaign. A check that raises becomes a finding in the words of the exception.

    quick attacks up to 64 robust samples of each claim, with up to 3,000 forwards and 1,500 backwards each; full
    attacks up to 512, with up to 30,000 and 5,000. Gradients of stochastic models are means
    over 10 draws and cost ten times that, so only a fourth of the samples is attacked. brief is for defenses that take
    a good part of a second for each image: up to 32 samples (8 of stochastic models, means over 3 draws) and a tenth
    of the passes; it finds only gross failures.
    """
    return AuditRun(campaign, model, results, required_adaptations, level, rows, untouched=untouched).answers()


@dataclass
class AuditRun:
    """Lazily computed inputs of the checks; `found` holds the answers so far by key, which are not asked again."""

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

    def answers(self, tell: Callable[[int], None] = lambda total: None) -> list[Check]:
        """Answers of all checks; `tell` is called after every new one with the number of all."""
        with undisturbed(self.device):
            checks = self.checks()
            for key, check in checks.items():
                if key not in self.found:
                    torch.manual_seed(self.campaign.seed)  # for models that draw from torch's own generator
                    self.found[key] = self.answered(key, check)
                    tell(len(checks))
        return [self.found[key] for key in checks]

    def answered(self, key: str, check: Callable[[], Check]) -> Check:
        """Answer of a check, or the finding that it could not be asked."""
        try:
            return check()
        except Exception as error:
            own, words = raised_by(self.model, error), f"{type(error).__name__}: {error}".rstrip(". ")
            return Check(
                id=key.split()[0],
                name=f"the question can be asked, {key}",
                verdict="failed" if own else "not shown",
                sentence=f"{'The model' if own else 'The check'} raised an error ({words}).",
            )

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
    def shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of an image."""
        return tuple(self.campaign.batch(self.campaign.samples[:1], self.device)[0].shape[1:])

    @cached_property
    def audited_threat_models(self) -> list[ThreatModel]:
        quantiles = tuple(QUANTILES) if self.level == "full" else (0.5,)
        return audited_threat_models(self.status, self.campaign.suite, self.shape, quantiles)

    def samples(self, samples: Any, of: float) -> AuditSamples:
        """A random subset of these samples, as many as the budget allows."""
        count, averaged = (20, self.budget.averaged) if self.stochastic else (1, 1)
        most = self.budget.samples // (4 if self.stochastic else 1)  # each of them costs ten times as much
        chosen = self.campaign.batch(random_numbers(samples, most, self.campaign.sample_seed), self.device)
        return AuditSamples(
            self.model,
            *chosen,
            self.campaign.seed,
            of,
            count,
            averaged,
            self.rows,
            self.budget.excludes,
            self.forgetful,
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
            self.model, x, eps=_radius(threat_model, x), steps=self.budget.imitation, seed=self.campaign.seed
        )
        inner = self.bare if self.purifiers else self.inner
        undefended = {"the undefended network": inner} if inner is not None else {}
        return undefended | {"an imitation": imitation}

    def checks(self) -> Checks:
        """Checks by a unique key, in the order in which they run and are reported."""
        campaign, declares_bpda, excludes = self.campaign, self.declares_bpda, self.budget.excludes
        checks: Checks = {
            "C1": lambda: stored_rows.threat_model(campaign.suite, self.tables),
            "C2": lambda: stored_rows.clean_accuracy(self.status, self.tables, self.results, campaign.scored),
            "C4 recorded": lambda: stored_rows.monotone(self.results, campaign.n, excludes),
            "C10 predicted": lambda: gradient_masking.true_gradients(self.right, declares_bpda),
            "C11": lambda: stored_rows.several_draws(campaign.draws, self.stochastic),
            "C12": lambda: stored_rows.settings_stored(self.results, campaign.folder),
            "C16": self.repeated,
            "C17": lambda: broader_threats(self.right),
            "F1": lambda: interface.randomness(self.right),
            "F1 attacks": lambda: stored_rows.attacks_draw(campaign.suite, self.drawn),
            "F2": lambda: interface.output_range(self.right),
            "F5": lambda: interface.computes_at_inference(self.right, bool(self.purifiers)),
            "F6": lambda: interface.targets(campaign.suite.values(), self.classes),
        }
        if self.audited_threat_models:
            checks |= self.about_memory(self.audited_threat_models[0])
        for threat_model in self.audited_threat_models:
            checks |= {f"{key} {threat_model.title}": check for key, check in self.about(threat_model).items()}
            if campaign.scored and threat_model.quantile is None:
                checks |= self.about_detector(threat_model)
        return checks | self.not_asked()

    @property
    def declares_bpda(self) -> bool:
        return bool(self.required_adaptations.get("bpda"))

    def about(self, threat_model: ThreatModel) -> Checks:
        """Checks of one claim by key."""
        cache: list[AuditSamples] = []

        def samples() -> AuditSamples:
            if not cache:
                cache.append(self.still_robust(threat_model))
            return cache[0]

        budget, status = self.budget, self.status
        past = "C10 past", "gradients past the defense find no more", 0.005
        off = "C13 off", "the attack works without the defense", 0.01

        def without_purifier(key: str, name: str, limit: float) -> Check:
            why = "The model has no purifier that gradients could leave out."
            return not_applicable(id=key.split()[0], name=f"{name}, {threat_model.title}", limit=limit, why=why)

        return {
            "C3 recorded": lambda: stored_rows.iterative_beats_single_step(status, threat_model, budget.excludes),
            "C3": lambda: stronger_attacks.single_step(samples(), threat_model),
            "C4": lambda: sanity.unbounded(samples(), threat_model, budget, self.classes),
            "C5": lambda: stronger_attacks.converged(samples(), threat_model, budget),
            "C6 recorded": lambda: stored_rows.gradients_beat_queries(status, threat_model, budget.excludes),
            "C6": lambda: stronger_attacks.gradient_free(samples(), threat_model, budget),
            "C7": lambda: stronger_attacks.random_points(samples(), threat_model, budget),
            "C8": lambda: stronger_attacks.transferred(
                samples(), threat_model, budget, self.substitutes(threat_model) if len(samples()) else {}
            ),
            "C9": lambda: stored_rows.worst_case(status, threat_model, self.tables, self.results),
            "C10 declared": lambda: stored_rows.declared(threat_model, self.required_adaptations, self.campaign.scored),
            "C13 active": lambda: sanity.active(self.right, threat_model, budget),
            "C15": lambda: stronger_attacks.tuned(samples(), threat_model, budget, self.classes, self.level),
            "M3": lambda: self.of_copies(
                "M3", lambda: memory.without_memory(samples(), threat_model, budget), samples()
            ),
            "F2": lambda: gradient_masking.saturation(samples(), threat_model),
            "F3": lambda: gradient_masking.zero_gradients(samples(), threat_model),
            "I2": lambda: gradient_masking.stable_gradients(samples(), threat_model, self.declares_bpda),
            "I3": lambda: gradient_masking.silent_success(samples(), threat_model, budget),
            "I4": lambda: gradient_masking.optimised(samples(), threat_model, budget),
            "C10 past": lambda: (
                stronger_attacks.around_purifiers(samples(), threat_model, budget, self.purifiers)
                if self.purifiers
                else without_purifier(*past)
            ),
            "C13 off": lambda: (
                sanity.undefended(self.right, threat_model, budget, self.bare, self.classes)
                if self.purifiers
                else without_purifier(*off)
            ),
            "A1": lambda: stronger_attacks.altogether(samples(), threat_model, self.found_about(threat_model)),
        }

    def about_memory(self, threat_model: ThreatModel) -> Checks:
        """Checks of what the model remembers and sees of its surroundings, with points of one claim's ball."""
        return {
            "M1": lambda: self.of_copies(
                "M1", lambda: memory.same_answers(self.right, threat_model, self.budget, self.copies), self.right
            ),
            "M2": lambda: self.of_copies("M2", self.repeated_on_copies, self.right),
            "M4": lambda: self.of_copies(
                "M4", lambda: surroundings.same_elsewhere(self.right, threat_model), self.right
            ),
        }

    def about_detector(self, threat_model: ThreatModel) -> Checks:
        """Checks of what classifier and detector hold together; no part of the claim on the classifier."""

        @cache
        def evaded() -> tuple[Check, detector.Evasion | None]:
            theta: float = self.model.detector.theta  # type: ignore[union-attr,assignment]
            numbers = detector.held(self.tables, threat_model, theta)
            samples = self.samples(numbers, len(numbers) / self.campaign.n)
            return detector.got_past(samples, threat_model, theta, self.budget)

        where = f"{threat_model.title} with the detector"
        return {
            f"D2 {where}": lambda: evaded()[0],
            f"D1 {where}": lambda: detector.slopes(evaded()[1], threat_model),
        }

    def found_about(self, threat_model: ThreatModel) -> dict[str, Check]:
        """Answers so far of the checks of one claim, without the sum of them, A1."""
        end = f" {threat_model.title}"
        return {key: c for key, c in self.found.items() if key.endswith(end) and not key.startswith("A1")}

    def not_asked(self) -> Checks:
        """A check for each entry of the suite whose claim no experiment can examine, and why."""
        audited = {name for threat_model in self.audited_threat_models for name in threat_model.attacks}
        without = {name for names in lengths_only(self.campaign.suite).values() for name in names}
        found: Checks = {}
        for name, attack in self.campaign.suite.items():
            norm, eps = threat(attack)
            if attack.kind == "corruption":
                why = (
                    "Noise that is the same for every model has no ball to search: its accuracy is no robust accuracy."
                )
            elif balls(attack):
                continue
            elif norm is None or (eps is None and attack.kind == "budget"):
                why = "The attack names no norm or no radius: no experiment can search its ball."
            elif eps is None and name in without - audited:
                why = "No sample is right without an attack, or all lengths are 0: there are no lengths to shorten."
            elif eps is None and name not in without:
                why = f"Its lengths are examined only at the radius that the suite has in {norm}."
            else:
                continue
            found[f"A2 {name}"] = lambda name=name, why=why: not_applicable(  # type: ignore[misc]
                id="A2", name=f"the claim of {name} is examined", why=why
            )
        return found

    def of_copies(self, key: str, ask: Callable[[], Check], samples: AuditSamples) -> Check:
        """Answer of a check of some `samples` that needs copies of the model."""
        if self.forgetful is not None or not len(samples):
            return ask()
        why = "The model cannot be copied (copy.deepcopy raises an error), so whether it has a memory is not known."
        return Check(id=key, name=f"the question can be asked, {key}", verdict="not shown", sentence=why)

    def runs(self) -> dict[AttackRun, float]:
        """Runs of the suite that have rows, with the passes that a sample cost, ascending in these."""
        runs = [run for name in self.campaign.suite for run in self.campaign.runs(name)]
        tables = {run: self.tables[run.name, run.restart] for run in runs}
        cost = {run: float((t["forwards"] + t["backwards"]).mean()) for run, t in tables.items() if len(t["index"])}
        return dict(sorted(cost.items(), key=lambda item: item[1]))

    def repeated(self) -> Check:
        """C16: repeat the cheapest run of the suite, of an attack if it has one, on some of its samples."""
        runs = list(self.runs())
        runs = [run for run in runs if run.attack is not None and run.attack.kind != "corruption"] or runs
        if not runs:
            return sanity.repeated([], [], "any attack", 1.0, self.budget.excludes)
        stored, now, of = self.run_again(runs[0], self.model)
        return sanity.repeated(stored, now, runs[0].name, of, self.budget.excludes)

    def repeated_on_copies(self) -> Check:
        """M2: the successes and failures of the suite's longest run that is not too long, on copies."""
        runs = [run for run, passes in self.runs().items() if passes <= _LONGEST]
        if not runs:
            why = f"Every run of the suite takes more than {_LONGEST} passes."
            return not_applicable(id="M2", name=memory.OUTCOMES, why=why)
        stored, now, of = self.run_again(runs[-1], self.forgetful)
        return memory.same_outcomes(stored, now, runs[-1].name, self.copies, of, self.budget.excludes)

    def run_again(self, run: AttackRun, model: nn.Module | None) -> tuple[list[int], list[int], float]:
        """Predictions under a run of the suite, as stored and as `model` gives them now; the share of its samples."""
        campaign, table = self.campaign, self.tables[run.name, run.restart]
        few = random_numbers(table["index"], self.budget.repeated, campaign.sample_seed)
        rows = {key: column[np.isin(table["index"], few)] for key, column in table.items()}
        clean = torch.from_numpy(rows["clean"]).to(self.device)
        x, y, index = self.campaign.batch(rows["index"].tolist(), self.device)
        again, _ = evaluate_batch(
            model or self.model,
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
        of = len(table["index"]) / campaign.n
        return rows["adversarial"].tolist(), [o.adversarial for o in again], of


def _radius(threat_model: ThreatModel, x: Tensor) -> float:
    """Change of one value where all values change by the same amount, on the surface of the ball; in l0 any change."""
    size = float(x.shape[1:].numel())
    if threat_model.norm == "l0":
        return 0.5
    return threat_model.eps / {"linf": 1.0, "l2": math.sqrt(size)}.get(threat_model.norm, size)
