"""What a report says of the model: from the content of its checkpoint, and of no other kind of file."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import adam, digits, save, trained, trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from adversarial_lightning import networks
from adversarial_lightning.attacks import PGD, WorstOf
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.provenance import choice, provenance
from adversarial_lightning.evaluation.report.subject import (
    choice_words,
    defended_by,
    judged,
    model_facts,
    model_in_table,
    model_words,
)
from adversarial_lightning.lightning_modules import AdversarialTraining


def test_a_training_run_tells_what_it_was(tmp_path: Path) -> None:
    network = networks.MLP(10, 784, [8])
    attack = WorstOf([PGD(eps=0.1, steps=1), PGD(norm="l2", eps=0.5, steps=1)])
    module = AdversarialTraining(network, attack=attack, optimizer=adam)
    best = ModelCheckpoint(tmp_path, monitor="val/acc", mode="max", filename="best")
    last = ModelCheckpoint(tmp_path, filename="last")
    trainer(tmp_path, 2, callbacks=[best, last], enable_checkpointing=True).fit(module, datamodule=digits())
    for kind in ("best", "last"):
        path = tmp_path / f"{kind}.ckpt"
        facts = provenance(load_network(path)[0], path)
        assert facts["network"]["class_path"] == "networks.MLP" and facts["parameters"] == 785 * 8 + 9 * 10
        assert facts["method"]["class_path"] == "lightning_modules.AdversarialTraining"
        radii = [("PGD", "linf", 0.1), ("PGD", "l2", 0.5)]
        assert [(a["attack"], a["norm"], a["eps"]) for a in facts["training_attacks"]] == radii
        assert facts["epoch"] in ((0, 1) if kind == "best" else (1,)) and facts["steps"] in (7, 14)
        found = facts["choice"]
        assert (found["kind"], found["monitor"], found["mode"], found["split"]) == (kind, "val/acc", "max", "val")
        assert found["best_value"] == pytest.approx(float(best.best_model_score), abs=1e-5)
        results = {"model": facts}
        assert model_words(results) == "MLP, trained by AdversarialTraining at linf 0.1 and l2 0.5"
        assert model_in_table(results).endswith(f", 6,370 parameters, epoch {facts['epoch']}, {kind} checkpoint")
        said = model_facts(results)
        assert said["trained against"].startswith("PGD at linf 0.1, pixels in [0, 1]; PGD at l2 0.5")
        assert ("the best epoch: highest val/acc" in said["choice of checkpoint"]) == (kind == "best")


def test_what_is_not_recorded_is_not_said(tmp_path: Path) -> None:
    facts = provenance(trained(), save(tmp_path / "a.ckpt"))
    assert facts["method"] is facts["choice"] is facts["epoch"] is None and facts["training_attacks"] == []
    assert list(model_facts({"model": facts})) == ["network"] and model_words({"model": facts}) == "MLP"
    assert provenance(trained(), None)["training_attacks"] is None and model_words({}) == ""


BEST = "ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min', 'every_n_epochs': 1}"
LAST = "ModelCheckpoint{'monitor': None, 'mode': 'min'}"


def states(value: float, best: float) -> dict[str, Any]:
    chosen = {"best_model_path": "/runs/a/best.ckpt", "last_model_path": "", "monitor": "val_loss"}
    chosen |= {"current_score": torch.tensor(value), "best_model_score": torch.tensor(best)}
    unmonitored = {"best_model_path": "/runs/a/last.ckpt", "last_model_path": "", "monitor": None}
    return {BEST: chosen, LAST: unmonitored | {"current_score": None, "best_model_score": None}}


# Name of the file, states of the callbacks, what is said.
CHOICES: dict[str, tuple[str, Any, str]] = {
    "best": ("best.ckpt", states(0.25, 0.25), "the best epoch: lowest val_loss on the split val, 0.25"),
    "last": ("last.ckpt", states(0.5, 0.25), "the last one saved; the best epoch has the lowest val_loss"),
    "a name of its own says neither": ("mine.ckpt", states(0.25, 0.25), "neither known as the best nor as the last"),
    "a later file called best": ("best.ckpt", states(0.5, 0.25), "neither known as the best nor as the last"),
    "measured as no number": ("best.ckpt", states(math.nan, math.nan), "neither known as the best nor as the last"),
    "nothing monitored": ("last.ckpt", {LAST: states(0, 0)[LAST]}, "the last one saved; nothing was monitored"),
    "no such callback": ("best.ckpt", {"EarlyStopping": {"wait": 1}}, ""),
    "no callbacks": ("best.ckpt", None, ""),
}


@pytest.mark.parametrize("case", CHOICES)
def test_how_a_checkpoint_was_chosen(case: str) -> None:
    name, callbacks, said = CHOICES[case]
    words = choice_words(choice(callbacks, name))
    assert words.startswith(said) and bool(words) == bool(said)


def spec(name: str, **settings: Any) -> dict[str, Any]:
    return {"class_path": f"defenses.{name}", "init_args": settings}


# Defenses, detector, what is said in a few words, what a robust accuracy is of.
DEFENDED: dict[str, tuple[list[Any], Any, str, str]] = {
    "nothing": ([], None, "no defense", " of MLP"),
    "one": (
        [spec("Purified", purifier=spec("MALADE", steps=4))],
        None,
        "behind Purified(MALADE)",
        " of MLP behind Purified(MALADE)",
    ),
    "two": ([spec("A"), spec("B")], None, "behind A and B", " of MLP behind A and B"),
    "a detector": ([], spec("ScoreNorm"), "with detector ScoreNorm", " of MLP by its predictions alone"),
    "both": (
        [spec("A")],
        spec("ScoreNorm"),
        "behind A, with detector ScoreNorm",
        " of MLP behind A by its predictions alone",
    ),
}


@pytest.mark.parametrize("case", DEFENDED)
def test_defense_and_detector_are_named(case: str) -> None:
    defenses, detector, brief, headline = DEFENDED[case]
    model = {"network": spec("MLP"), "method": None, "training_attacks": []}
    results = {"model": model, "defenses": defenses, "detection": detector and {"detector": detector}}
    assert defended_by(results, brief=True) == brief and judged(results) == headline
