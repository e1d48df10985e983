"""Callbacks: robust accuracy in the loop, warm-up, collapse, pictures."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from helpers import Bare, Coded, adam, digits, trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adversarial_lightning.attacks import FGSM, PGD, HighConfidence, Noise, Restarts, WorstOf
from adversarial_lightning.callbacks import (
    AdversarialImages,
    AttackEvaluation,
    AttackGrids,
    CollapseGuard,
    EmbeddingPrior,
    EpsilonWarmup,
    FitWhitening,
    NetworkPictures,
    Predictions,
    TrainingCollapsed,
)
from adversarial_lightning.callbacks.attack_evaluation import gather
from adversarial_lightning.evaluation.outcomes.outcome import Outcome
from adversarial_lightning.evaluation.outcomes.subset import random_subset
from adversarial_lightning.evaluation.report.grids import confidence_grid, target_grid
from adversarial_lightning.lightning_modules import AdversarialTraining, ERClassifier, Standard
from adversarial_lightning.networks import Whiten

ATTACKS = {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=3)}


def by_hand(module: Standard, name: str, split: str, limit: int) -> float:
    """Robust accuracy of the random subset of `limit` samples, image by image."""
    images = digits().dataset(split)  # type: ignore[arg-type]
    x, y, index = images.__getitems__(random_subset(images.indices, limit).tolist())
    module.eval()
    stream = Noise.keyed(0, index).fork("attacker").fork(name).fork(0)
    z = ATTACKS[name](module.network, x, y, stream)
    with torch.no_grad():
        return float(((module(x).argmax(1) == y) & (module(z).argmax(1) == y)).float().mean())


@pytest.mark.long
@pytest.mark.parametrize("batch", [7, 64])
@pytest.mark.parametrize("inference_mode", [True, False])
def test_attack_evaluation_counts_what_a_hand_counts(batch: int, inference_mode: bool, tmp_path: Path) -> None:
    module, data = Standard(Bare(), adam), digits(eval_batch_size=batch)
    trainer(tmp_path, epochs=3).fit(module, data)
    run = trainer(tmp_path, callbacks=[AttackEvaluation(ATTACKS, limit=30)], inference_mode=inference_mode)
    for stage, split, call in (("val", "val", run.validate), ("test", "test", run.test)):
        (logged,) = call(module, data, verbose=False)  # type: ignore[operator]
        for name in ATTACKS:
            assert logged[f"{stage}/robust_acc/{name}"] == pytest.approx(by_hand(module, name, split, 30))
    assert 0 < logged["test/robust_acc/pgd"] < logged["test/acc"]


def test_attack_evaluation_chooses_checkpoints_and_keeps_its_last_value(tmp_path: Path) -> None:
    """Evaluated in epochs 0, 2, 4 (every third, first, last); logged in all; best.ckpt is chosen by it."""
    seen: list[float] = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            seen.append(float(trainer.callback_metrics["val/robust_acc/pgd"]))

    attack = AttackEvaluation({"pgd": ATTACKS["pgd"]}, every_n_epochs=3)
    keep = ModelCheckpoint(tmp_path / "c", "best", monitor="val/robust_acc/pgd", mode="max")
    run = trainer(tmp_path, 5, callbacks=[attack, keep, Watch()], enable_checkpointing=True)
    run.fit(AdversarialTraining(Bare(), PGD(eps=0.1, steps=2), optimizer=adam), digits())
    assert len(seen) == 5 and seen[1] == seen[0] and seen[3] == seen[2]
    assert (tmp_path / "c" / "best.ckpt").exists()
    assert float(keep.best_model_score or 0) == pytest.approx(max(seen))


def test_several_attack_evaluations_work_side_by_side(tmp_path: Path) -> None:
    both = [AttackEvaluation({name: attack}) for name, attack in ATTACKS.items()]
    keep = ModelCheckpoint(tmp_path / "c", "last")
    run = trainer(tmp_path, 1, callbacks=[*both, keep], enable_checkpointing=True)
    run.fit(Standard(Bare(), adam), digits())
    assert {"val/robust_acc/fgsm", "val/robust_acc/pgd"} <= run.callback_metrics.keys()
    both[0].load_state_dict({"val": {"gone": 1.0, "fgsm": 0.5}})
    assert both[0].results["val"] == {"fgsm": 0.5}


@dataclass(frozen=True)
class BrokenOnThrees(PGD):
    """Pixels that are no numbers for images of the class 3."""

    def perturb(self, model: Any, x: torch.Tensor, y: torch.Tensor, noise: Noise) -> torch.Tensor:
        return super().perturb(model, x, y, noise).masked_fill((y == 3).view(-1, 1, 1, 1), torch.nan)


def test_a_broken_attack_is_named_during_training_and_counts_as_no_success(tmp_path: Path) -> None:
    attack = AttackEvaluation({"good": PGD(eps=0.3, steps=2), "broken": BrokenOnThrees(eps=0.3, steps=2)})
    module = Standard(Bare(), adam)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, 3, callbacks=[attack]).fit(module, digits())
    outcomes = {o.index: o for o in attack.outcomes["broken"]}
    threes = [o for o in outcomes.values() if o.label == 3]
    assert 0 < len(threes) < len(outcomes) == 50 and any(o.clean == 3 for o in threes)
    said = [str(w.message) for w in caught if "the attack is broken" in str(w.message)]
    assert set(said) == {
        f"val/robust_acc/broken: the attack is broken, its pixels are no numbers for {len(threes)} samples of 50; "
        "these count as not broken by it"
    }
    assert all(o.attack_failed and o.adversarial == o.clean and o.linf == 0 for o in threes)
    assert not any(o.attack_failed for o in outcomes.values() if o.label != 3)
    robust = [o.clean == 3 if o.label == 3 else o.adversarial == o.label == o.clean for o in outcomes.values()]
    assert attack.results["val"]["broken"] == sum(robust) / 50


def test_half_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bf16-mixed"):
        AttackEvaluation(ATTACKS).setup(trainer(tmp_path), Standard(Bare(), adam).bfloat16(), "fit")


def test_gather_refuses_padding() -> None:
    rows = [Outcome(i, 0, 0, 0, 1, 0, 0.0, 0.0, 0.0, 1.0, None, 1, 1, 0.0) for i in (3, 1, 2)]
    assert [o.index for o in gather(rows)] == [1, 2, 3]
    with pytest.raises(ValueError, match=r"\[2\].*more than once"):
        gather([*rows, rows[2]])


def test_epsilon_warmup_is_linear_and_reaches_inside(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen.append(pl_module.attack)

    attack = WorstOf([FGSM(eps=0.2), Restarts(PGD(eps=0.1, steps=1), 2)])
    module = AdversarialTraining(Bare(), attack, optimizer=adam)
    trainer(tmp_path, 4, callbacks=[EpsilonWarmup(share=0.5, start=0.2), Watch()]).fit(module, digits())
    n = len(seen)
    for i, scaled in enumerate(seen):
        factor = min(1.0, 0.2 + 0.8 * i / (0.5 * n))
        assert scaled.attacks[0].eps == pytest.approx(0.2 * factor)
        assert scaled.attacks[1].attack.eps == pytest.approx(0.1 * factor)
    assert module.attack == attack


def test_epsilon_warmup_counts_steps_where_epochs_are_open(tmp_path: Path) -> None:
    seen: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen.append(pl_module.attack.eps)

    module = AdversarialTraining(Bare(), FGSM(eps=0.2), optimizer=adam)
    trainer(tmp_path, -1, max_steps=20, callbacks=[EpsilonWarmup(share=0.5), Watch()]).fit(module, digits())
    assert seen == pytest.approx([0.2 * min(1.0, i / 10) for i in range(20)])


def test_epsilon_warmup_without_an_attack_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no attack in Standard"):
        trainer(tmp_path, callbacks=[EpsilonWarmup()]).fit(Standard(Bare(), adam), digits())


def test_collapse_guard_stops_at_chance(tmp_path: Path) -> None:
    def frozen(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.0)

    net = Bare()
    torch.nn.init.zeros_(net.layers[4].weight)
    run = trainer(tmp_path, 10, callbacks=[CollapseGuard(patience=3)])
    with pytest.raises(TrainingCollapsed, match=r"at chance .* for 3 epochs"):
        run.fit(Standard(net, frozen), digits())
    assert run.current_epoch == 2


def test_collapse_guard_stops_at_nan_and_keeps_the_last_healthy_checkpoint(tmp_path: Path) -> None:
    class Explode(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.optimizers[0].param_groups[0]["lr"] = 1e25

    keep = ModelCheckpoint(tmp_path, "last", save_on_exception=True, enable_version_counter=False)
    callbacks = [Explode(), CollapseGuard(check_every_n_batches=2), keep]
    run = trainer(tmp_path, 10, callbacks=callbacks, enable_checkpointing=True)
    with pytest.raises(TrainingCollapsed, match=r"not finite.*learning rate"):
        run.fit(Standard(Bare(), adam), digits())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 0 and all(v.isfinite().all() for v in saved["state_dict"].values())


def test_collapse_guard_lets_a_learning_model_be(tmp_path: Path) -> None:
    trainer(tmp_path, 4, callbacks=[CollapseGuard(patience=3)]).fit(Standard(Bare(), adam), digits())


def test_adversarial_images_are_logged(tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    images = AdversarialImages(PGD(eps=0.1, steps=1), n=5, every_n_epochs=2)
    trainer(tmp_path, 3, logger=logger, log_every_n_steps=1, callbacks=[images]).fit(Standard(Bare(), adam), digits())
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    logged = events.Images("val/adversarial")
    assert len(logged) == 2  # epochs 0 and 2
    assert (logged[0].width, logged[0].height) == (5 * (56 + 2) + 2, 3 * 56 + 12 + 2 * 2)


def test_attack_grids_are_logged(tmp_path: Path) -> None:
    """Every class into every other, clean on the diagonal; rising confidence below; both in TensorBoard."""
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    quick = {"steps": 20, "max_step": 0.5}
    grids = AttackGrids(HighConfidence(confidence=0.5, targeted=True, **quick), HighConfidence(**quick), (0.3, 0.6))
    module, data = Standard(Bare(), adam), digits()
    trainer(tmp_path, 3, logger=logger, log_every_n_steps=1, callbacks=[grids]).fit(module, data)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for name in ("val/targets", "val/confidence"):
        assert len(events.Images(name)) == 1  # the last epoch
    val = data.dataset("val")
    firsts = [int((val.labels == k).nonzero()[0]) for k in range(10)]
    x, y, _ = val.__getitems__(firsts)
    picture = target_grid(module.network, grids.targeted, x, y)
    cells = picture[0, 2:, 2:].unfold(0, 28, 30).unfold(1, 28, 30)
    assert cells.shape[:2] == (10, 10)
    changed = 0
    for i in range(10):
        assert torch.equal(cells[i, i], x[i, 0])
        for j in range(10):
            if i != j and cells[i, j].any():
                changed += 1
                with torch.no_grad():
                    p = module.network(cells[i, j][None, None]).softmax(1)[0]
                assert p.argmax() == j and p[j] >= 0.5
    assert changed > 45
    rows = confidence_grid(module.network, grids.rising, x, y, [0.3, 0.6])
    assert rows.shape == (3, 3 * (56 + 4 + 12), 10 * 58 + 2)


@pytest.mark.parametrize("weight", [0.1, 0.0])
def test_codes_are_compared_with_their_prior(weight: float, tmp_path: Path) -> None:
    """Distances over time, a histogram of each coordinate; of the critic's figures, those of a network that has one."""
    logger = TensorBoardLogger(tmp_path, name="", version="")
    settings = {"regularization": weight, "critic_hidden": [16], "optimizer": adam, "classifier_optimizer": adam}
    module = ERClassifier(Coded(3, batch_norm=True), **settings)  # type: ignore[arg-type]
    trainer(tmp_path, logger=logger, log_every_n_steps=1, callbacks=[EmbeddingPrior(limit=40)]).fit(module, digits())
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["histograms"]) == {"embedding/prior", *(f"embedding/code_{k}" for k in range(3))}
    logged = {name: [e.value for e in events.Scalars(f"embedding/{name}")] for name in ("sliced_w1", "code_std")}
    assert all(len(values) == 2 for values in logged.values()) and module.training
    assert ("embedding/w1_hat" in events.Tags()["scalars"]) == bool(weight)
    if weight:
        assert [e.value for e in events.Scalars("embedding/critic_gradient")] > [0, 0]
        assert all(0 < e.value <= 1 for e in events.Scalars("embedding/critic_at_clip"))
    val = digits().dataset("val")
    x = val.__getitems__(random_subset(val.indices, 40).tolist())[0]
    with torch.no_grad():
        assert logged["code_std"][-1] == pytest.approx(float(module.eval().network.encoder(x).std()), rel=1e-5)


def test_embedding_prior_wants_codes(tmp_path: Path) -> None:
    logged = {"logger": TensorBoardLogger(tmp_path), "log_every_n_steps": 1}
    run = trainer(tmp_path, callbacks=[EmbeddingPrior()], **logged)
    with pytest.raises(ValueError, match="Standard has none"):
        run.fit(Standard(Bare(), adam), digits())


def test_whitening_is_fitted_once_and_kept(tmp_path: Path) -> None:
    class White(Bare):
        def __init__(self) -> None:
            super().__init__()
            self.white = Whiten(784)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(self.white(x))

    module, data = Standard(White(), adam), digits()
    run = trainer(tmp_path, 1, callbacks=[FitWhitening(limit=100)])
    run.fit(module, data)
    train = data.dataset("train")
    expected = Whiten(784)
    expected.fit(train.fetch(train.indices[random_subset(train.indices, 100)]))
    assert module.network.white.fitted and torch.equal(module.network.white.matrix, expected.matrix)
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = Standard(White(), adam)
    more = trainer(tmp_path, 1, callbacks=[FitWhitening(limit=50)])
    more.fit(again, digits(), ckpt_path=str(tmp_path / "x.ckpt"), weights_only=True)
    assert torch.equal(again.network.white.matrix, expected.matrix)
    with pytest.raises(ValueError, match="no Whiten"):
        trainer(tmp_path, callbacks=[FitWhitening()]).fit(Standard(Bare(), adam), digits())


def test_predictions_are_written(tmp_path: Path) -> None:
    module, data = Standard(Bare(), adam), digits()
    trainer(tmp_path, callbacks=[Predictions(str(tmp_path / "p"))]).predict(module, data)
    saved = torch.load(tmp_path / "p" / "rank0.pt", weights_only=True)
    x, _, index = data.dataset("test").__getitems__(list(range(50)))
    assert torch.equal(saved["index"], index)
    with torch.no_grad():
        assert torch.allclose(saved["logits"], module.eval()(x), atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AttackGrids(rising=HighConfidence(targeted=True)),
        lambda: AttackGrids(confidences=(0.9, 0.5)),
        lambda: FitWhitening(limit=1),
        lambda: AttackEvaluation({}),
        lambda: AttackEvaluation(ATTACKS, limit=0),
        lambda: AttackEvaluation(ATTACKS, every_n_epochs=0),
        lambda: EpsilonWarmup(share=0),
        lambda: EmbeddingPrior(limit=1),
        lambda: EmbeddingPrior(every_n_epochs=0),
        lambda: NetworkPictures(FGSM(), limit=9),
        lambda: NetworkPictures(FGSM(), every_n_epochs=0),
        lambda: CollapseGuard(patience=0),
        lambda: AdversarialImages(FGSM(), n=0),
    ],
)
def test_bad_settings(make: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        make()
