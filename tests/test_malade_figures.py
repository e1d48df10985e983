"""The figures and the search of MALADE's paper in a form of seconds: digits of 8 x 8 pixels, untrained denoisers."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import save, save_network, trained

from adversarial_lightning.attacks import Noise, noise_for
from adversarial_lightning.checkpoints.files import digest_weights
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.defenses import MALA, Magnet, Purified
from adversarial_lightning.evaluation.outcomes.subset import random_images
from adversarial_lightning.networks import ConvAutoencoder, Denoiser


def denoiser(folder: Path, trained_for: str | None) -> Path:
    """A denoiser that changes little: its chain neither helps nor breaks what a classifier says."""
    torch.manual_seed(0)
    network = ConvAutoencoder(width=2, mean_pixel=0.3)
    return save_network(Denoiser(network, 0.15, trained_for), folder / f"{trained_for is None}.ckpt")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of two runs on four digits, one a panel after the others, and their figures."""
    from adversarial_lightning.reproduce import malade_figures

    folder = tmp_path_factory.mktemp("malade")
    words = ["--checkpoint", save(folder / "net.ckpt"), "--sdae", denoiser(folder, digest_weights(trained()))]
    words += ["--dae", denoiser(folder, None), "--robust", folder / "net.ckpt", "--output", folder / "out"]
    words += ["--images", 4, "--eps", 0, 0.2, "--radii", 0.1, 0.3, "--steps", 2, "--samples", 2, "--queries", 5]
    words += ["--weights", 0.1, 1]
    for panels in (["3", "5", "7", "c8", "c15"], ["6"]):
        malade_figures.main([str(word) for word in [*words, "--panels", *panels]])
    content = json.loads((folder / "out" / "figures.json").read_text())
    assert set(content["settings"]) == {"3", "5", "6", "7", "c8", "c15"}
    return folder / "out", content["figures"]


@pytest.mark.long
def test_every_figure_has_its_curves_and_pictures(run: tuple[Path, dict[str, Any]]) -> None:
    folder, found = run
    assert set(found) == {"fig3", "fig5", "fig6", "fig7", "c8", "c15"}
    chained = {"CNN + Magnet", "CNN + MALADE", "robust + Magnet", "robust + MALA"}
    assert set(found["fig5"]["accuracy"]) == chained | {"CNN", "robust"} and set(found["fig6"]["accuracy"]) == chained
    assert {p.name for p in folder.glob("*.png")} == {f"fig{n}.png" for n in ("3_5_7", "6", "C8_C14", "C15_C18")}
    arrays = np.load(folder / "pictures.npz")
    assert len(found["c8"]) == 7 and all(arrays[name].shape == (4, 8, 8) for name in ("clean", *found["c8"]))
    assert set(found["c15"]["said"]) == {"C.15", "C.16", "C.17", "C.18"}
    assert arrays["C.16"].shape == (2, 5, 8, 8)
    # C.15 and C.16 are one image under two attacks, C.17 another.
    x = random_images(Digits(size=8).dataset("test"), 4)[0]
    for name, i in (("C.15", 0), ("C.16", 0), ("C.17", 1)):
        start = arrays[name][:, 0] / 255 - x[i].numpy()
        assert [round(float(np.abs(row).max()), 2) for row in start] == [0.1, 0.3]


def test_a_detector_turns_clean_images_away_and_counts_as_defence(run: tuple[Path, dict[str, Any]]) -> None:
    """Higher rates cost clean accuracy and can only help in the paper's accounting, never in the strict one."""
    for curves in run[1]["fig6"]["accuracy"].values():
        for low, high in (("0.01", "0.05"), ("0.05", "0.1")):
            assert curves[low]["strict"][0] >= curves[high]["strict"][0] == curves[high]["paper"][0]
            assert all(a <= b for a, b in zip(curves[low]["paper"][1:], curves[high]["paper"][1:], strict=True))
        assert all(c["strict"][k] <= c["paper"][k] for c in curves.values() for k in range(2))


def test_who_is_turned_away_counts_in_both_accountings() -> None:
    from argparse import Namespace

    from adversarial_lightning.reproduce import malade_figures

    torch.manual_seed(0)
    model = Purified(trained(), Magnet(Denoiser(ConvAutoencoder(width=2, mean_pixel=0.3), 0.15)))
    options = Namespace(eps=[0.0, 0.5], steps=1, samples=1, weights=[1.0])
    batch = Digits(size=8).dataset("test").__getitems__(list(range(6)))
    found = malade_figures.guarded_curve(model, {"all": -1.0, "none": float("inf")}, *batch, options)
    assert found["all"] == {"paper": [0.0, 1.0], "strict": [0.0, 0.0]}
    assert found["none"]["paper"] == found["none"]["strict"] and found["none"]["paper"][1] < 1


def test_the_search_reads_held_out_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a config file to the table on record: who is attacked, what is written, and no test image is touched."""
    from adversarial_lightning.reproduce import select_malade

    whole = Digits.dataset
    read: list[str] = []
    monkeypatch.setattr(Digits, "dataset", lambda self, split: (read.append(split), whole(self, split))[1])
    config = tmp_path / "search.yaml"
    config.write_text(
        f"checkpoint: {save(tmp_path / 'net.ckpt')}\ndenoiser: {denoiser(tmp_path, digest_weights(trained()))}\n"
        f"output: {tmp_path / 'table.json'}\nimages: [6, 9]\nclean: 12\npull: [0.02, 1.0]\nlength: [1, 2]\n"
        "noise: [0.0, 0.3]\nannealing: [1.0]\nsteps: 2\nsamples: 2\nnote: small\n"
    )
    monkeypatch.setattr(sys, "argv", ["select_malade", "--config", str(config)])
    select_malade.main()
    content = json.loads((tmp_path / "table.json").read_text())
    rows = content["figures"]["candidates"]
    assert set(read) == {"val"} and content["settings"]["split"] == "val" and content["note"] == "small"
    assert [row["images"] for row in rows] == [6] * 8 + [9] * 2 and set(content["checkpoints"]) == {
        "checkpoint",
        "denoiser",
    }
    for row in rows:
        assert (row["bpda"] is None) == (row["full"] is None) == (row["pull"] == 1.0)  # far off: clean accuracy is lost
    best = rows[-1]
    assert content["figures"]["winner"]["step_size"] == pytest.approx(0.15 * best["pull"]) and best["robust"] >= 0


def test_figure_3_follows_one_chain() -> None:
    from adversarial_lightning.reproduce.malade_figures import per_step

    torch.manual_seed(0)
    network = ConvAutoencoder(width=2, mean_pixel=0.3)
    model = Purified(trained(), MALA(Denoiser(network, 0.15)))
    x, y, index = Digits(size=8).dataset("test").__getitems__([0, 1])
    found = per_step(model, x, y, Noise.keyed(0, index))
    for row, step in enumerate(found["steps"]):
        chain = MALA(Denoiser(network, 0.15), steps=step, step_size=0.03, noise_std=0.0735)
        with noise_for(chain, Noise.keyed(0, index)), torch.no_grad():
            p = model.classifier(chain(x)).softmax(1)
        assert found["true"][row] == pytest.approx(p.gather(1, y[:, None])[:, 0].tolist(), abs=1e-6)
