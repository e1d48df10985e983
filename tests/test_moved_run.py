"""Best checkpoints of runs that are resumed elsewhere."""

import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Bare, adam, digits, trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from test_train import command

from adversarial_lightning.callbacks import MovedRun
from adversarial_lightning.cli import train
from adversarial_lightning.lightning_modules import Standard

SCORES = [0.5, 0.9, 0.2, 0.3]


class Scored(Standard):
    """The metric of each epoch is known beforehand."""

    def on_validation_epoch_end(self) -> None:
        self.log("val/score", SCORES[self.current_epoch])
        self.log("val/other", SCORES[self.current_epoch])


def fit(folder: Path, epochs: int, ckpt: Path | None = None, monitor: str = "val/score", k: int = 1) -> ModelCheckpoint:
    warnings.filterwarnings("ignore", ".*exists and is not empty")
    name = "best" if k == 1 else "{epoch}"
    best = ModelCheckpoint(folder, name, monitor=monitor, mode="max", save_top_k=k, enable_version_counter=False)
    last = ModelCheckpoint(folder, "last", enable_version_counter=False)
    loop = trainer(folder, epochs, callbacks=[MovedRun(), best, last], enable_checkpointing=True)
    loop.fit(Scored(Bare(), adam), digits(), ckpt_path=ckpt, weights_only=True)
    return best


def renamed(a: Path, b: Path) -> Path:
    return a.rename(b)


def linked(a: Path, b: Path) -> Path:
    a.rename(a.parent / "elsewhere")
    b.symlink_to(a.parent / "elsewhere")
    return b


def by_a_relative_path(a: Path, b: Path) -> Path:
    return Path(os.path.relpath(a))


def copied(a: Path, b: Path) -> Path:
    shutil.copytree(a, b)
    return b


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("move", [renamed, linked, by_a_relative_path, copied, lambda a, b: a])
def test_the_best_epoch_stays_the_best(move: Callable[[Path, Path], Path], k: int, tmp_path: Path) -> None:
    before = fit(tmp_path / "a", 2, k=k)
    folder = move(tmp_path / "a", tmp_path / "b")
    after = fit(folder, 4, folder / "last.ckpt", k=k)
    best = Path(after.best_model_path)
    assert best.name == Path(before.best_model_path).name and best.parent == folder.resolve() and best.is_file()
    assert torch.load(best, weights_only=True)["epoch"] == 1 and float(after.best_model_score or 0) == pytest.approx(
        0.9
    )
    assert sorted(map(float, after.best_k_models.values())) == pytest.approx([0.9] if k == 1 else [0.5, 0.9])
    assert len(list(folder.glob("*.ckpt"))) == k + 1  # of its own folder it also removes what has become worse


@pytest.mark.parametrize(
    "folder,ckpt,monitor,says",
    [
        ("a", "a", "val/other", "chosen by val/score, and is chosen by val/other from here on"),
        ("b", "a", "val/score", r"best.ckpt, val/score 0.9\) is not in .*/b"),
        ("a", "a", "val/score", r"best.ckpt, val/score 0.9\) is not in .*/a"),
    ],
    ids=["other metric", "other folder", "file removed"],
)
def test_a_choice_that_begins_anew_is_said(folder: str, ckpt: str, monitor: str, says: str, tmp_path: Path) -> None:
    fit(tmp_path / "a", 2)
    if monitor == "val/score" and folder == "a":
        (tmp_path / "a" / "best.ckpt").unlink()
    with pytest.warns(UserWarning, match=says), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint")
        best = fit(tmp_path / folder, 4, tmp_path / ckpt / "last.ckpt", monitor)
    assert best.best_model_path == str(tmp_path / folder / "best.ckpt")
    assert torch.load(best.best_model_path, weights_only=True)["epoch"] == 3


@pytest.mark.long
def test_the_command_line_has_the_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning"])
    quick = ["--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false"]
    cli = train.main(command([], "fit", tmp_path, *quick))
    assert sum(isinstance(c, MovedRun) for c in cli.trainer.callbacks) == 1
