"""Claims that hold one another: larger radii, and unions of several norms; and what failed checks leave of a number."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import Shift, campaign, finish, trained

from adversarial_lightning.attacks import APGD, DDN, FGSM, FMN, PGD, Attack, GaussianNoise, Restarts, Within, WorstOf
from adversarial_lightning.attacks import Square as Squares
from adversarial_lightning.evaluation import Campaign, run_campaign
from adversarial_lightning.evaluation.audit import stored_rows
from adversarial_lightning.evaluation.audit.check import Check
from adversarial_lightning.evaluation.audit.headline import summary
from adversarial_lightning.evaluation.audit.run import AuditRun
from adversarial_lightning.evaluation.campaign.merge import merge, reasons_for_no_headline
from adversarial_lightning.evaluation.campaign.sample_status import robust_share
from adversarial_lightning.evaluation.campaign.unions import balls, threat_of, unions
from adversarial_lightning.evaluation.outcomes.statistics import flags_of

LINF, L2, L1 = PGD(eps=0.05, steps=3), PGD("l2", 0.4, steps=3), PGD("l1", 2.0, steps=3)
BALLS: dict[str, tuple[Attack, tuple[tuple[str, float], ...]]] = {
    "one": (LINF, (("linf", 0.05),)),
    "several, in one order": (WorstOf([L1, L2, LINF]), (("linf", 0.05), ("l2", 0.4), ("l1", 2.0))),
    "restarts of them": (Restarts(WorstOf([LINF, L2])), (("linf", 0.05), ("l2", 0.4))),
    "minimum norm at radii": (WorstOf([Within(DDN(), 0.4), Within(FMN("linf"), 0.05)]), (("linf", 0.05), ("l2", 0.4))),
    "two radii of one norm": (WorstOf([FGSM(eps=0.05), FGSM(eps=0.1)]), (("linf", 0.1),)),
    "no radius": (DDN(), ()),
    "a part without a radius": (WorstOf([Within(DDN(), 0.4), FMN("linf")]), ()),
    "a corruption": (GaussianNoise(0.1), ()),
}


@pytest.mark.parametrize("case", BALLS)
def test_balls_of_an_attack(case: str) -> None:
    attack, expected = BALLS[case]
    assert balls(attack) == expected
    if case == "two radii of one norm":
        assert threat_of(attack) == ("linf", 0.1) and unions({"a": attack, "b": attack}) == []


SUITES: dict[str, tuple[dict[str, Attack], list[tuple[str, ...]]]] = {
    "one norm": ({"a": LINF, "b": FGSM(eps=0.1)}, []),
    "one radius each": ({"a": LINF, "b": L2, "c": DDN()}, [("linf", "l2")]),
    "a norm with two radii": ({"a": LINF, "b": FGSM(eps=0.1), "c": L2}, []),
    "an attack that joins them": ({"a": WorstOf([LINF, L2])}, [("linf", "l2")]),
    "the same union twice": ({"a": WorstOf([LINF, L2]), "b": LINF, "c": L2}, [("linf", "l2")]),
    "two unions": ({"a": WorstOf([LINF, L2]), "b": LINF, "c": L1}, [("linf", "l2"), ("linf", "l1")]),
}


@pytest.mark.parametrize("case", SUITES)
def test_unions_of_a_suite(case: str) -> None:
    suite, expected = SUITES[case]
    assert [tuple(norm for norm, _ in union) for union in unions(suite)] == expected


def ran(suite: dict[str, Attack], folder: Path, n: int = 40) -> Campaign:
    c = campaign(folder, n, suite)
    run_campaign(c, trained(), batch_size=40)
    return c


def case_of(results: dict[str, Any], norm: str, eps: float | None = None) -> dict[str, Any]:
    (case,) = [c for c in results["worst_case"] if c["norm"] == norm and c["eps"] == eps]
    return case


def test_a_sample_is_robust_against_a_union_where_it_is_against_each_norm(tmp_path: Path) -> None:
    c = ran({"linf": LINF, "l2": L2, "l1": L1}, tmp_path)
    results, report = finish(c)
    union = case_of(results, "union")
    robust = [flags_of(case["bitmap"], 40) for case in results["worst_case"][:3]]
    assert union["robust_accuracy"] == np.logical_and.reduce(robust).mean() < min(r.mean() for r in robust)
    assert union["members"] == [{"norm": "linf", "eps": 0.05}, {"norm": "l2", "eps": 0.4}, {"norm": "l1", "eps": 2.0}]
    assert union["attacks"] == ["linf", "l2", "l1"] and union["claim"] == "accuracy under linf, l2 and l1"
    assert union["interval"] and len(results["classes"][0]["robust_accuracy"]) == 4
    assert "the union of linf 0.05, l2 0.4 and l1 2" in report


def test_an_attack_on_several_norms_makes_the_claim_on_their_union_alone(tmp_path: Path) -> None:
    """What it found in one ball may hide what it found in the other; what is inside a ball counts there, too."""
    both = WorstOf([LINF, L2])
    joint = merge(ran({"both": both}, tmp_path / "a"))
    assert [case["norm"] for case in joint["worst_case"]] == ["union"]
    (entry,) = joint["attacks"]
    assert (entry["norm"], entry["eps"]) == ("union", None) and entry["members"] == joint["worst_case"][0]["members"]
    assert joint["worst_case"][0]["robust_accuracy"] == entry["robust_accuracy"]
    weak = FGSM(eps=0.05)
    together, alone = (merge(ran(s, tmp_path / n)) for n, s in (("b", {"w": weak, "both": both}), ("c", {"w": weak})))
    case = case_of(together, "linf", 0.05)
    assert case["attacks"] == ["w", "both"]
    assert case_of(together, "union")["robust_accuracy"] <= case["robust_accuracy"]
    assert case["robust_accuracy"] <= case_of(alone, "linf", 0.05)["robust_accuracy"]
    assert case["claim"] == "accuracy under w"


def asked(suite: dict[str, Attack], tables: Any) -> Any:
    """What C1 is asked of: a suite and its rows."""
    return SimpleNamespace(audit=SimpleNamespace(campaign=SimpleNamespace(suite=suite), tables=tables))


def test_a_point_outside_all_balls_does_not_count(tmp_path: Path) -> None:
    far: dict[str, Attack] = {"far": WorstOf([Shift(0.5, eps=0.1), Shift(0.5, eps=0.1, norm="l2")])}
    c = ran(far, tmp_path)
    results = merge(c)
    assert case_of(results, "union")["robust_accuracy"] == results["clean_accuracy"]
    assert any("left the ball" in note for note in results["warnings"])
    tables = {(run.name, run.restart): c.table(run) for name in ("clean", "far") for run in c.runs(name)}
    assert stored_rows.threat_model(asked(far, tables)).verdict == "failed"
    kept = {"both": WorstOf([LINF, L2])}
    c = ran(kept, tmp_path / "kept")
    tables = {(run.name, run.restart): c.table(run) for name in ("clean", "both") for run in c.runs(name)}
    assert stored_rows.threat_model(asked(kept, tables)).verdict == "passed"


def test_a_union_needs_gradients_that_are_averaged_in_every_ball() -> None:
    suite: dict[str, Attack] = {"a": PGD(eps=0.1, eot_samples=10), "b": L2}
    found = reasons_for_no_headline(suite, {"eot": True})
    assert set(found) == {(("l2", 0.4),), (("linf", 0.1), ("l2", 0.4))}
    joint: dict[str, Attack] = {"a": WorstOf([PGD(eps=0.1, eot_samples=10), PGD("l2", 0.4, eot_samples=10)])}
    assert not reasons_for_no_headline(joint, {"eot": True})


def test_a_union_is_robust_accuracy_where_every_ball_is(tmp_path: Path) -> None:
    suite: dict[str, Attack] = {
        f"{name} {norm}": attack
        for norm, eps in (("linf", 0.05), ("l2", 0.4))
        for name, attack in {
            "ce": APGD(norm, eps, 2),  # type: ignore[arg-type]
            "margin": APGD(norm, eps, 2, "margin"),  # type: ignore[arg-type]
            "square": Squares(norm, eps, 2),  # type: ignore[arg-type]
        }.items()
    }
    assert "under 6" in case_of(merge(ran(suite, tmp_path / "a", 4)), "union")["claim"]  # l2 lacks a minimum norm
    suite["ddn"] = DDN(steps=2)
    assert case_of(merge(ran(suite, tmp_path / "b", 4)), "union")["claim"] == "robust accuracy"


# --- what the audit leaves --------------------------------------------------------------------------------------------


def answered(c: Campaign, broken: dict[str, int], failed: tuple[str, ...] = ()) -> AuditRun:
    """An audit that is over: in the ball of each title it broke so many of the robust samples, and these checks failed.

    In a ball of a larger radius it finds others than in a smaller one.
    """
    audit_run = AuditRun(c, trained(), merge(c), {}, "quick", 64)
    taken: set[int] = set()
    for part in audit_run.audited_threat_models:
        left = [number for number in part.samples.tolist() if number not in taken][: broken.get(part.title, 0)]
        taken |= set(left)
        for id in ("C5", "A1"):
            audit_run.found[f"{id} {part.title}"] = Check(
                id=id, name=id, verdict="not shown", n=len(part.samples), sentence="", broken=tuple(left)
            )
    for key in failed:
        audit_run.found[key] = Check(id=key.split()[0], name="it failed", verdict="failed", sentence="")
    return audit_run


def claims(audit_run: AuditRun) -> dict[str, Any]:
    found = summary(audit_run, list(audit_run.found.values()))["claims"]
    return {f"{claim['norm']} {claim['eps']}": claim for claim in found}


RADII: dict[str, Attack] = {"small": FGSM(eps=0.01), "large": FGSM(eps=0.03), "largest": FGSM(eps=0.06), "l2": L2}


def test_a_sample_that_is_broken_at_a_radius_is_taken_out_at_every_larger_one(tmp_path: Path) -> None:
    c = ran(RADII, tmp_path)
    found = claims(answered(c, {"linf 0.01": 3, "linf 0.06": 1}))
    small, large, largest = (found[f"linf {eps}"] for eps in (0.01, 0.03, 0.06))
    assert small["at_most"] >= large["at_most"] >= largest["at_most"]
    assert len(small["broken"]) == 3 and set(large["broken"]) <= set(small["broken"]) and large["broken"]
    assert large["at_most"] == pytest.approx(large["robust_accuracy"] - len(large["broken"]) / 40)
    assert set(largest["broken"]) > set(small["broken"]) & set(largest["broken"])
    assert found["l2 0.4"]["broken"] == [] and found["l2 0.4"]["at_most"] == found["l2 0.4"]["robust_accuracy"]
    for claim in found.values():
        assert len(claim["broken"]) <= claim["examined"] and claim["estimate"] <= claim["robust_accuracy"]
        shares = [(entry, n) for entry, n in zip(claim["classes"], sizes(c), strict=True)]
        assert sum(share * n for share, n in shares) / 40 == pytest.approx(claim["at_most"], abs=1e-5)
    # the bound is of the samples that are broken there, whichever check of whichever radius found them
    alone = claims(answered(c, {"linf 0.06": 1}))["linf 0.03"]
    assert large["bound"] > alone["bound"] and alone["broken"] == []


def sizes(c: Campaign) -> list[int]:
    return [entry["n"] for entry in merge(c)["classes"]]


def test_what_is_broken_in_one_norm_is_broken_for_the_union(tmp_path: Path) -> None:
    c = ran({"linf": LINF, "l2": L2}, tmp_path)
    found = claims(answered(c, {"linf 0.05": 2, "l2 0.4": 1}))
    union = found["union None"]
    robust = set(np.flatnonzero(robust_share(c.status().union([("linf", 0.05), ("l2", 0.4)]), 1)))
    numbers = {c.samples[i] for i in robust}
    assert set(union["broken"]) == (set(found["linf 0.05"]["broken"]) | set(found["l2 0.4"]["broken"])) & numbers
    assert union["at_most"] == pytest.approx(union["robust_accuracy"] - len(union["broken"]) / 40)
    assert union["at_most"] <= min(found["linf 0.05"]["at_most"], found["l2 0.4"]["at_most"])


def test_each_ball_of_an_attack_on_several_norms_is_examined(tmp_path: Path) -> None:
    c = ran({"both": WorstOf([LINF, L2])}, tmp_path)
    audit_run = AuditRun(c, trained(), merge(c), {}, "brief", 64)
    parts = audit_run.audited_threat_models
    assert [part.title for part in parts] == ["linf 0.05", "l2 0.4"] and all(part.part_of_union for part in parts)
    assert [part.gradient_attacks() for part in parts] == [[LINF], [L2]]
    assert not [key for key in audit_run.checks() if key.startswith("A2")]
    checks = audit_run.checks()
    assert checks["C9 l2 0.4"]().verdict == "not applicable"
    audit_run.found |= answered(c, {"linf 0.05": 1, "l2 0.4": 2}).found
    found = claims(audit_run)
    assert list(found) == ["union None"] and len(found["union None"]["broken"]) == 3
    assert checks["C5 l2 0.4"]().n == min(32, len(parts[1].samples))


# failed checks -> the claims whose number says nothing, of linf 0.01, 0.03, 0.06 and l2 0.4
WORTHLESS: dict[str, tuple[dict[str, int], tuple[str, ...], list[bool]]] = {
    "nothing failed": ({}, (), [False] * 4),
    "a memory": ({}, ("M1",), [True] * 4),
    "an interface": ({}, ("F1",), [True] * 4),
    "a detector": ({}, ("D2 linf 0.03 with the detector",), [False, True, False, False]),
    "gradients at one radius": ({}, ("F3 linf 0.03",), [False, True, False, False]),
    "how it is reported": ({}, ("C12", "I3 l2 0.4"), [False] * 4),
    "what was broken is taken out": ({"linf 0.01": 3, "linf 0.06": 1}, ("M1",), [False, False, False, True]),
}


@pytest.mark.parametrize("case", WORTHLESS)
def test_a_number_of_which_nothing_can_be_taken_out_says_nothing(case: str, tmp_path: Path) -> None:
    broken, failed, expected = WORTHLESS[case]
    found = claims(answered(ran(RADII, tmp_path), broken, failed))
    assert [bool(claim["says_nothing"]) for claim in found.values()] == expected
    assert all(failed[0].split()[0] in claim["says_nothing"] for claim in found.values() if claim["says_nothing"])
