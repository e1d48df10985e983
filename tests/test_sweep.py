"""A Sweep is what one would write out: the same entries, the same campaign, and never an attack by itself."""

from pathlib import Path

import pytest
import torch
from helpers import campaign
from torch import nn

from adversarial_lightning.attacks import (
    CW,
    FGSM,
    PGD,
    Attack,
    Joint,
    Restarts,
    Sweep,
    Targeted,
    Within,
    WorstOf,
    expanded,
    scale_eps,
    threat,
)
from adversarial_lightning.callbacks import AttackEvaluation
from adversarial_lightning.cli import evaluate
from adversarial_lightning.evaluation.campaign.identity import identify, suite_part

# A Sweep called "a" -> the entries that one would write.
WRITTEN: dict[str, tuple[Sweep, dict[str, Attack]]] = {
    "radii": (Sweep(PGD(), {"eps": [0.3, 0.1, 1]}), {f"a_{e:g}": PGD(eps=e) for e in (0.3, 0.1, 1.0)}),
    "in parallel": (
        Sweep(PGD(norm="l2"), {"eps": [0.5, 1], "step_size": [0.1, 0.2], "steps": [3, 4]}),
        {"a_0.5": PGD("l2", 0.5, 3, 0.1), "a_1": PGD("l2", 1.0, 4, 0.2)},
    ),
    "fractions with names": (
        Sweep(FGSM(), {"eps": ["2/255", 0.031]}, names=["2", "8"]),
        {"a_2": FGSM(eps=2 / 255), "a_8": FGSM(eps=0.031)},
    ),
    "a fraction without": (Sweep(FGSM(), {"eps": ["2/255"]}), {"a_2_255": FGSM(eps=2 / 255)}),
    "words": (Sweep(PGD(), {"loss": ["ce", "dlr"]}), {"a_ce": PGD(loss="ce"), "a_dlr": PGD(loss="dlr")}),
    "its own field first": (
        Sweep(Within(CW(steps=5), 1.0), {"eps": [2, 3]}),
        {"a_2": Within(CW(steps=5), 2.0), "a_3": Within(CW(steps=5), 3.0)},
    ),
    "inside": (
        Sweep(Restarts(Targeted(PGD(targeted=True)), 2), {"eps": [0.1, 0.2]}),
        {f"a_{e}": Restarts(Targeted(PGD(eps=e, targeted=True)), 2) for e in (0.1, 0.2)},
    ),
    "in all parts": (
        Sweep(Restarts(WorstOf([PGD(), FGSM()])), {"eps": [0.1]}),
        {"a_0.1": Restarts(WorstOf([PGD(eps=0.1), FGSM(eps=0.1)]))},
    ),
    "as parts, in multiples of the radius": (
        Sweep(WorstOf([FGSM(), Sweep(PGD(), {"step_size": [1, 0.1, 0.02]}, times="eps")]), {"eps": [0.2, 0.325]}),
        {
            "a_0.2": WorstOf([FGSM(eps=0.2), *(PGD(eps=0.2, step_size=s) for s in (0.2, 0.02, 0.004))]),
            "a_0.325": WorstOf([FGSM(eps=0.325), *(PGD(eps=0.325, step_size=s) for s in (0.325, 0.0325, 0.0065))]),
        },
    ),
    "of a sweep": (
        Sweep(Sweep(PGD(), {"steps": [2, 3]}), {"eps": [0.1, 0.2]}),
        {f"a_{e}_{n}": PGD(eps=e, steps=n) for e in (0.1, 0.2) for n in (2, 3)},
    ),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_the_entries_are_those_that_one_would_write(case: str) -> None:
    sweep, written = WRITTEN[case]
    found = expanded({"first": FGSM(), "a": sweep, "last": FGSM()})
    assert list(found) == ["first", *written, "last"]
    assert {name: found[name] for name in written} == written
    # describe tells 1 from 1.0, which == does not: the campaign must be the same
    assert identify({"suite": suite_part(found)}) == identify(
        {"suite": suite_part({"first": FGSM(), **written, "last": FGSM()})}
    )
    assert expanded(found) == found


def test_a_file_with_a_sweep_is_the_suite_written_out(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "pgd:\n  class_path: Sweep\n  init_args:\n"
        "    attack: {class_path: Restarts, init_args: {n: 2, attack: {class_path: PGD, init_args: &pgd {steps: 3}}}}\n"
        "    values: {eps: [8/255, 1]}\n    names: ['8', '255']\n"
        "more: {class_path: Sweep, init_args: {attack: {class_path: PGD, init_args: *pgd}, values: {eps: [0.1]}}}\n"
    )
    (tmp_path / "written.yaml").write_text(
        "pgd_8:\n  class_path: Restarts\n"
        "  init_args: {n: 2, attack: {class_path: PGD, init_args: {steps: 3, eps: 8/255}}}\n"
        "pgd_255:\n  class_path: Restarts\n"
        "  init_args: {n: 2, attack: {class_path: PGD, init_args: {steps: 3, eps: 1}}}\n"
        "more_0.1: {class_path: PGD, init_args: {steps: 3, eps: 0.1}}\n"
    )
    parser = evaluate.options()
    suites = [
        expanded(parser.instantiate(parser.parse_args(["--suite", str(tmp_path / name), "--output", "x"])).suite)
        for name in ("sweep.yaml", "written.yaml")
    ]
    assert list(suites[0]) == list(suites[1]) == ["pgd_8", "pgd_255", "more_0.1"]
    assert suite_part(suites[0]) == suite_part(suites[1])


WRONG = {
    "unknown field": (lambda: Sweep(Restarts(PGD()), {"epsilon": [1]}), "cannot vary 'epsilon': PGD has norm, eps"),
    "unknown unit": (lambda: Sweep(PGD(), {"eps": [1]}, times="radius"), "cannot multiply by 'radius': PGD has"),
    "wrong type": (lambda: Sweep(PGD(), {"steps": [1.5]}), "cannot set steps of PGD to 1.5"),
    "wrong value": (lambda: Sweep(PGD(), {"eps": [-1]}), "cannot set eps of PGD to -1"),
    "refused by the attack": (lambda: Sweep(PGD(), {"steps": [0]}), "steps must be at least 1"),
    "no number to multiply": (lambda: Sweep(PGD(), {"step_size": ["1/2"]}, times="eps"), "multiplies numbers by eps"),
    "no list": (lambda: Sweep(PGD(), {}), "as long as each other and not empty"),
    "lists of two lengths": (lambda: Sweep(PGD(), {"eps": [1], "steps": [2, 3]}), "as long as each other"),
    "names of another length": (lambda: Sweep(PGD(), {"eps": [1]}, names=["a", "b"]), "as long as each other"),
    "one name twice": (lambda: Sweep(PGD(), {"eps": [1, 1.0]}), "the same name"),
    "inside": (lambda: expanded({"a": Restarts(Sweep(PGD(), {"eps": [1]}))}), "belongs around Restarts, not inside"),
    "a name that is taken": (
        lambda: expanded({"a_1": PGD(), "a": Sweep(PGD(), {"eps": [1]})}),
        "two attacks of the suite are called 'a_1'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case: str) -> None:
    make, says = WRONG[case]
    with pytest.raises(ValueError, match=says):
        make()


def test_a_sweep_is_no_attack_by_itself(tmp_path: Path) -> None:
    sweep = Sweep(PGD(steps=2), {"eps": [0.1, 0.2]})
    with pytest.raises(ValueError, match=r"attacks\.expanded"):
        campaign(tmp_path, suite={"a": sweep})
    with pytest.raises(ValueError, match=r"attacks\.expanded"):
        sweep(nn.Flatten(), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    assert list(AttackEvaluation({"a": sweep}).attacks) == ["a_0.1", "a_0.2"]


def test_a_sweep_is_of_the_kind_of_its_attack() -> None:
    assert Sweep(CW(), {"steps": [1]}).kind == "minimum-norm" and Sweep(FGSM(), {"eps": [1]}).kind == "budget"
    with pytest.raises(ValueError, match="budget attacks only"):
        Joint([Sweep(CW(), {"steps": [1]})])
    joint = expanded({"a": Joint([Sweep(PGD(), {"steps": [1, 2]})], restarts=1)})["a"]
    assert isinstance(joint, Joint) and joint.attacks == [PGD(steps=1), PGD(steps=2)]
    assert threat(scale_eps(joint, 0.5)) == ("linf", 0.15)
