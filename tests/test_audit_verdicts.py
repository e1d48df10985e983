"""What a check may say, what checks say together, and what a suite's number may be called."""

import random
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures.false_defenses import EPS, honest
from test_audit import AttackContext, evaluated, ids
from torch import Tensor, nn

from adversarial_lightning.attacks import (
    APGD,
    CW,
    FGSM,
    FMN,
    JSMA,
    PGD,
    Attack,
    AutoAttack,
    DeepFool,
    GaussianNoise,
    Noise,
    SaltAndPepperSearch,
    Square,
    Targeted,
    Within,
)
from adversarial_lightning.defenses import Median, Purified, required_adaptations
from adversarial_lightning.evaluation.audit.check import Check, share_check, state
from adversarial_lightning.evaluation.audit.headline import summary
from adversarial_lightning.evaluation.audit.levels import LEVELS
from adversarial_lightning.evaluation.audit.own_attacks import SparseAscent, SparseSearch, random_point
from adversarial_lightning.evaluation.audit.run import AuditRun
from adversarial_lightning.evaluation.campaign.merge import merge, reasons_for_no_headline
from adversarial_lightning.evaluation.campaign.sample_status import in_whole_ball
from adversarial_lightning.evaluation.outcomes.claims import ROBUST, claim
from adversarial_lightning.evaluation.report import write_report
from adversarial_lightning.evaluation.report.after_audit import audit_state, audit_words, headline_share

# broken, examined, share of all samples that these represent, limit, what the level excludes -> verdict
VERDICTS: dict[tuple[int, int, float, float, float], str] = {
    (0, 64, 1.0, 0.002, 0.07): "passed",
    (0, 63, 1.0, 0.002, 0.07): "not shown",
    (0, 63, 0.9, 0.002, 0.07): "passed",
    (0, 32, 1.0, 0.002, 0.14): "passed",
    (0, 512, 1.0, 0.002, 0.01): "passed",
    (0, 64, 1.0, 0.002, 0.01): "not shown",
    (1, 64, 1.0, 0.01, 0.07): "not shown",  # the figure is above the limit
    (3, 64, 1.0, 0.01, 0.07): "not shown",
    (4, 64, 1.0, 0.01, 0.07): "failed",
    (3, 64, 1.0, 0.002, 0.07): "failed",
    (0, 1, 1.0, 0.25, 0.07): "not shown",  # one sample passes nothing
    (1, 1, 1.0, 0.25, 0.07): "not shown",
    (0, 0, 1.0, 0.25, 0.07): "not applicable",
}


@pytest.mark.parametrize("case", VERDICTS)
def test_a_check_passes_only_where_it_shows_something(case: tuple[int, int, float, float, float]) -> None:
    k, n, of, limit, excludes = case
    found = share_check(
        id="C6", name="", k=k, n=n, of=of, limit=limit, excludes=excludes, what="points", sentence="Said", bad="bad"
    )
    assert found.verdict == VERDICTS[case]
    if found.verdict == "passed":
        assert found.bound is not None and found.bound <= excludes
        assert f"at most {100 * found.bound:.1f} points could be missed." in found.sentence
    if found.verdict == "not shown":
        assert re.search(r"about [\d,]+ samples would settle it", found.sentence)
    assert ("bad" in found.sentence) == (found.verdict == "failed")


def of(id: str, verdict: Any, sentence: str = "", name: str = "") -> Check:
    return Check(id=id, name=name, verdict=verdict, sentence=sentence)


NONE = "No sample is left to check."
STATES: dict[str, tuple[list[Check], str]] = {
    "passed": ([of("C6", "passed"), of("C17", "for information"), of("C13", "not applicable")], "passed"),
    "not shown": ([of("C6", "passed"), of("C8", "not shown")], "not shown"),
    "how it is reported": ([of("C6", "passed"), of("C16", "not shown")], "passed"),
    "failed": ([of("C6", "passed"), of("C12", "failed")], "failed"),
    "no experiment": ([of("C1", "passed"), of("C6", "passed", name="recorded gradient attacks")], "not audited"),
    "nothing robust": ([of("C1", "passed"), of("C6", "not applicable", NONE)], "nothing to audit"),
}


@pytest.mark.parametrize("case", STATES)
def test_checks_pass_together_only_where_each_that_matters_passed(case: str) -> None:
    checks, expected = STATES[case]
    assert state(checks) == expected


WORDS = {
    ("passed", 0.069): "audit passed (level quick; at most 6.9 points could be missed)",
    (
        "not shown",
        0.118,
    ): "audit neither passed nor failed (level quick; at most 11.8 points could be missed), not shown: C6 queries",
    ("failed", 0.9): "audit failed: C5 steps",
    ("not audited", None): "not audited",
    ("nothing to audit", None): "nothing to audit: no sample is robust",
}


@pytest.mark.parametrize("case", WORDS)
def test_a_badge_names_level_and_bound(case: tuple[str, float | None]) -> None:
    checks = [
        {"id": "C5", "name": "steps", "verdict": "failed"},
        {"id": "C6", "name": "queries", "verdict": "not shown"},
    ]
    audit = {"level": "quick", "checks": checks, "state": case[0], "bound": case[1], "claims": []}
    assert audit_words(audit) == WORDS[case] and audit_state(audit) == case[0]
    assert audit_state({"level": "quick", "checks": [{"verdict": "pass"}]}) == "not shown"  # of version 0.1
    assert audit_state({"level": "quick", "checks": [{"verdict": "fail"}]}) == "failed"


# --- what a number is called ------------------------------------------------------------------------------------------

GRADIENTS: dict[str, Attack] = {"pgd": PGD(eps=0.1), "apgd": APGD(eps=0.1, loss="margin")}
CLAIMS: dict[str, tuple[str, dict[str, Attack], str]] = {
    "two objectives, queries": ("linf", {**GRADIENTS, "square": Square(eps=0.1)}, ROBUST),
    "AutoAttack": ("linf", {"aa": AutoAttack(eps=0.1)}, ROBUST),
    "AutoAttack in l2": ("l2", {"aa": AutoAttack(norm="l2", eps=0.5)}, ROBUST),
    "no queries": ("linf", GRADIENTS, "accuracy under pgd and apgd"),
    "one objective": ("linf", {"pgd": PGD(), "square": Square()}, "accuracy under pgd and square"),
    "PGD alone": ("linf", {"pgd": PGD()}, "accuracy under pgd"),
    "l2 without a minimum-norm attack": (
        "l2",
        {"a": APGD("l2"), "b": APGD("l2", loss="dlr"), "c": Square("l2")},
        "accuracy under a, b and c",
    ),
    "l2 with one": ("l2", {"a": APGD("l2"), "b": Within(FMN("l2"), 0.5), "c": Square("l2")}, ROBUST),
    "many": ("linf", {str(i): PGD() for i in range(9)}, "accuracy under 9 attacks"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_robust_accuracy_takes_two_objectives_and_an_attack_without_gradients(case: str) -> None:
    norm, suite, expected = CLAIMS[case]
    assert claim(norm, suite) == expected


def test_attacks_in_a_smaller_ball_do_not_speak_for_the_whole(tmp_path: Path) -> None:
    """Neither for its name, nor for averaging over draws; their successes count."""
    suite: dict[str, Attack] = {"aa": AutoAttack(eps=0.05), "fgsm": FGSM(eps=0.1), "near": DeepFool(norm="linf")}
    assert list(in_whole_ball(suite, list(suite), 0.1)) == ["fgsm", "near"]
    averaged: dict[str, Attack] = {"small": PGD(eps=0.05, eot_samples=10), "large": PGD(eps=0.1)}
    assert list(reasons_for_no_headline(averaged, {"eot": True})) == [(("linf", 0.1),)]


# --- every norm, and lengths ------------------------------------------------------------------------------------------


def constant_steps(network: nn.Module, x: Tensor) -> Tensor:
    logits = network(x)
    return (logits / 5).round() * 5 + 1e-6 * logits.detach()


def one_hot(network: nn.Module, x: Tensor) -> Tensor:
    logits = network(x)
    return 10 * F.one_hot(logits.argmax(1), 10).float() + 0 * logits


def saturated(network: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = 10 * (50 * network(x)).tanh()
    return logits


OTHER_SUITES: dict[str, dict[str, Attack]] = {
    "l0": {"jsma": Within(JSMA(), 10)},
    "l0 lengths": {"jsma": JSMA(), "salt and pepper": SaltAndPepperSearch(queries=60)},
    "linf lengths": {"fmn": FMN("linf", 30), "deepfool": DeepFool("linf")},
    "l2 lengths": {"fmn": FMN("l2", 30)},
    "l1 lengths": {"fmn": FMN("l1", 30)},
    "l2": {"pgd": PGD("l2", 1.5, 20)},
    "l1": {"apgd": APGD("l1", 6.0, 20)},
}
CAUGHT = {"C5", "C6", "C7", "C8", "C15"}


@pytest.mark.long
@pytest.mark.parametrize("suite", OTHER_SUITES)
@pytest.mark.parametrize("forward", [constant_steps, one_hot, saturated])
def test_a_false_defense_is_flagged_in_every_norm_and_by_its_lengths(suite: str, forward: Any, tmp_path: Path) -> None:
    audit_run = asked(AttackContext(forward).eval(), OTHER_SUITES[suite], tmp_path, n=40)
    checks = audit_run.answers()
    assert ids(checks) & (CAUGHT | {"F3"})
    found = summary(audit_run, checks)
    assert found["state"] == "failed" and all(c["at_most"] < c["robust_accuracy"] for c in found["claims"])


def asked(model: nn.Module, suite: dict[str, Attack], folder: Path, n: int = 64) -> AuditRun:
    campaign = evaluated(model, suite, folder, n)
    return AuditRun(campaign, model, merge(campaign), required_adaptations(model), "quick", 64)


def test_what_cannot_be_examined_is_listed_with_its_reason(tmp_path: Path) -> None:
    suite: dict[str, Attack] = {
        "noise": GaussianNoise(0.1),
        "pgd": PGD(eps=0.1, steps=2),
        "fmn": FMN("linf", 5),
        "cw": CW(steps=3, search_steps=1),
    }
    audit_run = asked(honest("standard"), suite, tmp_path, n=20)
    assert [(t.norm, t.quantile) for t in audit_run.audited_threat_models] == [("linf", None), ("l2", 0.5)]
    listed = {key: check().sentence for key, check in audit_run.not_asked().items()}
    assert set(listed) == {"A2 noise", "A2 fmn"} and "at the radius that the suite has" in listed["A2 fmn"]


def test_attacks_of_the_audit_stay_in_the_l0_ball() -> None:
    x = Noise.keyed(0, torch.arange(8)).uniform(torch.zeros(8, 1, 8, 8))
    model, y, noise = honest("standard"), torch.arange(8), Noise.keyed(1, torch.arange(8))
    for attack in (SparseAscent(5, 10), SparseAscent(5, 1, step_size=1e6), SparseSearch(5, 30)):
        z = attack(model, x, y, noise)
        assert ((z != x).flatten(1).sum(1) <= 5).all() and (z != x).any() and z.min() >= 0 and z.max() <= 1
    assert ((random_point("l0", x, 5, noise, surface=True) != x).flatten(1).sum(1) == 5).all()


# --- nothing ends without a report ------------------------------------------------------------------------------------


class Tenth(nn.Module):
    """Raises in the tenth batch that it sees after it was armed."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.seen = honest("standard"), -1_000

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        if self.seen >= 10:
            raise ArithmeticError("no more")
        logits: Tensor = self.network(x)
        return logits


def purified_by_gradients(network: nn.Module, x: Tensor) -> Tensor:
    step = torch.func.grad(lambda z: -torch.logsumexp(network(z), 1).sum())(x.detach())
    logits: Tensor = network(x - 0.03 * step.sign())
    return logits


def graph_of_its_own(network: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        logits: Tensor = network(x.detach().requires_grad_())
    return logits


@pytest.mark.parametrize(
    "case", ["raises in the tenth batch", "torch.func", "a graph that does not begin at the image"]
)
def test_a_model_that_cannot_be_asked_is_a_finding(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = {"samples": 8, "steps": 4, "queries": 20, "points": 10, "imitation": 5, "imitated": 64}
    monkeypatch.setitem(LEVELS, "quick", replace(LEVELS["quick"], **fewer))
    model: nn.Module = Tenth()
    if case != "raises in the tenth batch":
        model = AttackContext(purified_by_gradients if case == "torch.func" else graph_of_its_own)
    audit_run = asked(model.eval(), {"square": Square(eps=0.01, queries=2)}, tmp_path, n=20)
    if isinstance(model, Tenth):
        model.seen = 0
    checks = audit_run.answers()
    sentences = [check.sentence for check in checks if check.verdict == "failed"]
    if isinstance(model, Tenth):
        assert any("The model raised an error (ArithmeticError: no more)." in sentence for sentence in sentences)
    else:
        assert {"torch.func": "F5"}.get(case, "C10") in ids(checks)
        assert not any("raised" in check.sentence for check in checks), [c for c in checks if "raised" in c.sentence]
    found = summary(audit_run, checks)
    assert found["state"] == "failed"
    write_report(
        audit_run.campaign,
        dict(audit_run.results),
        **{"checkpoint": {"path": "a", "sha256": ""}, "data": {}, "defenses": [], "command": "", "model": model},
        required_adaptations={},
        audit={"level": "quick", "checks": [asdict(check) for check in checks], **found},
    )
    for name in ("results.json", "report.md", "report.html"):
        assert "failed" in (tmp_path / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("forward", [graph_of_its_own, lambda network, x: network(x.detach()).detach()])
@pytest.mark.parametrize("attack", [FGSM(eps=0.1), APGD(eps=0.1, steps=3), FMN("l2", 3)])
def test_a_model_without_gradients_is_evaluated_and_flagged(attack: Attack, forward: Any, tmp_path: Path) -> None:
    audit_run = asked(AttackContext(forward).eval(), {"attack": attack}, tmp_path, n=20)
    assert audit_run.status.bits["attack"].all()
    assert audit_run.checks()["C10 predicted"]().verdict == "failed"


@dataclass(frozen=True)
class Careless(Attack):
    """Draws from one of the global generators."""

    source: str
    norm: str = "linf"
    eps: float = 0.1

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        draw = {"torch": torch.rand_like, "numpy": lambda x: np.random.rand(), "python": lambda x: random.random()}
        return x + 0.1 * draw[self.source](x)


@pytest.mark.parametrize("source", ["torch", "numpy", "python"])
def test_an_attack_that_draws_from_a_global_generator_is_found(source: str, tmp_path: Path) -> None:
    suite: dict[str, Attack] = {"pgd": PGD(steps=2), "square": Square(queries=3), "careless": Careless(source)}
    found = asked(honest("standard"), suite, tmp_path, n=10).checks()["F1 attacks"]()
    assert found.verdict == "failed" and "careless" in found.sentence and "pgd" not in found.sentence
    del suite["careless"]
    assert asked(honest("standard"), suite, tmp_path / "other", n=10).checks()["F1 attacks"]().verdict == "passed"


# --- honest models are not alarmed ------------------------------------------------------------------------------------


class Halved(nn.Module):
    """The network in bfloat16."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = type(network)(10, 64, [128]).bfloat16()
        self.network.load_state_dict(network.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.bfloat16())
        return logits.float()


def said(forward: Any) -> nn.Module:
    model = AttackContext(forward)
    model.network = honest("PGD-AT")
    return model


UNUSUAL: dict[str, Any] = {
    "nearly constant": lambda: said(lambda net, x: 1e-4 * net(x) + 2 * F.one_hot(torch.tensor(3), 10)),
    "log-softmax": lambda: said(lambda net, x: net(x).log_softmax(1)),
    "tiny logits": lambda: said(lambda net, x: 1e-25 * net(x)),
    "huge logits": lambda: said(lambda net, x: 1e4 * net(x)),
    "percentages": lambda: said(lambda net, x: 100 * net(x).softmax(1)),
    "bfloat16": lambda: Halved(honest("PGD-AT")),
    "a median filter": lambda: Purified(honest("PGD-AT"), Median(size=3)),
}
FAIR: dict[str, Attack] = {
    "pgd": PGD(eps=EPS, steps=40),
    "apgd": APGD(eps=EPS, steps=60, loss="margin"),
    "targeted": Targeted(APGD(eps=EPS, steps=30, loss="margin", targeted=True)),
    "square": Square(eps=EPS, queries=300),
}


@pytest.mark.long
@pytest.mark.parametrize("case", UNUSUAL)
def test_an_unusual_honest_model_is_not_alarmed(case: str, tmp_path: Path) -> None:
    model = UNUSUAL[case]().eval()
    checks = asked(model, FAIR, tmp_path).answers()
    assert not ids(checks), [check.sentence for check in checks if check.verdict == "failed"]
    if case == "percentages":
        assert any("percentages" in check.sentence and check.id == "F2" for check in checks)


# --- the headline -----------------------------------------------------------------------------------------------------


def test_samples_that_any_check_broke_are_taken_out_of_the_headline(tmp_path: Path) -> None:
    weak: dict[str, Attack] = {"fgsm": FGSM(eps=0.1)}
    audit_run = asked(honest("standard"), weak, tmp_path, n=64)
    checks = audit_run.answers()
    (found,) = summary(audit_run, checks)["claims"]
    union = {number for check in checks for number in check.broken}
    assert found["broken"] == sorted(union) and 0 < len(union) <= found["examined"]
    assert max(len(check.broken) for check in checks if check.id != "A1") <= len(union)
    assert found["at_most"] == pytest.approx(found["robust_accuracy"] - len(union) / 64)
    low, high = found["interval"]
    assert low <= found["estimate"] <= found["at_most"] and high <= found["robust_accuracy"]
    case = {"norm": "linf", "eps": 0.1, "robust_accuracy": 0.453, "at_most": 0.422, "claim": ROBUST, "attacks": ["a"]}
    assert headline_share(case, 64, " at linf 0.1") == "45 % robust accuracy at linf 0.1"
    broken = headline_share({**case, "broken_by_audit": 2, "examined_by_audit": 29}, 64, " at linf 0.1")
    assert broken == "at most 42 % robust accuracy at linf 0.1, 45 % before the audit broke 2 of 29 robust samples"
