"""Runs all checks of the audit in their order, each on its samples."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from adversarial_lightning.attacks import threat
from adversarial_lightning.evaluation.audit.check import Check
from adversarial_lightning.evaluation.audit.inputs import Inputs
from adversarial_lightning.evaluation.audit.levels import Level
from adversarial_lightning.evaluation.audit.questions import CANNOT_ASK, CLAIM, DETECTOR, MEMORY, MODEL, Question
from adversarial_lightning.evaluation.audit.samples import undisturbed
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel, lengths_only
from adversarial_lightning.evaluation.audit.untouched import Untouched
from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.unions import balls
from adversarial_lightning.evaluation.outcomes.model_error import raised_by

Checks = dict[str, Callable[[], Check]]


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


class AuditRun(Inputs):
    """Answers to all checks; those in `found` are not asked again."""

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
                name=CANNOT_ASK + key,
                verdict="failed" if own else "not shown",
                sentence=f"{'The model' if own else 'The check'} raised an error ({words}).",
            )

    def checks(self) -> Checks:
        """Checks by a unique key, in the order in which they run and are reported."""
        claims, checks = self.audited_threat_models, self._asked(MODEL)
        if claims:
            checks |= self._asked(MEMORY, claims[0])
        for claim in claims:
            checks |= self._asked(CLAIM, claim, f" {claim.title}")
            if self.campaign.scored and claim.quantile is None:
                checks |= self._asked(DETECTOR, claim, f" {claim.title} with the detector")
        return checks | self.not_asked()

    def _asked(self, questions: Iterable[Question], claim: ThreatModel | None = None, where: str = "") -> Checks:
        """Questions by key, which `where` ends."""
        return {q.key + where: partial(q.check, self, claim, where) for q in questions}

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
            name_of_check = f"the claim of {name} is examined"
            found[f"A2 {name}"] = partial(Check, id="A2", name=name_of_check, verdict="not applicable", sentence=why)
        return found
