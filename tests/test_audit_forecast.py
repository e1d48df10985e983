"""What an audit says beforehand that it will cost."""

import re
from pathlib import Path

import pytest
from fixtures.false_defenses import honest
from test_audit import evaluated

from adversarial_lightning.attacks import APGD, PGD, Attack, Square
from adversarial_lightning.evaluation.audit import untouched_copy
from adversarial_lightning.evaluation.audit.cache import forecast
from adversarial_lightning.evaluation.audit.run import AuditRun
from adversarial_lightning.evaluation.campaign.merge import merge
from adversarial_lightning.evaluation.outcomes.outcome import counting

SUITES: dict[str, dict[str, Attack]] = {
    "short": {"pgd": PGD(eps=0.1, steps=10), "square": Square(eps=0.1, queries=100)},
    "long": {"pgd": PGD(eps=0.1, steps=20), "apgd": APGD(eps=0.1, steps=150, loss="margin")},
}


@pytest.mark.long
@pytest.mark.parametrize("level", ["brief", "quick"])
@pytest.mark.parametrize("suite", SUITES)
def test_the_forecast_is_right_within_a_factor_of_one_and_a_half(suite: str, level: str, tmp_path: Path) -> None:
    model = honest("PGD-AT")
    untouched = untouched_copy(model)
    assert untouched is not None
    campaign = evaluated(model, SUITES[suite], tmp_path, n=110)
    run = AuditRun(campaign, model, merge(campaign), {}, level, 128, untouched=untouched)  # type: ignore[arg-type]
    said = re.search(r"about ([\d,]+) forward and ([\d,]+) backward passes for each of (\d+) ", forecast(run))
    assert said is not None
    told = [int(number.replace(",", "")) for number in said.groups()]
    with counting(model) as passes, counting(untouched.model) as others:
        run.answers()
    assert told[2] == {"brief": 32, "quick": 64}[level]
    for spent, each in zip(
        (passes.forwards + others.forwards, passes.backwards + others.backwards), told, strict=False
    ):
        assert 1 / 1.5 < spent / told[2] / each < 1.5, (spent / told[2], each)
