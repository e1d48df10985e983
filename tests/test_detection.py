"""Detectors, what their scores say by hand-made cases, and evaluate.py with one in front."""

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Brightness, Threshold, campaign, save, trained
from scipy.stats import binom
from torch import Tensor, nn

from adversarial_lightning import detectors
from adversarial_lightning.attacks import FGSM, PGD, Attack, DetectorAwarePGD, Restarts
from adversarial_lightning.attacks.core.threshold import flagged
from adversarial_lightning.checkpoints.files import digest_weights
from adversarial_lightning.checkpoints.spec import catalogue
from adversarial_lightning.cli import evaluate
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.datamodules.images import TensorImages
from adversarial_lightning.detectors import (
    LID,
    Detector,
    DetectorGuardedModel,
    ERDetector,
    FittedDetector,
    KernelDensity,
    MaxProbability,
    ReconstructionError,
    ScoreNorm,
    calibration_split,
    fit,
)
from adversarial_lightning.evaluation import Campaign, run_campaign
from adversarial_lightning.evaluation.campaign.merge import merge
from adversarial_lightning.evaluation.outcomes.detection import (
    account,
    auroc,
    calibration,
    closest_calls,
    criteria,
    malade,
    roc,
    threshold,
)
from adversarial_lightning.evaluation.outcomes.outcome import evaluate_batch
from adversarial_lightning.networks import ConvAutoencoder, Denoiser

INF = math.inf


def fitted(detector: FittedDetector) -> FittedDetector:
    data = Digits(size=8)
    fit(detector, data.dataset("train"), calibration_split(data.dataset("test")), FGSM(eps=0.2))
    return detector


class Embedding(nn.Module):
    """The trained net behind its own pixels as an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.classifier = nn.Sequential(nn.AvgPool2d(2), nn.Tanh()), trained()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.encoder(x).repeat_interleave(2, 2).repeat_interleave(2, 3))


# every detector of the catalogue -> one that works on 8x8 digits
DETECTORS: dict[str, Any] = {
    "ERDetector": lambda: fitted(ERDetector(Embedding())),
    "KernelDensity": lambda: fitted(KernelDensity(trained())),
    "LID": lambda: fitted(LID(trained(), k=10, references=50)),
    "MaxProbability": lambda: MaxProbability(trained()),
    "ReconstructionError": lambda: ReconstructionError(trained(), Denoiser(ConvAutoencoder(width=2), 0.01)),
    "ScoreNorm": lambda: ScoreNorm(trained(), Denoiser(ConvAutoencoder(width=2), 0.15, digest_weights(trained()))),
}


def test_the_table_lists_every_detector() -> None:
    leaves = {c.__name__ for c in catalogue(detectors) if issubclass(c, Detector)}
    assert leaves - {"Detector", "FittedDetector"} == set(DETECTORS)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_score_is_differentiable_and_a_property_of_the_image(name: str) -> None:
    detector = DETECTORS[name]().eval()
    x, _, _ = Digits(size=8).dataset("test").__getitems__(list(range(6)))
    whole = detector(x)
    assert whole.shape == (6,) and torch.allclose(torch.cat([detector.score(row[None]) for row in x]), whole, atol=1e-6)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(detector.score(x).sum(), x)
    assert gradient.isfinite().all() and gradient.flatten(1).abs().sum(1).gt(0).all()


def test_max_probability_by_hand() -> None:
    class Logits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(2, 2, 1, 1).log()
    x[0] = torch.tensor([0.0, -30.0]).view(2, 1, 1)  # 1 - p = 9.4e-14 would be 0 in float32
    x[1] = torch.tensor([1.0, 1.0]).view(2, 1, 1)
    score = MaxProbability(Logits()).score(x)
    assert score.tolist() == pytest.approx([math.exp(-30), 0.5], rel=1e-6, abs=0)


# --- thresholds and curves --------------------------------------------------------------------------------------------

# scores, target -> threshold, how many of the scores are flagged
THRESHOLDS: dict[str, tuple[list[float], float, float, int]] = {
    "ten of hundred": (list(range(100)), 0.1, 89, 10),
    "not quite one": ([1, 2, 3], 0.3, 3, 0),
    "one in three": ([1, 2, 3], 0.34, 2, 1),
    "no detector": ([1, 2, 3], 0.0, INF, 0),
    "all": ([1, 2, 3], 1.0, -INF, 3),
    "one image": ([5.0], 0.05, 5.0, 0),
    "ties": ([1, 2, 2, 2], 0.25, 2, 0),
    "constant": ([1, 1, 1], 0.5, 1, 0),
    "not a number counts as flagged": ([1, 2, math.nan, 3], 0.25, 3, 1),
    "rounding": (list(range(10)), 0.1, 8, 1),
}


@pytest.mark.parametrize("case", THRESHOLDS)
def test_threshold(case: str) -> None:
    scores, fpr, theta, count = THRESHOLDS[case]
    assert threshold(scores, fpr) == theta
    assert flagged(np.asarray(scores, float), theta).sum() == count <= fpr * len(scores) + 1e-9


def test_a_threshold_needs_scores_and_a_rate() -> None:
    for scores, fpr in (([], 0.1), ([1.0], -0.1), ([1.0], 1.1)):
        with pytest.raises(ValueError, match="needs scores"):
            threshold(scores, fpr)


def test_auroc_of_shifted_normals_and_by_hand() -> None:
    """Phi(delta / sqrt 2), and 1/2 for the same distribution; infinite scores and ties have their places."""
    rng = np.random.default_rng(0)
    for delta in (0.0, 1.0):
        expected = 0.5 * (1 + math.erf(delta / 2))
        assert auroc(rng.normal(size=5000), rng.normal(size=5000) + delta) == pytest.approx(expected, abs=0.02)
    assert auroc([0, 1], [INF, math.nan]) == 1 and auroc([0, 1], [1, -1]) == 0.375
    assert auroc([], [1]) is None and roc([1], []) is None
    curve = roc([0, 1], [1, 2])
    assert curve == {"fpr": [0, 0, 0.5, 1], "tpr": [0, 0.5, 1, 1]}
    thin = roc(rng.normal(size=3000), rng.normal(size=3000))
    assert thin and len(thin["fpr"]) <= 101 and (thin["fpr"][-1], thin["tpr"][-1]) == (1, 1)


# --- accountings ------------------------------------------------------------------------------------------------------

YES, NO = True, False


def flags(*values: bool) -> Any:
    return np.array(values, bool)


def test_criteria_by_hand() -> None:
    """Ten adversarial images, four flagged; of the six others three are right; one of five clean ones is flagged."""
    adversarial = flags(*[YES] * 4, *[NO] * 6)
    right = flags(YES, NO, NO, NO, YES, YES, YES, NO, NO, NO)
    found = criteria(adversarial, right, flags(YES, NO, NO, NO, NO))
    assert found == {
        **{"acc_adv": 0.4, "acc_nadv": 0.8, "acc_cla": 0.5, "acc_com": 0.7},
        "of": {"acc_adv": 10, "acc_nadv": 5, "acc_cla": 6, "acc_com": 10},
    }
    assert pytest.approx(0.7) == 0.4 + (1 - 0.4) * 0.5  # the identity between them
    everything = criteria(flags(YES, YES), flags(NO, YES), flags(YES))
    assert (everything["acc_com"], everything["acc_cla"], everything["acc_nadv"]) == (1, None, 0)
    nothing = criteria(flags(NO, NO), flags(NO, YES), flags(NO))
    assert nothing["acc_com"] == nothing["acc_cla"] == 0.5
    empty = criteria(flags(), flags(), flags())
    assert set(empty.pop("of").values()) == {0} and set(empty.values()) == {None}


def test_malade_by_hand() -> None:
    """All four of flagged and right, without and under an attack."""
    flagged_, right = flags(YES, YES, NO, NO), flags(YES, NO, YES, NO)
    found = malade(flagged_, right, flagged_, right)
    assert found == {
        **{"clean": 0.25, "robust": 0.75, "clean_lenient": 0.75},
        **{"robust_error": 0.25, "accepted_accuracy": 0.5, "strict": 0.25},
    }
    assert malade(flagged_, right, flags(*[YES] * 4), right)["accepted_accuracy"] is None


def rows(*entries: tuple[int, bool, float, bool]) -> Any:
    index, right, score, counts = zip(*entries, strict=True)
    return {"index": np.array(index), "right": np.array(right), "score": np.array(score), "counts": np.array(counts)}


def test_the_attacker_picks_its_closest_call() -> None:
    """Of three runs: a wrong and quiet one, else the quietest wrong one, else the quietest."""
    runs = [
        rows((1, NO, 5.0, YES), (2, YES, 1.0, YES), (3, YES, 4.0, YES)),
        rows((1, NO, 2.0, YES), (2, NO, 9.0, YES), (3, YES, 3.0, NO)),
        rows((1, YES, 0.0, YES), (3, YES, math.nan, YES)),
    ]
    best = closest_calls(runs)
    assert best["index"].tolist() == [1, 2, 3] and best["score"].tolist() == [2, 9, 3]
    assert best["right"].tolist() == [NO, NO, YES] and best["counts"].tolist() == [YES, YES, NO]


def test_account_by_hand() -> None:
    """Sample 3 is wrong without an attack and so its own adversarial image; sample 4 stays right. Both count."""
    clean = rows((1, YES, 0.1, YES), (2, YES, 0.9, YES), (3, NO, 0.2, YES), (4, YES, 0.3, YES))
    attacked = rows((1, NO, 0.8, YES), (2, NO, 0.4, YES), (4, YES, 0.3, NO))
    entry = account(clean, attacked, {0.0: INF, 0.25: 0.5})
    none, quarter = entry["levels"]
    assert none["theta"] is None and none["acc_adv"] == 0 and none["malade"]["robust"] == 0.25
    keys = ("acc_adv", "acc_nadv_clean", "acc_cla", "acc_com")
    assert [quarter[key] for key in keys] == [0.25, 0.75, pytest.approx(1 / 3), 0.5]
    assert [quarter["of"][key] for key in keys] == [4, 4, 3, 4] and (entry["changed"], entry["succeeded"]) == (2, 2)
    assert quarter["malade"] == {
        **{"clean": 0.5, "robust": 0.5, "clean_lenient": 0.75},
        **{"robust_error": 0.5, "accepted_accuracy": pytest.approx(1 / 3), "strict": 0.25},
    }
    assert entry["auroc"] == entry["auroc_succeeded"] == pytest.approx(6 / 8)


# --- campaigns --------------------------------------------------------------------------------------------------------


def test_scores_are_recorded_and_bad_ones_are_infinite() -> None:
    x = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    model = DetectorGuardedModel(Threshold(), Brightness(broken_above=0.5))
    outcomes, _ = evaluate_batch(
        model, None, x, torch.tensor([0, 1]), torch.arange(2), seed=0, name="clean", detector=model.detector
    )
    assert [o.score for o in outcomes] == [0.25, INF]

    class Odd(Brightness):
        def score(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match="gave scores"):
        evaluate_batch(model, None, x, torch.tensor([0, 1]), torch.arange(2), seed=0, name="clean", detector=Odd())


def test_every_run_sees_every_sample_and_mode_worst_case_is_refused(tmp_path: Path) -> None:
    """A run that fools the classifier may be flagged where another one gets past both."""
    suite: dict[str, Attack] = {"a": Restarts(PGD(eps=0.3, steps=3), n=3), "b": FGSM(eps=0.3)}
    data = Digits(size=8).dataset("test")
    c = Campaign(suite, data, 20, 0, tmp_path, "test", scored=True)
    model = DetectorGuardedModel(trained(), MaxProbability(trained()))
    calibration(tmp_path, lambda: np.linspace(0, 1, 50), {"detector": None, "aimed_fpr": 0.05})
    seen: list[tuple[str, int]] = []
    run_campaign(c, model, on_progress=lambda name, done, broken: seen.append((name, done)))
    counts = [len(c.table(run)["index"]) for name in suite for run in c.runs(name)]
    assert len(set(counts)) == 1 and counts[0] > 10
    assert sum(done for name, done in seen if name == "a") == 60
    results = merge(c)
    first = results["attacks"][0]
    assert first["robust_accuracy"] < 0.5 and first["restarts"] == 3
    assert [level["fpr"] for level in first["detection"]["levels"]] == [0.0, 0.01, 0.05, 0.1]
    zero = first["detection"]["levels"][0]["malade"]
    assert zero["robust"] == first["robust_accuracy"] and zero["clean"] == results["clean_accuracy"]
    assert results["worst_case"][0]["detection"]["levels"][0]["malade"]["robust"] == pytest.approx(
        results["worst_case"][0]["robust_accuracy"]
    )
    assert results["detection"]["calibration"] == {"split": "val", "n": 50, "invalid": 0}
    with pytest.raises(ValueError, match="worst_case"):
        Campaign(suite, data, 20, 0, tmp_path, "test", mode="worst_case", scored=True)


def test_a_point_outside_the_ball_gets_past_nobody(tmp_path: Path) -> None:
    from helpers import Shift

    data = TensorImages(torch.full((4, 1, 2, 2), 0.45), torch.zeros(4, dtype=torch.long))
    c = Campaign({"far": Shift(0.3, eps=0.1)}, data, 4, 0, tmp_path, "test", scored=True)
    calibration(tmp_path, lambda: np.zeros(9), {"detector": None, "aimed_fpr": 0.05})
    run_campaign(c, DetectorGuardedModel(Threshold(), Brightness()))
    entry = merge(c)["attacks"][0]["detection"]
    assert entry["auroc"] is None and entry["levels"][0]["malade"]["robust"] == 1


def test_calibration_is_measured_once(tmp_path: Path) -> None:
    about = {"detector": {"class_path": "X"}, "aimed_fpr": 0.05}
    assert calibration(tmp_path, lambda: np.array([1.0, INF, 3.0]), about).tolist() == [1, INF, 3]

    def never() -> Any:
        raise AssertionError

    assert calibration(tmp_path, never, about).tolist() == [1, INF, 3]
    kept = json.loads((tmp_path / "calibration.json").read_text())
    assert (kept["n"], kept["invalid"], kept["split"]) == (3, 1, "val")
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(ValueError, match=r"calibration\.json is missing or damaged"):
        calibration(tmp_path, never, about)


SUITE = """
pgd: {class_path: PGD, init_args: {eps: 0.15, steps: 8}}
aware: {class_path: DetectorAwarePGD, init_args: {eps: 0.15, steps: 40, combine: selective}}
"""


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.long
def test_evaluate_with_a_detector_on_one_process_and_on_two(
    tmp_path: Path, handler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.ckpt")
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "detector.yaml").write_text("class_path: detectors.MaxProbability")
    argv = ["--checkpoint", tmp_path / "a.ckpt", "--suite", tmp_path / "suite.yaml", "--limit", 60]
    argv += ["--detector", tmp_path / "detector.yaml", "--accelerator", "cpu", "--audit", "none", "--output"]
    found = []
    for world in (1, 2):
        for rank in range(world):
            for name, value in {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank}.items():
                monkeypatch.setenv(name, str(value))
            assert evaluate.main([*map(str, argv), str(tmp_path / str(world))]) == 0
        found.append(json.loads((tmp_path / str(world) / "results.json").read_text()))
    one, two = found
    for results in found:
        assert results["detection"]["detector"]["class_path"] == "detectors.MaxProbability"
        assert results["detection"]["calibration"]["n"] == 200  # the held-out training images
        levels = results["detection"]["clean"]["levels"]
        assert [level["fpr"] for level in levels] == [0.0, 0.01, 0.05, 0.1]
        for level in levels:  # on test images, which no threshold has seen
            low, high = binom.interval(0.99, 60, level["fpr"])
            assert low <= 60 * level["realised_fpr"] <= high
    pgd, aware = (a["detection"] for a in one["attacks"])
    five = [{level["fpr"]: level for level in entry["levels"]}[0.05] for entry in (pgd, aware)]
    assert five[1]["malade"]["robust_error"] > five[0]["malade"]["robust_error"]  # it knows the threshold
    assert aware["auroc_succeeded"] < pgd["auroc_succeeded"]
    assert pgd == two["attacks"][0]["detection"] and aware == two["attacks"][1]["detection"]


@pytest.mark.long
def test_a_threshold_from_test_images_is_exact_there_and_said_to_be(
    tmp_path: Path, handler: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """MALADE's paper calibrates so; by default no test image is looked at. A rate of 1 turns everything away."""
    save(tmp_path / "a.ckpt")
    (tmp_path / "suite.yaml").write_text("fgsm: {class_path: attacks.FGSM, init_args: {eps: 0.1}}")
    (tmp_path / "detector.yaml").write_text("class_path: detectors.MaxProbability")
    argv = ["--checkpoint", tmp_path / "a.ckpt", "--suite", tmp_path / "suite.yaml", "--calibrate", "test"]
    argv += ["--detector", tmp_path / "detector.yaml", "--accelerator", "cpu", "--audit", "none", "--output", tmp_path]
    assert evaluate.main([*map(str, argv)]) == 0
    detection = json.loads((tmp_path / "results.json").read_text())["detection"]
    found = {level["fpr"]: level["realised_fpr"] for level in detection["clean"]["levels"]}
    n = detection["calibration"]["n"]
    assert detection["calibration"]["split"] == "test" and "images (test)" in (tmp_path / "report.html").read_text()
    assert n == len(Digits().dataset("test"))
    assert [found[fpr] for fpr in (0.01, 0.05, 0.1)] == pytest.approx([int(fpr * n) / n for fpr in (0.01, 0.05, 0.1)])
    assert evaluate.main([*map(str, argv[:-1]), str(tmp_path / "x"), "--fpr", "1"]) == 2
    assert "--fpr is a share" in capsys.readouterr().err


def test_the_aware_attack_needs_a_detector(tmp_path: Path) -> None:
    c = campaign(tmp_path, 4, {"aware": DetectorAwarePGD()})
    with pytest.raises(ValueError, match="attribute 'detector'"):
        run_campaign(c, trained())
