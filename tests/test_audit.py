"""The audit flags every false defense and no honest model, says the same twice, and leaves the model alone."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.false_defenses import EPS, FALSE, HONEST, NAIVE, SUITE, RandomRipples, false_defense, honest, images
from helpers import save
from scipy.stats import binomtest
from torch import Tensor, nn

from adversarial_lightning.attacks import (
    APGD,
    FGSM,
    JSMA,
    PGD,
    Attack,
    AutoAttack,
    DetectorAwareAPGD,
    DetectorAwarePGD,
    Joint,
    Noise,
    Square,
    Within,
)
from adversarial_lightning.cli import evaluate
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.defenses import MeanFilter, Purified, Purifier, RandomQuantizer, required_adaptations
from adversarial_lightning.evaluation import Campaign, run_campaign
from adversarial_lightning.evaluation.audit import Check, audit, cached_audit, failed
from adversarial_lightning.evaluation.audit.check import lower_confidence_bound
from adversarial_lightning.evaluation.audit.gradient_masking import stable_gradients
from adversarial_lightning.evaluation.audit.levels import LEVELS
from adversarial_lightning.evaluation.audit.run import AuditRun
from adversarial_lightning.evaluation.audit.samples import AuditSamples, undisturbed
from adversarial_lightning.evaluation.audit.stored_rows import declared
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel
from adversarial_lightning.evaluation.campaign.identity import claim_folder, suite_part
from adversarial_lightning.evaluation.campaign.merge import merge
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, SampleStatus
from adversarial_lightning.evaluation.campaign.unions import threat_of
from adversarial_lightning.evaluation.outcomes.outcome import counting


def evaluated(model: nn.Module, suite: dict[str, Attack], folder: Path, n: int = 120, draws: int = 1) -> Campaign:
    """A finished campaign."""
    identity = claim_folder(folder, {"suite": suite_part(suite)})
    campaign = Campaign(suite, Digits(size=8).dataset("test"), n, 0, folder, identity, draws=draws)
    run_campaign(campaign, model, batch_size=n)
    return campaign


def checks_of(model: nn.Module, suite: dict[str, Attack], folder: Path, n: int = 120, draws: int = 1) -> list[Check]:
    campaign = evaluated(model, suite, folder, n, draws)
    return audit(campaign, model, merge(campaign), required_adaptations=required_adaptations(model))


def ids(checks: list[Check]) -> set[str]:
    return {check.id for check in failed(checks)}


# --- false defenses and honest models ---------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:the model seems to return probabilities")
@pytest.mark.parametrize("name", FALSE)
def test_a_false_defense_looks_robust_and_is_flagged(name: str, tmp_path: Path) -> None:
    model, (x, y) = false_defense(name), images("test")
    x, y = x[:120], y[:120]
    z = NAIVE["pgd"](model, x, y, Noise.keyed(0, torch.arange(120)))
    robust = model(z).argmax(1) == y
    if hasattr(model, "detector"):  # turning an attack away is as good
        robust |= model.detector.score(z) > model.detector.theta
    assert (robust & (model(x).argmax(1) == y)).float().mean() > 0.5
    checks = checks_of(model, NAIVE, tmp_path)
    assert ids(checks) & FALSE[name][1], [check.sentence for check in checks]


@pytest.mark.long
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_model_is_not_flagged(name: str, tmp_path: Path) -> None:
    checks = checks_of(honest(name), SUITE, tmp_path)
    assert not failed(checks)
    assert sum(check.verdict == "passed" for check in checks) > (10 if name == "standard" else 22)


class DeclaredRipples(Purifier):
    """The random layer of the false defenses, honest about being random."""

    stochastic = True

    def forward(self, x: Tensor) -> Tensor:
        phase = 2 * torch.pi * self.own_noise(x).uniform(x)
        return (x + 0.02 * (1000 * x + phase).sin()).clamp(0, 1)


EOT: dict[str, Attack] = {
    "pgd": PGD(eps=EPS, steps=40, eot_samples=10),
    "apgd": APGD(eps=EPS, steps=50, loss="margin", eot_samples=10),
}
# model, suite, draws of the defender -> checks that fail
DEFENDED: dict[str, tuple[Callable[[], nn.Module], dict[str, Attack], int, set[str]]] = {
    "a filter": (lambda: Purified(honest("PGD-AT"), MeanFilter()), SUITE, 1, set()),
    "rounding, by BPDA and EOT": (lambda: Purified(honest("PGD-AT"), RandomQuantizer(8, 0.05)), EOT, 20, set()),
    "rounding, one draw": (lambda: Purified(honest("PGD-AT"), RandomQuantizer(8, 0.05)), NAIVE, 1, {"C10", "C11"}),
    "declared ripples": (lambda: Purified(honest("standard"), DeclaredRipples()), EOT, 20, {"C8", "C10"}),
}


@pytest.mark.long
@pytest.mark.parametrize("case", DEFENDED)
def test_defenses_that_declare(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = {"samples": 24, "steps": 20, "queries": 100, "points": 20, "imitation": 100}
    monkeypatch.setitem(LEVELS, "quick", replace(LEVELS["quick"], **fewer))
    model, suite, draws, expected = DEFENDED[case]
    found = ids(checks_of(model(), suite, tmp_path, n=60, draws=draws))
    assert found >= expected if expected else not found


def test_samples_that_are_robust_by_luck_are_left_out_for_a_stochastic_model(tmp_path: Path) -> None:
    """One draw in the campaign: the suite's own attack breaks some robust samples when it is judged in twenty draws."""
    model = Purified(honest("PGD-AT"), RandomQuantizer(4, 0.3))
    audit_run = inquire(model, {"pgd": PGD(eps=EPS, steps=5, eot_samples=2)}, tmp_path, n=60)
    (threat_model,) = audit_run.audited_threat_models
    samples = audit_run.still_robust(threat_model)
    looked_at = len(audit_run.samples(threat_model.samples, threat_model.of))
    assert 0 < len(samples) < looked_at
    assert samples.of == pytest.approx(threat_model.of * len(samples) / looked_at)


# --- the model itself -------------------------------------------------------------------------------------------------


class AttackContext(nn.Module):
    """The standard network, and something before or after it."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.say = honest("standard"), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.say(self.network, x)


def optimises(network: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        z = x.detach().clone().requires_grad_()
        step = torch.autograd.grad(network(z).logsumexp(1).sum(), z)[0]
    logits: Tensor = network(x + 0.001 * step)
    return logits


class Optimising(Purifier):
    def forward(self, x: Tensor) -> Tensor:
        optimises(honest("standard"), x)
        return x


# model -> checks of the model itself that fail
INTERFACES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "log-probabilities": (lambda: AttackContext(lambda net, x: net(x).log_softmax(1)), set()),
    "probabilities": (lambda: AttackContext(lambda net, x: net(x).softmax(1)), {"F2"}),
    "random": (lambda: RandomRipples(honest("standard")), {"F1", "C10"}),
    "depends on its batch": (lambda: AttackContext(lambda net, x: net(x) - net(x).mean(0)), {"F1", "C10"}),
    "optimises": (lambda: AttackContext(optimises), {"F5"}),
    "optimises and says so": (lambda: Purified(honest("standard"), Optimising()), set()),
    "static, after all those": (lambda: honest("standard"), set()),
    "no graph at all": (lambda: AttackContext(lambda net, x: net(x.detach()).detach()), {"C10"}),
}


@pytest.mark.filterwarnings("ignore:the model seems to return probabilities")
@pytest.mark.parametrize("case", INTERFACES)
def test_signs_of_the_model(case: str, tmp_path: Path) -> None:
    model, expected = INTERFACES[case]
    audit_run = inquire(model(), {"square": Square(eps=0.01, queries=2)}, tmp_path, n=40)
    checks = audit_run.checks()
    assert ids([checks[key]() for key in ("F1", "F2", "F5", "C10 predicted")]) == expected


def inquire(model: nn.Module, suite: dict[str, Attack], folder: Path, n: int = 40) -> AuditRun:
    campaign = evaluated(model, suite, folder, n)
    return AuditRun(campaign, model, merge(campaign), required_adaptations(model), "quick", 64)


def test_the_model_is_left_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Dropout(), nn.Linear(32, 10)).train()
    model[1].weight.requires_grad_(False)
    campaign = evaluated(model, {"fgsm": FGSM(eps=0.01)}, tmp_path, n=20)
    before, random = {name: t.clone() for name, t in model.state_dict().items()}, torch.get_rng_state()
    with torch.no_grad():
        audit(campaign, model, merge(campaign), required_adaptations=required_adaptations(model))
    assert all(m.training for m in model.modules()) and not model._forward_hooks
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_a_model_that_draws_behind_our_back_is_judged_alike_twice(tmp_path: Path) -> None:
    model = RandomRipples(honest("standard"))
    campaign = evaluated(model, NAIVE, tmp_path, n=20)
    results, found = merge(campaign), []
    known = dict.fromkeys(
        AuditRun(campaign, model, results, {}, "quick", 64).checks(),
        Check(id="", name="", verdict="passed", figure=0, limit=0, sentence=""),
    )
    for key in ("F1", "C10 predicted", "C5 linf 0.2"):
        del known[key]
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(AuditRun(campaign, model, results, {}, "quick", 64, dict(known)).answers())
    assert found[0] == found[1] and ids(found[0]) >= {"F1", "C10"}


# --- stored rows ------------------------------------------------------------------------------------------------------

RADII: dict[str, Attack] = {
    "fgsm": FGSM(eps=0.05),
    "pgd": PGD(eps=0.05, steps=5),
    "square": Square(eps=0.05, queries=20),
    "far": PGD(eps=0.1, steps=5),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> AuditRun:
    """A campaign with all kinds of attacks on a ball, and its rows in memory."""
    audit_run = inquire(honest("standard"), RADII, tmp_path_factory.mktemp("recorded"), n=100)
    assert audit_run.tables and audit_run.results["sweeps"]
    return audit_run


def break_first(audit_run: AuditRun, name: str, count: int) -> None:
    """Let one attack have broken only the first `count` samples."""
    rows = audit_run.tables[name, 0]
    broken = np.arange(len(rows["index"])) < count
    rows["adversarial"] = np.where(broken, (rows["label"] + 1) % 10, rows["label"])
    rows["right_draws"] = (~broken).astype(np.int64)
    rows["linf"] = np.full(len(broken), 0.05)


def status_of(audit_run: AuditRun) -> SampleStatus:
    """The status after the rows in memory."""
    campaign = audit_run.campaign
    status = campaign.blank_status(campaign.samples)
    for run in (run for name in (CLEAN, *campaign.suite) for run in campaign.runs(name)):
        status.record(run, audit_run.tables[run.name, run.restart])
    return status


def misreport(audit_run: AuditRun) -> None:
    audit_run.results["worst_case"][0]["robust_accuracy"] += 0.01


def rise(audit_run: AuditRun) -> None:
    audit_run.results["sweeps"][0]["robust_accuracy"][-1] = 1.0


def broken_by(audit_run: AuditRun, **counts: int) -> None:
    for name in ("fgsm", "pgd", "square"):
        break_first(audit_run, name, counts.get(name, 0))


def lose_a_row(audit_run: AuditRun) -> None:
    audit_run.tables["clean", 0] = {name: column[1:] for name, column in audit_run.tables["clean", 0].items()}


def leave_the_ball(audit_run: AuditRun) -> None:
    audit_run.tables["pgd", 0]["linf"][0] = 0.0501


def forget_settings(audit_run: AuditRun) -> None:
    audit_run.results["attacks"][0]["settings"] = {}


# what is planted -> key of the check that fails; no other one of those below does
KEYS = ["C1", "C2", "C4 recorded", "C12", "C3 recorded linf 0.05", "C6 recorded linf 0.05", "C9 linf 0.05"]
PLANTED: dict[str, tuple[Callable[[AuditRun], None], str]] = {
    "nothing": (lambda audit_run: None, ""),
    "a perturbation outside the ball": (leave_the_ball, "C1"),
    "a sample without a clean row": (lose_a_row, "C2"),
    "a curve that rises": (rise, "C4 recorded"),
    "settings that are lost": (forget_settings, "C12"),
    "one step beats many": (lambda audit_run: broken_by(audit_run, fgsm=30, square=0), "C3 recorded linf 0.05"),
    "queries beat gradients": (lambda audit_run: broken_by(audit_run, pgd=1, square=20), "C6 recorded linf 0.05"),
    "a headline that is too high": (misreport, "C9 linf 0.05"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_what_is_wrong_with_the_rows_is_seen(case: str, recorded: AuditRun) -> None:
    plant, key = PLANTED[case]
    audit_run = replace(recorded, results=json.loads(json.dumps(recorded.results)))
    audit_run.__dict__["tables"] = {
        run: {k: v.copy() for k, v in rows.items()} for run, rows in recorded.tables.items()
    }
    audit_run.campaign.folder.mkdir(exist_ok=True)
    plant(audit_run)
    audit_run.__dict__["status"] = status_of(audit_run)
    checks = audit_run.checks()
    fails = {name for name in KEYS if checks[name]().verdict == "failed"}
    assert fails - ({"C9 linf 0.05"} if "beat" in case or "row" in case else set()) == ({key} if key else set())


def test_attacks_in_a_smaller_ball_are_not_compared(tmp_path: Path) -> None:
    """They count for the larger one, but what they leave robust there says nothing about gradients."""
    suite = {"fgsm": FGSM(eps=0.05), "square": Square(eps=0.05, queries=5), "pgd": PGD(eps=0.001, steps=5)}
    checks = inquire(honest("standard"), suite, tmp_path, n=80).checks()
    checks = [checks[f"{key} recorded linf 0.05"]() for key in ("C3", "C6")]
    assert [check.verdict for check in checks] == ["not applicable", "passed"] and "pgd" not in checks[1].sentence


def test_the_level_of_confidence() -> None:
    for k, n in ((0, 64), (1, 10), (3, 64), (64, 64)):
        interval = binomtest(k, n).proportion_ci(0.99, method="exact")
        assert lower_confidence_bound(k, n) == pytest.approx(interval.low)
    assert lower_confidence_bound(2, 64) < 0.002 < lower_confidence_bound(3, 64) and lower_confidence_bound(
        3, 64
    ) < 0.01 < lower_confidence_bound(4, 64)


# --- suites, costs, files ---------------------------------------------------------------------------------------------

# suite, checks that must be there
SUITES: dict[str, tuple[dict[str, Attack], set[str]]] = {
    "l2": ({"apgd": APGD("l2", 0.5, 20)}, {"C5 more steps and starts find no more, l2 0.5"}),
    "l1": ({"apgd": APGD("l1", 2.0, 20)}, {"C7 random noise finds no more, l1 2"}),
    "l0": ({"jsma": Within(JSMA(), 5)}, {"C9 the worst case of each sample, l0 5"}),
    "no radius": ({"jsma": JSMA()}, {"C1 threat models are complete and kept"}),
    "two radii": (
        {"near": FGSM(eps=0.01), "far": AutoAttack(eps=0.02)},
        {"C4 accuracy decreases with the radius", "C15 other objectives and step sizes find no more, linf 0.02"},
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("case", SUITES)
def test_every_kind_of_suite_can_be_asked(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEVELS, "quick", replace(LEVELS["quick"], samples=6, steps=5, queries=10, imitation=2))
    monkeypatch.setattr(AutoAttack, "ensemble", lambda self, classes: [APGD(self.norm, self.eps, 5)])
    suite, names = SUITES[case]
    checks = checks_of(honest("PGD-AT"), suite, tmp_path, n=20)
    assert names <= {f"{check.id} {check.name}" for check in checks}
    assert len({(check.id, check.name) for check in checks}) == len(checks)
    assert all(check.sentence.endswith(".") for check in checks)


def test_a_model_that_is_never_right(tmp_path: Path) -> None:
    model = AttackContext(lambda net, x: -net(x))
    assert not {c.verdict for c in checks_of(model, NAIVE, tmp_path, n=20) if c.id[0] == "C"} & {"failed"}


def test_every_check_of_the_lists_is_there(recorded: AuditRun) -> None:
    checks = {key.split()[0] for key in recorded.checks()}
    listed = {f"C{i}" for i in range(1, 18)} - {"C14"}  # C14 is the first test of this file
    listed |= {"A1", "F1", "F2", "F3", "F5", "F6", "I2", "I3", "I4", "M1", "M2", "M3", "M4"}  # F4 is C6
    assert checks == listed
    text = (Path(__file__).resolve().parent.parent / "docs" / "audit.md").read_text(encoding="utf-8")
    assert checks | {"A2", "D1", "D2"} == set(re.findall(r"^\| ([ACDFIM]\d+) \|", text, re.M))


@pytest.mark.long
def test_costs_are_as_stated(tmp_path: Path) -> None:
    """No more than 3,000 forwards and 1,500 backwards for each of 64 samples and one threat model."""
    model = honest("PGD-AT")
    campaign = evaluated(model, SUITE, tmp_path)
    results = merge(campaign)
    with counting(model) as passes:
        audit(campaign, model, results, required_adaptations=required_adaptations(model))
    assert 500 * 60 < passes.forwards < 3000 * 64 and 200 * 60 < passes.backwards < 1500 * 64


@pytest.mark.long
def test_a_brief_audit_of_a_stochastic_defense_is_cheap_and_sees_gross_failures(tmp_path: Path) -> None:
    """Up to 2,000 forwards and 1,000 backwards for each of 8 samples, where the suite takes 100 of both."""
    fair: dict[str, Attack] = {"apgd": APGD(eps=EPS, steps=20, loss="margin", eot_samples=5)}
    cases = {
        "fair": (Purified(honest("PGD-AT"), RandomQuantizer(8, 0.05)), fair),
        "false": (Purified(honest("standard"), DeclaredRipples()), NAIVE),
    }
    for name, (model, suite) in cases.items():
        campaign = evaluated(model, suite, tmp_path / name, n=60, draws=20)
        with counting(model) as passes:
            checks = audit(
                campaign, model, merge(campaign), required_adaptations=required_adaptations(model), level="brief"
            )
        assert passes.forwards < 2000 * 8 and passes.backwards < 1000 * 8
        assert bool(ids(checks) & {"C6", "C8", "C10", "C15"}) == (name == "false"), [c.sentence for c in failed(checks)]


@pytest.mark.long
def test_an_audit_is_kept_and_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEVELS, "quick", replace(LEVELS["quick"], samples=6, queries=20, imitation=2))
    model = honest("PGD-AT")
    campaign = evaluated(model, NAIVE, tmp_path / "a", n=40)
    results, ran = merge(campaign), []

    def ask(**changes: Any) -> dict[str, Any]:
        return cached_audit(
            campaign,
            model,
            results,
            **{"required_adaptations": required_adaptations(model), "level": "quick", **changes},
        )

    original = AuditRun.checks

    def counted(self: AuditRun) -> dict[str, Callable[[], Check]]:
        def count(key: str, answer: Callable[[], Check]) -> Check:
            ran.append(key)
            if len(ran) == stop_at:
                raise KeyboardInterrupt
            return answer()

        return {key: (lambda key=key, answer=answer: count(key, answer)) for key, answer in original(self).items()}

    monkeypatch.setattr(AuditRun, "checks", counted)
    stop_at = 12
    with pytest.raises(KeyboardInterrupt):
        ask()
    stop_at = 0
    found = ask()
    assert len(ran) == len(found["checks"]) + 1 and ran.count(ran[11]) == 2
    assert ask() == found and len(ran) == len(found["checks"]) + 1  # no check runs again
    json.dumps(found)
    fresh = audit(campaign, model, results, required_adaptations=required_adaptations(model), rows=64)
    assert [asdict(check) for check in fresh] == found["checks"]  # also after other checks
    before = len(ran)
    ask(required_adaptations={"bpda": True, "eot": False})  # other adaptations
    assert len(ran) == before + len(found["checks"])
    (campaign.folder / "audit.json").write_text("{")
    assert ask() == found


@pytest.fixture
def handler() -> Iterator[None]:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.long
def test_evaluate_prints_the_audit_beside_the_headline(
    tmp_path: Path, handler: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEVELS, "quick", replace(LEVELS["quick"], samples=20, queries=50, points=20, imitation=2))
    save(tmp_path / "a.ckpt")
    for name, attack in {
        "good": "{class_path: Targeted, init_args: {attack: {class_path: APGD, init_args: {eps: 0.15, steps: 100, "
        "loss: margin, targeted: true}}}}",
        "weak": "{class_path: PGD, init_args: {eps: 0.15, steps: 1, step_size: 0.0001}}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(f"attack: {attack}")
        words = {"checkpoint": "a.ckpt", "suite": f"{name}.yaml", "output": name}
        argv = [f"--{option}={tmp_path / value}" for option, value in words.items()]
        argv += ["--limit=60", "--accelerator=cpu"]
        for level in ("none", "quick"):
            assert evaluate.main([*argv, f"--audit={level}"]) == 0
            said, results = capsys.readouterr().out, json.loads((tmp_path / name / "results.json").read_text())
            report = (tmp_path / name / "report.md").read_text()
            if level == "none":
                assert results["audit"] is None
                expected = "not audited"
            else:
                assert results["audit"]["level"] == "quick"
                expected = "audit neither passed nor failed (level quick" if name == "good" else "audit failed: C"
            assert expected in said and expected in report


@pytest.mark.parametrize("aware", [DetectorAwarePGD(), DetectorAwareAPGD(), Joint([PGD(), DetectorAwareAPGD()])])
def test_attacks_that_hide_from_a_detector_are_known_as_such(aware: Attack) -> None:
    for attack, verdict in ((aware, "passed"), (Joint([PGD()]), "failed")):
        eps = threat_of(attack)[1]  # of parts that differ the largest
        threat_model: Any = SimpleNamespace(title="linf", eps=eps, attacks={"pgd": PGD(), "aware": attack})
        assert declared(threat_model, {}, True).verdict == verdict


class NaNBeside(nn.Module):
    """Logits of a linear net; `beside` the images that it knows, their gradients are no numbers."""

    def __init__(self, known: Tensor, beside: bool) -> None:
        super().__init__()
        self.net, self.known, self.beside = honest("standard"), known, beside

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        if self.beside and not torch.equal(x, self.known[: len(x)]) and x.requires_grad:
            logits.register_hook(lambda gradient: gradient * torch.nan)
        return logits


@pytest.mark.parametrize(("beside", "verdict"), [(True, "failed"), (False, "passed")])
def test_a_direction_that_is_no_number_is_no_stable_gradient(beside: bool, verdict: str) -> None:
    """I2: comparisons with NaN are false, so a cosine that is none must not count as large."""
    x, y, index = Digits(size=8).dataset("test").__getitems__(list(range(64)))
    samples = AuditSamples(NaNBeside(x, beside).eval(), x, y, index, 0, rows=64)
    threat_model = ThreatModel("linf", 0.02, {"pgd": PGD(eps=0.02)}, 1.0, index.numpy(), {"pgd": 1.0})
    with undisturbed(torch.device("cpu")):
        check = stable_gradients(samples, threat_model, False)
    assert check.id == "I2" and check.verdict == verdict
    assert (f"below 0.2 for {64 if beside else 0} of 64" in check.sentence) and check.figure == float(beside)
