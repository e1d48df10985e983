"""The figures of RIDE's paper, in a form of seconds: digits of 8 x 8 pixels, four iterations a fit."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import save

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"channels": [1, 4, 4, 1], "dropout_after": [2], "steps": 2, "stages": 2, "estimates": 2, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a run on six digits, and its figures."""
    folder = tmp_path_factory.mktemp("ride")
    entry = {"class_path": "defenses.Purified", "init_args": {"purifier": {"init_args": SMALL}}}
    (folder / "ride.yaml").write_text(yaml.safe_dump([entry]))
    from adversarial_lightning.reproduce import ride_figures

    words = ["--checkpoint", save(folder / "net.ckpt"), "--output", folder / "out", "--defense", folder / "ride.yaml"]
    words += ["--images", 6, "--every", 1, "--draws", 3, "--panels", "5a", "5b", "5c", "5d", "9"]
    torch.manual_seed(0)
    ride_figures.main([str(word) for word in words])
    return folder / "out", json.loads((folder / "out" / "figures.json").read_text())["figures"]


@pytest.mark.long
def test_every_panel_has_its_curves(run: tuple[Path, dict[str, Any]]) -> None:
    panels = run[1]["panels"]
    assert {name: len(curves) for name, curves in panels.items()} == {"5a": 8, "5b": 4, "5c": 5, "5d": 6, "9": 4}
    assert set(panels["5a"]) == {n + d for n in ("DIP", "I-DIP", "DAE", "RIDE") for d in ("", ", no dropout")}
    start = {panel["accuracy"][0] for curves in panels.values() for panel in curves.values()}
    assert start == {run[1]["bare"]["pgd_0.2"]}  # at iteration 0 all are the attacked images
    for curve in (curve for curves in panels.values() for curve in curves.values()):
        assert curve["iteration"] == [0, 1, 2, 3, 4] and curve["dist2adv"][0] == 0
        assert all(0 < d < 255 for d in (*curve["dist2adv"][1:], *curve["dist2gt"]))
    distances = {tuple(curve["dist2gt"]) for curve in panels["5a"].values()}
    assert len(distances) == 8
    # One stage more changes nothing before it has begun.
    for once, staged in (("DAE", "RIDE"), ("DIP", "I-DIP")):
        assert panels["5a"][once]["dist2gt"][:3] == panels["5a"][staged]["dist2gt"][:3]
        assert panels["5a"][once]["dist2gt"][3] != panels["5a"][staged]["dist2gt"][3] or once == "DIP"
    assert panels["5c"]["alpha 0.9"] == panels["5b"]["n 1"] == panels["5d"]["sigma 0.1"] == panels["5a"]["RIDE"]
    assert panels["9"]["p 0.9, noisy target"] == panels["5a"]["RIDE"]


def test_the_trace_is_one_line_an_image_and_look(run: tuple[Path, dict[str, Any]]) -> None:
    rows = list(csv.DictReader((run[0] / "trace.csv").read_text().splitlines()))
    assert [(int(r["image"]), int(r["iteration"])) for r in rows] == [(i, k) for i in range(6) for k in range(5)]
    assert [int(r["stage"]) for r in rows[:5]] == [0, 1, 1, 2, 2]
    for row in rows:
        assert abs(sum(float(row[f"p{k}"]) for k in range(10)) - 1) < 1e-3
    last = [r for r in rows if r["iteration"] == "4"]
    ride = run[1]["panels"]["5a"]["RIDE"]
    assert np.mean([float(r["dist2gt"]) for r in last]) == pytest.approx(ride["dist2gt"][-1], rel=1e-3)
    said = [max(range(10), key=lambda k: float(r[f"p{k}"])) == int(r["label"]) for r in last]
    assert np.mean(said) == pytest.approx(ride["accuracy"][-1])


def test_the_white_box_is_seen_in_each_step(run: tuple[Path, dict[str, Any]]) -> None:
    for eps, runs in run[1]["white_box"].items():
        assert set(runs) == {"median", "bregman", "RIDE"}
        for name, found in runs.items():
            assert len(found["adversarial"]) == len(found["defended"]) == 11  # 10 steps and the end
            assert found["adversarial"][0] == run[1]["bare"]["clean"]  # it starts at the images
            assert found["end"]["draws"] == (3 if name == "RIDE" else 1)
            assert 0 <= found["end"]["worst"] <= found["end"]["mean"] <= 1
            assert all(len(values) == 6 for values in found["distances"].values())
            assert 0 < max(found["distances"]["adv2gt"]) <= 255 * float(eps) + 1e-3
            if name != "RIDE":  # without randomness the end is one draw
                assert found["defended"][0] == run[1]["clean"][name] and found["defended"][-1] == found["end"]["mean"]


def test_the_sweeps_and_the_grid(run: tuple[Path, dict[str, Any]]) -> None:
    folder, found = run
    views = {"clean", "fgsm_0.1", "pgd_0.1", "fgsm_0.2", "pgd_0.2"}
    assert set(found["bare"]) == views and set(found["sweep"]) == {"test", "val"}
    for rows in found["sweep"].values():
        counts = {name: sum(row["filter"] == name for row in rows) for name in ("median", "bregman", "chambolle")}
        assert counts == {"median": 3, "bregman": 11, "chambolle": 7}  # windows of 9 and 11 are larger than digits
        assert all(0 <= row[view] <= 1 for row in rows for view in views)
    assert found["sweep"]["test"] != found["sweep"]["val"]
    grid = np.load(folder / "grid.npz")
    assert all(grid[name].shape == (6, 1, 8, 8) for name in ("clean", "adversarial", "median", "bregman", "RIDE"))
    assert np.mean(grid["adversarial class"] == grid["label"]) == pytest.approx(found["bare"]["pgd_0.2"])
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures == {"trace", "fig5a", "fig5b", "fig5c", "fig5d", "fig9", "fig7", "sweep", "grid"}


QUICK = {**SMALL, "channels": (1, 4, 4, 1), "dropout_after": (2,)}


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of a measure, and RIDE in two stages of two steps."""
    from adversarial_lightning.reproduce import ride_figures, ride_theorem

    monkeypatch.setattr(ride_figures, "QUICK", QUICK)
    monkeypatch.setattr(ride_theorem, "QUICK", QUICK)
    return {"checkpoint": save(tmp_path / "net.ckpt"), "data": None, "n": 6, "output": tmp_path}


def test_the_last_target_is_beside_the_last_estimate(quick: dict[str, Any]) -> None:
    from adversarial_lightning.reproduce.ride_figures import last_target

    found = last_target(**quick)
    numbers = {name: entry["value"] for name, entry in found["numbers"].items()}
    assert numbers["difference"] == pytest.approx(numbers["x_est"] - numbers["x^(T)"])
    assert found["samples"]["n"] == 6 and found["samples"]["chosen"] == "random"


def test_a_panel_has_the_curves_that_are_asked_for(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from adversarial_lightning.reproduce import ride_figures

    monkeypatch.setattr(ride_figures, "LOOKS", (2, 4))
    found = ride_figures.panel(**quick, panel="5a", dropout=False)["numbers"]
    curves = {name.rpartition(", ")[0] for name in found}
    assert curves == {f"{kind}, no dropout" for kind in ("DIP", "I-DIP", "DAE", "RIDE")}
    assert found["RIDE, no dropout, dist2adv at 2"]["value"] != found["RIDE, no dropout, dist2adv at 4"]["value"]


def test_a_white_box_says_how_far_images_are(quick: dict[str, Any]) -> None:
    from adversarial_lightning.reproduce.ride_figures import white_boxes

    found = white_boxes(**quick, eps=0.1)["numbers"]
    for name in ("RIDE", "median", "bregman"):
        assert 0 < found[f"{name}, adv2gt"]["value"] <= 25.5 and 0 <= found[f"{name}, defended"]["value"] <= 1


def test_the_inequalities_of_the_theorem_follow_from_one_another() -> None:
    """Eq. 12 always holds; with 11 and 13 in a stage, the conclusion does."""
    from adversarial_lightning.attacks import Noise
    from adversarial_lightning.defenses import RIDE
    from adversarial_lightning.reproduce.ride_theorem import inequalities

    ride = RIDE(**{**QUICK, "steps": 30, "stages": 4, "suppression": False})
    x = Noise.keyed(5, torch.arange(8)).uniform(torch.empty(8, 1, 8, 8))
    found = inequalities(ride, x, Noise.keyed(0, torch.arange(8)))
    assert {name: tuple(mask.shape) for name, mask in found.items()} == {
        **dict.fromkeys(("assumption", "eq11", "eq12"), (4, 8)),
        **dict.fromkeys(("eq13", "conclusion"), (3, 8)),
    }
    assert bool(found["eq12"].all()) and bool(found["assumption"][0].all())
    proved = found["eq11"][:-1] & found["eq13"]
    assert bool(proved.any()) and bool(found["conclusion"][proved].all())
    assert torch.equal(found["eq13"], found["assumption"][1:])
