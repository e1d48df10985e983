"""Callbacks under Trainer's own defaults, in modules and loaders that are not ours."""

import sys
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from helpers import ROOT, Bare, Coded, Shift, adam, digits, run
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from adversarial_lightning.attacks import FGSM, PGD, HighConfidence
from adversarial_lightning.callbacks import (
    AdversarialImages,
    AttackEvaluation,
    AttackGrids,
    CollapseGuard,
    EmbeddingPrior,
    EpsilonWarmup,
    NetworkPictures,
)
from adversarial_lightning.callbacks.attack_evaluation import gather, sample_numbers
from adversarial_lightning.callbacks.attacked_model import attacked_model
from adversarial_lightning.evaluation.outcomes.outcome import Outcome, evaluate_batch
from adversarial_lightning.evaluation.outcomes.subset import random_subset
from adversarial_lightning.lightning_modules import AdversarialTraining, ERClassifier, Standard

NOTHING = {"nothing": Shift(by=0.0)}


class Foreign(pl.LightningModule):
    """Somebody's module: one pixel, class 1 where it exceeds `threshold`; learns nothing unless `rate` is given."""

    def __init__(self, threshold: float = 0.5, rate: float = 0.0) -> None:
        super().__init__()
        self.network, self.rate = nn.Linear(1, 2), rate
        with torch.no_grad():
            self.network.weight.copy_(torch.tensor([[0.0], [1.0]]))
            self.network.bias.copy_(torch.tensor([threshold, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.rate)


def pixels(n: int = 100, batch: int = 8) -> DataLoader[Any]:
    """Pixels 0 to 1 in ascending order, with labels that the threshold 0.5 gets right."""
    x = torch.linspace(0, 1, n).view(n, 1, 1, 1)
    return DataLoader(TensorDataset(x, (x.flatten() > 0.5).long(), torch.arange(n)), batch_size=batch)


def plain(folder: Path, **settings: Any) -> pl.Trainer:
    """A Trainer with Lightning's defaults where they bear on callbacks."""
    warnings.filterwarnings("ignore", ".*(does not have many workers|exists and is not empty).*")
    warnings.filterwarnings("ignore", ".*number of training batches.*")
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(**{"accelerator": "cpu", "devices": 1, "default_root_dir": folder, **quiet, **settings})


def test_the_sanity_check_is_no_evaluation(tmp_path: Path) -> None:
    """In class order its two batches hold one class, so an untrained model looks perfect there."""
    module = Foreign(threshold=2.0, rate=2.0)  # says class 0 before training
    attack = AttackEvaluation(NOTHING, every_n_epochs=4)
    guard, keep = CollapseGuard(num_classes=2), ModelCheckpoint(tmp_path, monitor="val/robust_acc/nothing", mode="max")
    seen: list[tuple[bool, Any, int]] = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            value = trainer.callback_metrics.get("val/robust_acc/nothing")
            seen.append((trainer.sanity_checking, None if value is None else float(value), guard.at_chance))

    run = plain(tmp_path, max_epochs=5, callbacks=[attack, guard, Watch(), keep])
    run.validate(module, pixels(), verbose=False)  # as little an evaluation of the training that follows
    seen.clear()
    run.fit(module, pixels(batch=100), pixels())
    assert seen[0] == (True, None, 0) and all(not sanity and value < 1 for sanity, value, _ in seen[1:])
    assert seen[1][1] == seen[2][1] == seen[3][1] != seen[4][1] and len(seen) == 6
    assert float(keep.best_model_score or 0) == pytest.approx(max(value for _, value, _ in seen[1:]))


@pytest.mark.long
def test_all_callbacks_together_under_the_defaults(tmp_path: Path) -> None:
    """Sanity check, inference mode in validate and test: nothing fails, nothing is drawn or counted beforehand."""
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    quick = {"steps": 2, "max_step": 0.5}
    callbacks = [
        AttackEvaluation({"fgsm": FGSM(eps=0.1)}, limit=20),
        AdversarialImages(FGSM(eps=0.1), n=2),
        AttackGrids(HighConfidence(confidence=0.5, targeted=True, **quick), HighConfidence(**quick), (0.3,), 1),
        NetworkPictures(FGSM(eps=0.1), limit=12, every_n_epochs=1),
    ]
    settings = {"regularization": 0.1, "critic_hidden": [4], "optimizer": adam, "classifier_optimizer": adam}
    for module, own in (
        (AdversarialTraining(Coded(3), FGSM(eps=0.1), optimizer=adam), [EpsilonWarmup(), CollapseGuard()]),
        (ERClassifier(Coded(3), **settings), [EmbeddingPrior(limit=20)]),  # type: ignore[arg-type]
    ):
        trainer = plain(tmp_path, max_epochs=1, logger=logger, callbacks=[*callbacks, *own], log_every_n_steps=1)
        trainer.fit(module, digits())
        for call in (trainer.validate, trainer.test):
            stage = call.__name__.replace("validate", "val")
            assert f"{stage}/robust_acc/fgsm" in call(module, digits(), verbose=False)[0]  # type: ignore[operator]


def test_a_limit_is_a_random_subset_the_same_for_all(tmp_path: Path) -> None:
    """Pixels in ascending order: the first 20 say 100 %; a subset of a subset keeps its members."""
    module, loader = Foreign(threshold=0.3), pixels()  # wrong between 0.3 and 0.5

    def attacked(limit: int | None, loader: Any = loader, **settings: Any) -> tuple[list[int], float]:
        attack = AttackEvaluation(NOTHING, limit=limit, **settings)
        plain(tmp_path, callbacks=[attack]).validate(module, loader, verbose=False)
        return [o.index for o in attack.outcomes["nothing"]], attack.results["val"]["nothing"]

    some, value = attacked(20)
    assert some == random_subset(torch.arange(100), 20).tolist() and 0.6 < value < 1
    assert set(some) < set(attacked(40)[0]) < set(attacked(None)[0]) == set(range(100))
    assert attacked(20, sample_seed=1)[0] != some and attacked(20, pixels(batch=33)) == (some, value)
    half = Subset(loader.dataset, list(range(50, 100)))
    assert attacked(20, DataLoader(half, batch_size=8))[0] == (50 + random_subset(torch.arange(50, 100), 20)).tolist()


def test_numbers_of_a_data_set() -> None:
    val = digits().dataset("val")
    assert torch.equal(sample_numbers(val), val.indices)
    assert torch.equal(sample_numbers(Subset(val, [3, 1])), val.indices[[3, 1]])

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(ValueError, match="does not know its length"):
        sample_numbers(Stream())


@pytest.mark.parametrize("settings", [{"limit_val_batches": 2}, {"limit_val_batches": 1}])
def test_samples_that_do_not_come_are_named(settings: dict[str, Any], tmp_path: Path) -> None:
    attack = AttackEvaluation(NOTHING, limit=3)
    chosen = [i for i in random_subset(torch.arange(100), 3).tolist() if i < 8 * settings["limit_val_batches"]]
    with pytest.warns(UserWarning, match=f"is of {len(chosen)} samples, not of 3"):
        plain(tmp_path, callbacks=[attack], **settings).validate(Foreign(), pixels(), verbose=False)
    assert ("nothing" in attack.results["val"]) == bool(chosen)  # of no sample there is no accuracy


class Scaled(Foreign):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - 0.25) / 0.5)  # 0.5 of these is 0.5 of the pixels


class Softmax(Foreign):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).softmax(1)


class Wordless(Foreign):
    forward = pl.LightningModule.forward


class Own(Foreign):
    def __init__(self) -> None:
        super().__init__(threshold=0.25)
        self.net = self.network
        del self.network

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1) - 0.25)


class Confused(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Boxed(Foreign):
    def forward(self, x: Tensor) -> Any:
        return {"logits": self.network(x)}


@pytest.mark.parametrize("kind,attacks_the", [(Foreign, "network"), (Scaled, "module"), (Softmax, "network"),
                                              (Wordless, "network"), (Own, "module"), (Confused, "softmax"),
                                              (Boxed, "dict")])  # fmt: skip
def test_what_the_module_computes_is_attacked(kind: type[Foreign], attacks_the: str) -> None:
    module, (x, y, index) = kind(), pixels(batch=100).dataset.tensors
    x = x.flatten(1)
    if attacks_the in ("softmax", "dict"):
        with pytest.raises(ValueError, match=attacks_the):
            attacked_model(module, x, index)
        return
    model = attacked_model(module, x, index)
    assert model is (module.network if attacks_the == "network" else module)
    outcomes, _ = evaluate_batch(model, Shift(by=0.0), x, y, index, seed=0, name="nothing")
    assert sum(o.adversarial == o.label for o in outcomes) == 100


@pytest.mark.parametrize("precision,says", [("bf16-true", "bf16-mixed"), ("16-true", "bf16-mixed"), ("64-true", None)])
@pytest.mark.parametrize("ours", [False, True])
def test_precisions(precision: Any, says: str | None, ours: bool, tmp_path: Path) -> None:
    """Half networks are refused by one sentence, also where no callback looks; doubles are attacked as doubles."""
    trainer = plain(tmp_path, precision=precision, callbacks=[] if ours else [AttackEvaluation({"pgd": PGD(eps=0.1)})])
    if says or ours:
        with pytest.raises(ValueError, match=says or "not in 64-true: use"):
            trainer.validate(*((Standard(Bare(), adam), digits()) if ours else (Foreign(), pixels())), verbose=False)
    else:
        (logged,) = trainer.validate(Foreign(), pixels(), verbose=False)
        assert logged["val/robust_acc/pgd"] == pytest.approx(0.8, abs=0.02)


def test_two_loaders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one loader, not 2"):
        plain(tmp_path, callbacks=[AttackEvaluation(NOTHING)]).validate(Foreign(), [pixels(), pixels()], verbose=False)


def test_the_guard_asks_for_the_number_of_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_classes"):
        plain(tmp_path, max_epochs=1, callbacks=[CollapseGuard()]).fit(Foreign(), pixels(), pixels())


def test_pictures_are_of_the_weights_that_are_validated(tmp_path: Path) -> None:
    """Averaged weights: in place while batches are validated, and gone when validation ends."""
    seen: dict[str, list[Tensor]] = {"drawn": [], "attacked": [], "validated": [], "trained": []}

    class Watch(NetworkPictures):
        def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            seen["validated"] += [pl_module.network.layers[0].weight.clone()]
            super().on_validation_batch_end(trainer, pl_module, *_)

        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            seen["trained"].append(pl_module.network.layers[0].weight.clone())

    class Waiting(AttackEvaluation):
        def _evaluate(self, *batch: Tensor) -> None:
            seen["attacked"].append(cast(Bare, self._model).layers[0].weight.clone())
            super()._evaluate(*batch)

    def views(network: Bare, *_: Any, **__: Any) -> list[Any]:
        seen["drawn"].append(network.layers[0].weight.clone())
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adversarial_lightning.callbacks.network_pictures.views", views)
        logger = TensorBoardLogger(str(tmp_path), name="", version="")
        callbacks = [EMAWeightAveraging(decay=0.9), Watch(FGSM(), every_n_epochs=1), Waiting(NOTHING, limit=20)]
        trainer = plain(tmp_path, max_epochs=1, logger=logger, num_sanity_val_steps=0, callbacks=callbacks)
        trainer.fit(Standard(Bare(), adam), digits(eval_batch_size=16))
    assert all(torch.equal(w, seen["validated"][0]) for w in seen["attacked"]) and len(seen["attacked"]) == 2
    assert torch.equal(seen["drawn"][0], seen["validated"][0]) and len(seen["drawn"]) == 1
    assert not torch.equal(seen["drawn"][0], seen["trained"][0])


def outcome(index: int, label: int = 0) -> Outcome:
    return Outcome(index, label, 0, 0, 1, 0, 0.0, 0.0, 0.0, 1.0, None, 1, 1, 0.0)


@pytest.mark.parametrize(
    "parts,kept",
    [
        ([[0, 2, 4], [1, 3, 0]], 5),  # padded
        ([[0], [0]], 1),
        ([[0, 2], [1, 0, 2]], None),  # more than padding
        ([[0, 0], [1]], None),  # a number that names two samples of one process
    ],
)
def test_padding_is_dropped_and_nothing_else(
    parts: list[list[int]], kept: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: len(parts))
    whole = [[outcome(i) for i in part] for part in parts]
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda to, _: to.__setitem__(slice(None), whole))
    if kept is None:
        with pytest.raises(ValueError, match="more than once"):
            gather([])
    else:
        assert [o.index for o in gather([])] == list(range(kept))
        whole[-1][-1] = outcome(whole[-1][-1].index, label=1)  # another sample under the same number
        with pytest.raises(ValueError, match="more than once"):
            gather([])


PADDED = """
import sys
sys.path.insert(0, {tests!r})
from test_callbacks_defaults import NOTHING, AttackEvaluation, Foreign, pixels, plain
for limit in (None, 20):
    attack = AttackEvaluation(NOTHING, limit=limit)
    trainer = plain("x", devices=int(sys.argv[1]), strategy="ddp" if sys.argv[1] > "1" else "auto", callbacks=[attack])
    trainer.validate(Foreign(threshold=0.3), pixels(101), verbose=False)
    if trainer.is_global_zero:
        print("figure", attack.results["val"]["nothing"])
"""


@pytest.mark.long
def test_lightnings_padding_sampler_on_two_processes(tmp_path: Path) -> None:
    """101 samples on two processes are padded to 102; the values are those of one process."""
    script = tmp_path / "run.py"
    script.write_text(PADDED.format(tests=str(ROOT / "tests")))
    said = [run(sys.executable, str(script), world, cwd=tmp_path).stdout.splitlines() for world in "12"]
    one, two = ([float(line.split()[1]) for line in lines if line.startswith("figure")] for lines in said)
    assert one == two and len(one) == 2
