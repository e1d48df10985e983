"""All checks in their order, on the samples that they are asked of."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.norms import NORMS
from adversarial_lightning.evaluation.audit import gradient_masking, sanity, stored_rows, stronger_attacks
from adversarial_lightning.evaluation.audit.check import Check
from adversarial_lightning.evaluation.audit.other_threats import broader_threats
from adversarial_lightning.evaluation.audit.samples import Panel, undisturbed
from adversarial_lightning.evaluation.audit.substitute import imitate
from adversarial_lightning.evaluation.audit.threat_models import Claim, claims
from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, Cascade, standing
from adversarial_lightning.evaluation.outcomes.outcome import evaluate_batch

Level = Literal["brief", "quick", "full"]


def audit(
    campaign: Campaign,
    model: nn.Module,
    results: Mapping[str, Any],
    *,
    obligations: Mapping[str, bool],
    level: Level = "quick",
    rows: int = 128,
    known: Mapping[str, Check] | None = None,
    tell: Callable[[str, Check, int], None] = lambda key, check, total: None,
) -> list[Check]:
    """Every check of a finished campaign of `model` whose merged numbers are `results` (schema 2).

    `obligations` is what the defenses declare (`defenses.obligations`); `rows` are attacked at once. Checks that are
    `known` by their key are not repeated; `tell` hears of every new one, and how many there are in all. Deterministic,
    given the campaign's seed.

    quick looks at up to 64 samples that the suite left standing at each threat model, for up to 3,000 forwards and
    1,500 backwards each; full looks at up to 512, for up to 30,000 and 5,000. Gradients of stochastic models are means
    over 10 draws and cost ten times that, so a fourth of the samples is looked at. brief is for defenses that take a
    good part of a second an image: up to 32 samples (8 of stochastic models, means over 3 draws) and a tenth of the
    passes; it sees only gross failures.
    """
    found: dict[str, Check] = dict(known or {})
    inquiry = Inquiry(campaign, model, results, obligations, level, rows)
    with undisturbed(inquiry.device):
        questions = inquiry.questions()
        for key, ask in questions.items():
            if key not in found:
                torch.manual_seed(campaign.seed)  # for models that draw from torch's own generator: alike twice
                found[key] = ask()
                tell(key, found[key], len(questions))
    return [found[key] for key in questions]


@dataclass
class Inquiry:
    """What all checks share, computed when it is first needed."""

    campaign: Campaign
    model: nn.Module
    results: Mapping[str, Any]
    obligations: Mapping[str, bool]
    level: Level
    rows: int

    @property
    def budget(self) -> stronger_attacks.Budget:
        return stronger_attacks.LEVELS[self.level]

    @property
    def stochastic(self) -> bool:
        return bool(self.obligations.get("eot"))

    @cached_property
    def device(self) -> torch.device:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return next((t.device for t in tensors), torch.device("cpu"))

    @cached_property
    def tables(self) -> dict[tuple[str, int], Any]:
        campaign = self.campaign
        units = [unit for name in (CLEAN, *campaign.suite) for unit in campaign.units(name)]
        return {(unit.name, unit.restart): campaign.table(unit) for unit in units}

    @cached_property
    def cascade(self) -> Cascade:
        cascade = self.campaign.cascade(self.campaign.samples)
        for name in (CLEAN, *self.campaign.suite):
            for unit in self.campaign.units(name):
                cascade.record(unit, self.tables[unit.name, unit.restart])
        return cascade

    @cached_property
    def claims(self) -> list[Claim]:
        return claims(self.cascade, self.campaign.suite)

    def images(self, samples: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and numbers of some samples, by their numbers, on the model's device."""
        where = {sample: position for position, sample in enumerate(self.campaign.samples)}
        x, y, index = self.campaign.data.__getitems__([where[int(sample)] for sample in samples] or [-1])
        keep = index >= 0
        return x[keep].float().to(self.device), y[keep].to(self.device), index[keep].to(self.device)

    def panel(self, samples: Any, of: float) -> Panel:
        """The first of these samples that the budget allows."""
        count, averaged = (20, self.budget.averaged) if self.stochastic else (1, 1)
        most = self.budget.samples // (4 if self.stochastic else 1)  # each of them costs ten times as much
        chosen = self.images(samples[:most])
        return Panel(self.model, *chosen, self.campaign.seed, of, count, averaged, self.rows)

    @cached_property
    def right(self) -> Panel:
        """Samples that are right without an attack."""
        shares = standing(self.cascade.fates[CLEAN], self.cascade.draws)
        return self.panel(self.cascade.samples[shares >= 0.5], float(shares.mean()))

    def standing(self, claim: Claim) -> Panel:
        """Samples that stand at a threat model. Behind a stochastic defense, also when attacked once more."""
        panel = self.panel(claim.samples, claim.of)
        if not self.stochastic or not len(panel):
            return panel
        again = panel.felled(stronger_attacks.leading(panel, claim, self.budget), "again")
        return replace(panel[~again], of=claim.of * float((~again).float().mean()))

    @cached_property
    def bare(self) -> nn.Module:
        """The classifier without its purifiers and its detector; the model itself, where it has none."""
        bare = self.model
        while hasattr(bare, "classifier") and (hasattr(bare, "purifier") or hasattr(bare, "detector")):
            bare = bare.classifier  # type: ignore[assignment]
        return bare

    @cached_property
    def purifiers(self) -> list[nn.Module]:
        return [m.purifier for m in self.model.modules() if hasattr(m, "purifier") and hasattr(m, "classifier")]  # type: ignore[misc]

    @cached_property
    def classes(self) -> int:
        return int(self.right.logits(self.right.x).shape[1]) if len(self.right) else 0

    def substitutes(self, claim: Claim) -> dict[str, nn.Module]:
        """Networks whose examples may transfer: the undefended classifier, and an imitation of the model."""
        x, _, _ = self.images(self.campaign.samples[: self.budget.imitated])
        imitation = imitate(self.model, x, eps=_radius(claim, x), steps=self.budget.imitation, seed=self.campaign.seed)
        return {**({"the undefended network": self.bare} if self.purifiers else {}), "an imitation": imitation}

    def questions(self) -> dict[str, Callable[[], Check]]:
        """The checks by a key that tells them apart, in the order in which they are asked and reported."""
        campaign, declares_bpda = self.campaign, bool(self.obligations.get("bpda"))
        asked: dict[str, Callable[[], Check]] = {
            "C1": lambda: stored_rows.threat_model(campaign.suite, self.tables),
            "C2": lambda: stored_rows.clean_accuracy(self.cascade, self.tables, self.results, campaign.scored),
            "C4 recorded": lambda: stored_rows.monotone(self.results, campaign.n),
            "C10 foretold": lambda: gradient_masking.true_gradients(self.right, declares_bpda),
            "C11": lambda: stored_rows.several_draws(campaign.draws, self.stochastic),
            "C12": lambda: stored_rows.settings_stored(self.results, campaign.folder),
            "C16": self.repeated,
            "C17": lambda: broader_threats(self.right),
            "F1": lambda: gradient_masking.randomness(self.right),
            "F2": lambda: gradient_masking.output_range(self.right),
            "F5": lambda: gradient_masking.computes_at_inference(self.right, bool(self.purifiers)),
            "F6": lambda: gradient_masking.targets(campaign.suite.values(), self.classes),
        }
        for claim in self.claims:
            asked |= {f"{key} {claim.title}": ask for key, ask in self.about(claim).items()}
        return asked

    def about(self, claim: Claim) -> dict[str, Callable[[], Check]]:
        """The checks of one threat model."""
        cache: list[Panel] = []

        def panel() -> Panel:
            if not cache:
                cache.append(self.standing(claim))
            return cache[0]

        budget = self.budget
        asked: dict[str, Callable[[], Check]] = {
            "C3 recorded": lambda: stored_rows.iterative_beats_single_step(self.cascade, claim),
            "C3": lambda: stronger_attacks.single_step(panel(), claim),
            "C4": lambda: sanity.unbounded(panel(), claim, budget, self.classes),
            "C5": lambda: stronger_attacks.converged(panel(), claim, budget),
            "C6 recorded": lambda: stored_rows.gradients_beat_queries(self.cascade, claim),
            "C6": lambda: stronger_attacks.gradient_free(panel(), claim, budget),
            "C7": lambda: stronger_attacks.random_points(panel(), claim, budget),
            "C8": lambda: stronger_attacks.transferred(
                panel(), claim, budget, self.substitutes(claim) if len(panel()) else {}
            ),
            "C9": lambda: stored_rows.worst_case(self.cascade, claim, self.tables, self.results),
            "C10 declared": lambda: stored_rows.declared(claim, self.obligations, self.campaign.scored),
            "C13 active": lambda: sanity.active(self.right, claim, budget),
            "C15": lambda: stronger_attacks.tuned(panel(), claim, budget, self.classes, self.level),
            "F2": lambda: gradient_masking.saturation(panel(), claim),
            "F3": lambda: gradient_masking.zero_gradients(panel(), claim),
            "I2": lambda: gradient_masking.stable_gradients(panel(), claim, bool(self.obligations.get("bpda"))),
            "I3": lambda: gradient_masking.silent_success(panel(), claim, budget),
            "I4": lambda: gradient_masking.optimised(panel(), claim, budget),
        }
        if claim.norm not in NORMS:  # such as l0: nothing of ours attacks in that ball
            return {key: ask for key, ask in asked.items() if key.split()[-1] in ("recorded", "C9", "declared")}
        if self.purifiers:
            asked["C10 past"] = lambda: stronger_attacks.around_purifiers(panel(), claim, budget, self.purifiers)
            asked["C13 off"] = lambda: sanity.undefended(self.right, claim, budget, self.bare, self.classes)
        return asked

    def repeated(self) -> Check:
        """C16: the run of the suite that costs least, on some of its samples, once more."""
        campaign, tables = self.campaign, self.tables
        units = [u for name in campaign.suite for u in campaign.units(name) if len(tables[name, u.restart]["index"])]
        if not units:
            return sanity.repeated([], [], "any attack")
        unit = min(units, key=lambda u: float(tables[u.name, u.restart]["forwards"].mean()))
        rows = {key: column[: self.budget.repeated] for key, column in tables[unit.name, unit.restart].items()}
        clean = torch.from_numpy(rows["clean"]).to(self.device)
        again = evaluate_batch(
            *(self.model, unit.attack, *self.images(rows["index"])),
            seed=campaign.seed,
            name=unit.name,
            restart=unit.restart,
            clean=clean,
            draws=campaign.draws,
        )
        return sanity.repeated(rows["adversarial"].tolist(), [o.adversarial for o in again], unit.name)


def _radius(claim: Claim, x: Tensor) -> float:
    """The change of one value when all change alike on the surface of the ball."""
    size = float(x.shape[1:].numel())
    return claim.eps / {"linf": 1.0, "l2": math.sqrt(size)}.get(claim.norm, size)
