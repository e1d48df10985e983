"""Fitted detectors: densities and dimensions by closed forms, what they learn, their files, and the joint attack."""

import math
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Brightness, Threshold, Unbounded, save_network
from scipy.stats import norm as gauss
from sklearn.neighbors import KernelDensity as Oracle
from torch import Tensor, nn

from adversarial_lightning.attacks import FGSM, FMN, PGD, DetectorAwarePGD, Joint, Noise, Within, noise_for
from adversarial_lightning.attacks.core.norms import displacement
from adversarial_lightning.cli import evaluate, fit_detector, main
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.datamodules.images import TensorImages
from adversarial_lightning.detectors import (
    LID,
    Detector,
    DetectorGuardedModel,
    ERDetector,
    FittedDetector,
    KernelDensity,
    calibration_split,
    fit,
    fitting,
)
from adversarial_lightning.detectors.density import ClassDensities, choose_sigma, log_density
from adversarial_lightning.detectors.fitting import features, versions_of
from adversarial_lightning.detectors.kernel_density import dropping
from adversarial_lightning.detectors.lid import local_dimension
from adversarial_lightning.detectors.noisy import noisy_copies
from adversarial_lightning.evaluation import Campaign, run_campaign
from adversarial_lightning.evaluation.campaign.merge import merge
from adversarial_lightning.evaluation.outcomes.detection import auroc, calibration
from adversarial_lightning.networks import ERNet
from adversarial_lightning.networks.eval_mode import frozen_eval
from adversarial_lightning.networks.features import bends

YES, NO = True, False


class Tiny(nn.Module):
    """An encoder of two hidden layers with dropout, and a classifier: what every detector here can sit on."""

    def __init__(self, inplace: bool = False, dropout: float = 0.3) -> None:
        super().__init__()
        self.inplace, self.dropout = inplace, dropout
        relus = [nn.ReLU(inplace=inplace) for _ in range(3)]
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), relus[0], nn.Conv2d(4, 6, 2), relus[1]),
            *(nn.Flatten(), nn.Linear(24, 3)),
        )
        self.classifier = nn.Sequential(nn.Linear(3, 12), relus[2], nn.Dropout(dropout), nn.Linear(12, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.encoder(x))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """Trained for a second on 8x8 digits."""
    torch.manual_seed(0)
    net = Tiny()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    x, y, _ = Digits(size=8).dataset("train").__getitems__(list(range(1000)))
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


MAKE: dict[str, Any] = {
    "ER1": lambda net, **more: ERDetector(net, **more),
    "ER2": lambda net, **more: ERDetector(net, code="combined", **more),
    "ER2 channels": lambda net, **more: ERDetector(net, code="combined", hidden_stat="channel", **more),
    "KD": lambda net, **more: KernelDensity(net, **more),
    "KD logits": lambda net, **more: KernelDensity(net, layer="classifier", h=1.2, **more),
    "KD dropout": lambda net, **more: KernelDensity(net, uncertainty=True, passes=5, **more),
    "LID": lambda net, **more: LID(net, k=10, references=50, batches=2, **more),
}
EVERY = pytest.mark.parametrize("name", MAKE)


@pytest.fixture(scope="module")
def fitted(net: nn.Module) -> dict[str, FittedDetector]:
    data, found = Digits(size=8), {}
    for name, make in MAKE.items():
        found[name] = make(net)
        fit(found[name], data.dataset("train"), calibration_split(data.dataset("test")), FGSM(eps=0.2))
    return found


def images(n: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    return Digits(size=8).dataset("test").__getitems__(list(range(n)))


def score(detector: Detector, x: Tensor, index: Tensor) -> Tensor:
    with frozen_eval(detector), torch.no_grad(), noise_for(detector, Noise.keyed(0, index)):
        return detector.score(x)


# --- density ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 350, 10**6])
@pytest.mark.parametrize("dim", [1, 4, 32])
def test_density_is_scikit_learns_with_one_leaf(dim: int, most: int) -> None:
    """Its default tree loses whole nats at D = 32, so it is made to look at every point."""
    g = torch.Generator().manual_seed(dim)
    points, queries = (torch.randn(n, dim, generator=g, dtype=torch.float64) + 5 for n in (50, 20))
    for h in (0.3, 2.0):
        oracle = Oracle(bandwidth=h, leaf_size=51).fit(points.numpy()).score_samples(queries.numpy())
        assert np.abs(log_density(queries, points, h * math.sqrt(2), most).numpy() - oracle).max() < 1e-9
        single = log_density(queries.float(), points.float(), h * math.sqrt(2), most)
        assert np.abs(single.numpy() - oracle).max() < 1e-3


def test_density_integrates_to_one_and_one_point_is_a_gaussian() -> None:
    grid = torch.linspace(-30, 30, 6001, dtype=torch.float64)[:, None]
    points = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    assert float(log_density(grid, points, 0.7).exp().sum() * 0.01) == pytest.approx(1, abs=1e-9)
    one = log_density(grid, points[:1], 0.7)
    assert np.allclose(one.numpy(), gauss.logpdf(grid[:, 0].numpy(), -1, 0.7 / math.sqrt(2)), atol=1e-9)
    far = log_density(points[:1] + 70, points, 0.7)
    assert far.isfinite().all() and far < -5000


def test_density_has_the_gradient_of_finite_differences_also_at_a_point() -> None:
    points = torch.randn(9, 3, dtype=torch.float64)
    at = torch.cat([torch.randn(3, 3, dtype=torch.float64), points[:1]]).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: log_density(q, points, 0.8), at)
    (mode,) = torch.autograd.grad(log_density(at[-1:], points[:1], 0.8).sum(), at)
    assert not mode.any()


def test_densities_by_class_and_standardised() -> None:
    codes = torch.randn(60, 2, dtype=torch.float64) * torch.tensor([100.0, 0.01]) + 3
    codes[:, 1] = 7  # constant: its scale is 1
    labels = torch.arange(60) % 3
    bank = ClassDensities(0.9, standardise=True)
    bank.fit(codes, labels, 3)
    scaled = (codes - codes.mean(0)) / torch.stack([codes[:, 0].std(unbiased=False), torch.tensor(1.0)])
    classes = torch.tensor([2, 0, 2, 1])
    expected = torch.cat([log_density(scaled[i : i + 1], scaled[labels == t], 0.9) for i, t in enumerate(classes)])
    assert torch.allclose(bank(codes[:4], classes), expected, atol=1e-9)
    assert bank(codes[:0], classes[:0]).shape == (0,)


def test_the_width_with_the_best_held_out_density_is_chosen() -> None:
    """Of 1-D normal data h = 1.06 n^(-1/5) (Silverman) is best, up to the grid's factor of 2; and the curve is kept."""
    codes = torch.randn(2000, 1, dtype=torch.float64)
    curve = choose_sigma(codes, torch.zeros(2000, dtype=torch.long))
    best = max(curve, key=lambda w: curve[w])
    assert len(curve) > 8 and 1 / 2.5 < best / math.sqrt(2) / (1.06 * 2000**-0.2) < 2.5
    bank = ClassDensities(None, standardise=False)
    bank.fit(codes, torch.zeros(2000, dtype=torch.long), 1)
    assert float(bank.width) == pytest.approx(best) and bank.curve == curve


def codes_of(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).view(shape)


@pytest.mark.parametrize(
    "make,says",
    [
        (lambda: ClassDensities(0.0, NO), "above 0 and finite, not 0"),
        (lambda: ClassDensities(-1.0, NO), "above 0"),
        (lambda: ClassDensities(math.nan, NO), "above 0"),
        (lambda: ClassDensities(1.0, NO).fit(codes_of(4, 2), torch.tensor([0, 0, 2, 2]), 3), "class 1 has no training"),
        (lambda: ClassDensities(1.0, NO).fit(codes_of(4, 2) / 0, torch.tensor([0, 0, 1, 1]), 2), "4 training codes"),
        (lambda: choose_sigma(torch.ones(40, 2), torch.zeros(40, dtype=torch.long)), "coincide"),
        (lambda: choose_sigma(torch.ones(2, 2), torch.zeros(2, dtype=torch.long)), "too few"),
        (lambda: KernelDensity(Tiny(), sigma=1.0, h=1.0), "give one"),
        (lambda: KernelDensity(Tiny(), h=-1.0), "above 0"),
        (lambda: KernelDensity(Tiny(), uncertainty=True, passes=1), "at least 2"),
        (lambda: KernelDensity(Tiny(dropout=0), uncertainty=True), "needs a network with dropout"),
        (lambda: KernelDensity(nn.Linear(2, 2)), "name a layer"),
        (lambda: ERDetector(nn.Linear(2, 2)), "needs a network with an encoder"),
        (lambda: LID(Tiny(), k=100), "between 2 and references"),
        (lambda: LID(Tiny()).fit_reference(range(5)), "need 500 images, not 5"),
        (lambda: LID(Tiny()).score(torch.rand(1, 1, 8, 8)), "is not fitted"),
        (lambda: ERDetector(Tiny(), fitted="nowhere"), "no fitted detector nowhere"),
        (lambda: calibration_split(range(2)), "leaves set I or set II empty"),
        (
            lambda: fitting.test_split(TensorImages(torch.rand(2, 1, 2, 2), torch.zeros(2)), frozenset([0, 1])),
            "all 2 test images",
        ),
        (lambda: Joint([]), "at least one attack"),
    ],
)
def test_bad_input_is_named(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


# --- dimension --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 5, 10])
def test_lid_of_distances_that_grow_like_a_ball(d: int) -> None:
    """Distances u^(1/d): the mean of 1 / LID, corrected for its term that is always 0, is 1 / d."""
    u = torch.rand(20000, 20, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    found = local_dimension(u ** (1 / d), 20)
    assert float((1 / found).mean() * 20 / 19) == pytest.approx(1 / d, rel=0.02)
    assert torch.allclose(local_dimension(7.5 * u ** (1 / d), 20), found)


# LID of uniform cubes by the size of the reference, as measured: edges bias it down
CUBES = {(2, 2000): 2.18, (5, 2000): 4.91, (10, 2000): 9.25, (2, 100): 1.98, (5, 100): 4.38, (10, 100): 7.79}


@pytest.mark.parametrize("d,n", CUBES)
def test_lid_of_uniform_cubes(d: int, n: int) -> None:
    g = torch.Generator().manual_seed(0)
    found = [
        local_dimension(torch.cdist(torch.rand(200, d, generator=g), torch.rand(n, d, generator=g)), 20)
        for _ in range(3)
    ]
    assert float(torch.cat(found).mean()) == pytest.approx(CUBES[d, n], rel=0.15)


def test_lid_of_ties_and_duplicates_is_finite() -> None:
    ties, copies = torch.ones(1, 30), torch.cat([torch.zeros(1, 5), torch.rand(1, 25)], 1)
    assert local_dimension(ties, 20).tolist() == [1e3]
    assert 0 < float(local_dimension(copies, 20)) < 1e3
    assert local_dimension(torch.zeros(1, 30), 20).tolist() == [1e3]


@pytest.mark.long
def test_a_query_is_never_its_own_neighbour(fitted: dict[str, FittedDetector]) -> None:
    """Of an image that is a reference, the features are those among the other references."""
    lid = fitted["LID"]
    assert isinstance(lid, LID)
    x = lid.images[:1]
    with torch.no_grad():
        own, moved = lid.features(x), lid.features((x + 1e-4).clamp(0, 1))
    assert own.isfinite().all() and (own < 50).all()
    assert own[0, 0] - moved[0, 0] > 0.1  # a twin very near is a neighbour and lowers the figure
    leak = lid.among(x, lid.images[:50])
    assert leak.shape == own.shape


def test_lid_has_a_feature_for_the_input_each_layer_and_the_logits(net: nn.Module) -> None:
    """The first from pixels and the last from logits, by hand; the layers between are activations and poolings."""
    lid = LID(net, k=10, references=50, batches=1)
    lid.fit_reference(Digits(size=8).dataset("train"))
    x = images()[0]
    with torch.no_grad():
        found = lid.features(x)
        by_hand = [
            local_dimension(torch.cdist(a.flatten(1), b.flatten(1)), 10)
            for a, b in ((x, lid.images), (net(x), net(lid.images)))
        ]
    assert found.shape == (8, 2 + len(bends(net)))
    assert torch.allclose(found[:, 0], by_hand[0], rtol=1e-4) and torch.allclose(found[:, -1], by_hand[1], rtol=1e-3)


def test_only_the_combined_code_is_standardised(net: nn.Module) -> None:
    """Layer means and embedding are of unlike scale; the embedding alone (ER1) keeps its own."""
    for code, expected in (("embedding", False), ("combined", True)):
        detector = ERDetector(net, code=code)  # type: ignore[arg-type]
        detector.fit_reference(Digits(size=8).dataset("train"))
        points = detector.densities.points
        spread = points.std(0, unbiased=False)
        assert torch.allclose(spread, torch.ones_like(spread), atol=1e-3) == expected, code


# --- every detector ---------------------------------------------------------------------------------------------------


@EVERY
def test_a_score_is_a_property_of_the_image(name: str, fitted: dict[str, FittedDetector]) -> None:
    x, _, index = images()
    whole = score(fitted[name], x, index)
    alone = torch.cat([score(fitted[name], x[i : i + 1], index[i : i + 1]) for i in range(len(x))])
    assert whole.shape == (8,) and torch.allclose(whole, alone, atol=1e-4)
    assert torch.equal(fitted[name].own_theta < whole, fitted[name].probability(x) > 0.5) or name == "KD dropout"


@EVERY
def test_gradients_are_those_of_finite_differences(name: str, net: nn.Module, tmp_path: Path) -> None:
    """In float64, through classifier, codes and regression."""
    data = Digits(size=8)
    detector = MAKE[name](net)
    fit(detector, data.dataset("train"), calibration_split(data.dataset("test")), FGSM(eps=0.2))
    state = {n: t.clone() for n, t in net.state_dict().items()}
    try:
        detector.double()
        x, _, index = images(3)
        x = x.double() * 0.9 + 0.05
        direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

        def at(z: Tensor) -> Tensor:
            with frozen_eval(detector), noise_for(detector, Noise.keyed(0, index)):
                return detector.score(z)

        z = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(at(z).sum(), z)
        slope = (at(x + 1e-7 * direction) - at(x - 1e-7 * direction)) / 2e-7
        assert torch.allclose((gradient * direction).flatten(1).sum(1), slope, rtol=1e-4, atol=1e-4)
    finally:
        net.float().load_state_dict(state)


@EVERY
def test_a_file_holds_the_whole_detector(
    name: str, net: nn.Module, fitted: dict[str, FittedDetector], tmp_path: Path
) -> None:
    x, _, index = images()
    path = tmp_path / "deep" / "detector.safetensors"
    fitted[name].save(path)
    again = MAKE[name](net, fitted=str(path))
    assert torch.equal(score(again, x, index), score(fitted[name], x, index))
    assert again.seen == fitted[name].seen and again.about == fitted[name].about and len(again.seen) == 72
    with pytest.raises(ValueError, match="another network"):
        MAKE[name](Tiny(), fitted=str(path))
    other = MAKE["LID"] if name != "LID" else MAKE["KD"]
    with pytest.raises(ValueError, match="was fitted"):
        other(net, fitted=str(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is no fitted detector"):
        MAKE[name](net, fitted=str(path))


def test_other_settings_than_the_files_are_refused(
    net: nn.Module, fitted: dict[str, FittedDetector], tmp_path: Path
) -> None:
    fitted["ER1"].save(tmp_path / "er1.safetensors")
    with pytest.raises(ValueError, match="with other code"):
        ERDetector(net, code="combined", fitted=str(tmp_path / "er1.safetensors"))


# --- codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [NO, YES])
def test_the_combined_code_by_hand(inplace: bool) -> None:
    torch.manual_seed(0)
    net = Tiny(inplace).eval()
    x, _, _ = images(4)
    with torch.no_grad():
        logits, code = ERDetector(net, code="combined").codes(x)
        first = net.encoder[1](net.encoder[0](x)).relu()
        second = net.encoder[3](first).relu()
        expected = torch.cat([first.mean((1, 2, 3))[:, None], second.mean((1, 2, 3))[:, None], net.encoder(x)], 1)
        assert torch.allclose(code, expected, atol=1e-6) and torch.equal(logits, net(x))
        channels = ERDetector(net, code="combined", hidden_stat="channel").codes(x)[1]
        assert torch.allclose(channels[:, :10], torch.cat([first.mean((2, 3)), second.mean((2, 3))], 1), atol=1e-6)
        assert ERDetector(net).codes(x)[1].shape == (4, 3)
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize("data,columns,shape", [("mnist", 8, (1, 28, 28)), ("cifar10", 32, (3, 32, 32))])
def test_sizes_of_the_papers_codes(data: Any, columns: int, shape: tuple[int, ...]) -> None:
    net = ERNet(data, width=8).eval()
    with torch.no_grad():
        assert ERDetector(net, code="combined").codes(torch.rand(2, *shape))[1].shape == (2, columns)


def test_the_density_is_that_of_the_predicted_class() -> None:
    """A classifier that changes its mind changes the feature, though the code stays."""

    class Flips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.sign = nn.Flatten(), 1.0

        def forward(self, x: Tensor) -> Tensor:
            s = self.sign * (self.encoder(x).sum(1, keepdim=True) - 2)
            return torch.cat([-s, s], 1)

    x = torch.cat([0.3 * torch.rand(50, 1, 2, 2), 0.7 + 0.3 * torch.rand(50, 1, 2, 2)])
    detector = ERDetector(Flips(), sigma=0.3)
    detector.fit_reference(TensorImages(x, torch.arange(100) // 50))
    before = detector.features(x)
    detector.classifier.sign = -1.0  # type: ignore[assignment]
    after = detector.features(x)
    assert (before - after > 1).all()


def test_dropout_alone_is_switched_on() -> None:
    net = Tiny()
    detector = KernelDensity(net.eval(), uncertainty=True, passes=200)
    x, _, index = images(5)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    detector.noise = Noise.keyed(0, index)
    found = detector.variance(x)
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items()) and not net.training
    net.classifier[2].train()  # torch's own dropout
    with torch.no_grad():
        theirs = torch.stack([net(x).softmax(1) for _ in range(200)]).var(0, unbiased=False).mean(1)
    assert torch.allclose(found, theirs, rtol=0.4) and (found > 0).all()


def test_whole_channels_fall_as_one() -> None:
    x = torch.ones(4, 6, 3, 3)
    net = nn.Sequential(nn.Dropout2d(0.5)).eval()
    with dropping(net, Noise.keyed(0, torch.arange(4))):
        found = net(x).flatten(2)
    assert (found == found[:, :, :1]).all() and {0.0, 2.0} == set(found.unique().tolist())
    assert torch.equal(net(x), x)


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_the_regression_is_scikit_learns_and_low_density_is_suspicious(net: nn.Module) -> None:
    detector, g = ERDetector(net), torch.Generator().manual_seed(0)
    normal, strange = torch.randn(300, 1, generator=g), torch.randn(150, 1, generator=g) - 3
    detector.fit_detector(normal[:150], normal[150:], strange)
    assert float(detector.weight) < 0
    detector.features = lambda x: x  # type: ignore[method-assign]
    assert float(detector.score(torch.tensor([[-5.0]]))) > 0 > float(detector.score(torch.tensor([[1.0]])))
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = torch.cat([normal, strange]).numpy(), np.repeat([0, 1], [300, 150])
    theirs = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y).decision_function(x)
    assert np.allclose(detector.score(torch.from_numpy(x)).numpy(), theirs, atol=1e-4)
    detector.fit_detector(strange, strange[:0], normal)  # labels swapped
    assert float(detector.weight) > 0


SHIFTS = {0.0: 0.5, 1.0: float(gauss.cdf(1 / math.sqrt(2)))}


@pytest.mark.parametrize("shift", SHIFTS)
def test_auroc_of_what_is_fitted_on_shifted_normals(shift: float, net: nn.Module) -> None:
    """Phi(delta / sqrt 2) on other draws than it was fitted on, and 1/2 where adversarial images are clean ones."""
    detector, g = ERDetector(net), torch.Generator().manual_seed(1)
    detector.features = lambda x: x  # type: ignore[method-assign]
    detector.fit_detector(*(torch.randn(1000, 1, generator=g) for _ in "cn"), torch.randn(1000, 1, generator=g) - shift)
    clean, adversarial = torch.randn(4000, 1, generator=g), torch.randn(4000, 1, generator=g) - shift
    area = auroc(detector.score(clean), detector.score(adversarial))
    assert area is not None and min(abs(area - SHIFTS[shift]), abs(1 - area - SHIFTS[shift])) < 0.03


def test_set_one_is_a_fifth_whatever_the_detector_and_set_two_the_rest(fitted: dict[str, FittedDetector]) -> None:
    test = Digits(size=8).dataset("test")
    one = calibration_split(test)
    seen = frozenset(one.indices.tolist())
    two = fitting.test_split(test, seen)
    assert two.drawn_from == 360 and fitting.test_split(test, frozenset()).drawn_from is None  # 288 are a sample
    assert len(one) == 72 and len(two) == 288 and not seen & set(two.indices.tolist())
    assert all(detector.seen == seen for detector in fitted.values())
    assert calibration_split(test, seed=1).indices.tolist() != one.indices.tolist()


def test_set_two_is_not_looked_at(net: nn.Module) -> None:
    """Other images there, the same weights."""
    data = Digits(size=8)
    test, train = data.dataset("test"), data.dataset("train")
    seen = calibration_split(test).indices
    pixels = test.pixels.clone()  # type: ignore[attr-defined]
    others = torch.ones(len(pixels), dtype=torch.bool).index_fill(0, seen, NO)
    pixels[others] = torch.rand(int(others.sum()), 1, 8, 8)
    changed = TensorImages(pixels, torch.zeros(len(pixels), dtype=torch.long).index_copy(0, test.indices, test.labels))
    weights = []
    for images_ in (test, changed.select(test.indices)):
        detector = KernelDensity(net, h=1.0)
        fit(detector, train, calibration_split(images_), FGSM(eps=0.2))
        weights.append([*detector.weight.tolist(), *detector.mean.tolist()])
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "clean,adversarial,says",
    [
        (codes_of(3, 1), codes_of(0, 1), "all 3 images to fit a detector on are clean"),
        (codes_of(0, 1), codes_of(3, 1), "all 3 images to fit a detector on are adversarial"),
        (codes_of(3, 1), codes_of(3, 1) / 0, "features that are not finite"),
    ],
)
def test_a_set_that_teaches_nothing_is_refused(clean: Tensor, adversarial: Tensor, says: str, net: nn.Module) -> None:
    with pytest.raises(ValueError, match=says):
        ERDetector(net).fit_detector(clean, codes_of(0, 1), adversarial)


def test_what_lies_outside_the_ball_was_not_found(net: nn.Module) -> None:
    """Nor does it make the noise longer."""
    one = calibration_split(Digits(size=8).dataset("test"))
    search = FMN(norm="l2", steps=20)
    x, _, z, found, _, _ = versions_of(net, one, search, seed=0, batch_size=50)
    lengths = displacement(z, x).flatten(1).norm(dim=1)
    eps = float(lengths[found].median())
    _, noisy, _, within, _, _ = versions_of(net, one, Within(search, eps), seed=0, batch_size=50)
    assert torch.equal(within, found & (lengths <= eps)) and 0 < within.sum() < found.sum()
    mean = (noisy - x)[within].flatten(1).norm(dim=1).mean()
    assert float(mean) == pytest.approx(float(lengths[within].mean()), rel=0.01)


def test_the_ball_of_what_was_found_is_judged_in_float64(net: nn.Module) -> None:
    """As the campaign does: in float32 the first is within eps, and some of the others are without."""

    class Placed(Unbounded):
        eps = 0.1

        def images(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
            return torch.full_like(x, 0.1)  # 0.100000001 in float32

    images = TensorImages(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64), torch.arange(1))
    assert not versions_of(net, images, Placed(), seed=0, batch_size=1)[3].any()

    x, z = torch.rand(2, 200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = displacement(z, x).flatten(1).norm(dim=1)
    farther = ((z - x).flatten(1).norm(dim=1).double() > exact).nonzero()[:, 0]
    assert len(farther) > 20
    for i in farther[:20].tolist():

        class Inside(Unbounded):
            norm, eps = "l2", float(exact[i])

            def images(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
                return z[i : i + 1]  # noqa: B023

        images = TensorImages(x[i : i + 1], torch.zeros(1, dtype=torch.int64), torch.arange(1))
        assert versions_of(net, images, Inside(), seed=0, batch_size=1)[3].all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_is_as_long_as_the_attack(norm: str) -> None:
    x = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()  # where clipping bites
    z = (x + 0.3 * (0.5 - x).sign()).clamp(0, 1)
    y, std = noisy_copies(x, z, Noise.keyed(0, torch.arange(200)), norm)
    lengths = [float((v - x).flatten(1).norm(dim=1).mean()) for v in (y, z)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.01) and std > 0.3 and y.min() >= 0 and y.max() <= 1
    same, none = noisy_copies(x, x, Noise.keyed(0, torch.arange(200)), norm)
    assert torch.equal(same, x) and none == 0
    assert noisy_copies(x[:0], x[:0], Noise.keyed(0, torch.arange(0)), norm)[1] == 0


def test_noise_of_an_l0_attack_sets_as_many_pixels() -> None:
    x = torch.full((3, 1, 8, 8), 0.5)
    z = x.clone()
    for row, count in enumerate((0, 3, 10)):
        z[row].view(-1)[:count] = 0.0
    y, mean = noisy_copies(x, z, Noise.keyed(0, torch.arange(3)), "l0")
    assert (y == 1).flatten(1).sum(1).tolist() == [0, 3, 10] and mean == pytest.approx(13 / 3)


def test_scores_that_are_no_numbers_are_flagged_with_a_warning() -> None:
    detector = Brightness(broken_above=0.6)
    detector.theta = 0.5
    x = torch.tensor([0.2, 0.55, 0.9]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert detector.flag(x).tolist() == [NO, YES, YES]
    assert len(seen) == 1 and "1 scores are no numbers" in str(seen[0].message)
    detector.theta = None
    with pytest.raises(ValueError, match="no threshold"):
        detector.flag(x)


def test_an_evaluation_warns_of_scores_that_are_no_numbers(tmp_path: Path) -> None:
    data = TensorImages(torch.full((4, 1, 2, 2), 0.45), torch.zeros(4, dtype=torch.long))
    c = Campaign({"fgsm": FGSM(eps=0.2)}, data, 4, 0, tmp_path, "test", scored=True)
    calibration(tmp_path, lambda: np.zeros(9), {"detector": None, "aimed_fpr": 0.05, "own_theta": 0.5})
    run_campaign(c, DetectorGuardedModel(Threshold(), Brightness(broken_above=0.6)))
    results = merge(c)
    assert results["warnings"] == ["fgsm: 4 scores of the detector were not finite and count as flagged"]
    assert results["attacks"][0]["detection"]["levels"][-1]["acc_adv"] == 1


# --- the joint attack -------------------------------------------------------------------------------------------------


def both(model: DetectorGuardedModel, z: Tensor, y: Tensor) -> Tensor:
    """Where the classifier is wrong and the detector silent."""
    with torch.no_grad():
        return (model(z).argmax(1) != y) & (model.detector.score(z) < float(model.detector.theta or 0))


@pytest.mark.long
def test_the_joint_attack_finds_what_its_parts_find(net: nn.Module, fitted: dict[str, FittedDetector]) -> None:
    """Never less than one of them, more than PGD, and everything in a large ball: gradients are not masked."""
    x, y, index = images(40)
    model = DetectorGuardedModel(net, fitted["ER2"]).eval()
    model.detector.theta = 0.0
    aware = DetectorAwarePGD(eps=0.2, steps=40, combine="selective")
    joint = Joint([PGD(eps=0.2, steps=40), aware, DetectorAwarePGD(eps=0.2, steps=20, targeted=True)], 2, n_targets=3)
    found = {a: both(model, a(model, x, y, Noise.keyed(0, index)), y) for a in (PGD(eps=0.2, steps=40), aware)}
    whole = both(model, joint(model, x, y, Noise.keyed(0, index)), y)
    assert whole.sum() >= max(int(f.sum()) for f in found.values())
    assert whole.sum() > next(iter(found.values())).sum()
    large = Joint([DetectorAwarePGD(eps=0.5, steps=60, combine=c) for c in ("selective", "orthogonal")], 2)  # type: ignore[arg-type]
    assert both(model, large(model, x, y, Noise.keyed(0, index)), y).float().mean() > 0.9


def test_without_a_threshold_nothing_is_unnoticed(net: nn.Module) -> None:
    x, y, _ = images(2)
    with pytest.raises(ValueError, match="theta must be given"):
        Joint([PGD()])(DetectorGuardedModel(net, Brightness()), x, y)


# --- evaluate.py ------------------------------------------------------------------------------------------------------

SUITE = "pgd: {class_path: PGD, init_args: {eps: 0.2, steps: 5}}"


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.long
def test_evaluate_fits_a_detector_and_judges_it_on_set_two(tmp_path: Path, handler: None, capsys: Any) -> None:
    import json

    torch.manual_seed(0)
    file = tmp_path / "er1.safetensors"
    save_network(ERNet(width=2, embedding=2), tmp_path / "a.ckpt")
    texts = {
        **{"suite": SUITE, "attack": "class_path: FGSM\ninit_args: {eps: 0.2}", "data": "class_path: Digits"},
        "detector": f"class_path: detectors.ERDetector\ninit_args: {{fitted: {file}}}",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    common = [f"--{n}={tmp_path / f'{n}.yaml'}" for n in ("data", "detector")] + [f"--checkpoint={tmp_path / 'a.ckpt'}"]
    run = [*common, f"--suite={tmp_path / 'suite.yaml'}", f"--output={tmp_path / 'out'}", "--audit=none"]
    assert evaluate.main([*run, "--accelerator=cpu"]) == 2
    assert "there is no fitted detector" in capsys.readouterr().err
    fitting = ["fit-detector", *common, f"--attack={tmp_path / 'attack.yaml'}", "--accelerator=cpu"]
    assert main(fitting) == 0 and file.exists()
    assert "auroc_set_one" in capsys.readouterr().out
    assert evaluate.main([*run, "--accelerator=cpu"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    levels = results["attacks"][0]["detection"]["levels"]
    assert results["n"] == 288 and levels[-1]["fpr"] is None and levels[-1]["theta"] == 0
    assert "Its own threshold" in (tmp_path / "out" / "report.md").read_text()
    save_network(ERNet(width=2, embedding=2), tmp_path / "a.ckpt")
    assert evaluate.main([*run[:-2], f"--output={tmp_path / 'other'}", "--accelerator=cpu"]) == 2
    assert "another network" in capsys.readouterr().err
    (tmp_path / "detector.yaml").write_text("class_path: detectors.MaxProbability")
    assert main([*fitting, f"--output={file}"]) == 2
    assert "needs no fitting" in capsys.readouterr().err


CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs" / "detectors").glob("*.yaml"))


@pytest.mark.parametrize("path", [p for p in CONFIGS if "fitted:" in p.read_text()], ids=lambda p: p.stem)
def test_detector_file_instantiates(path: Path) -> None:
    """As evaluate.py fit-detector reads it: the file to write is named, and differs from all others'."""
    parser = fit_detector.options()
    words = ["--checkpoint=x", f"--detector={path}", "--attack=FGSM"]
    settings = parser.parse_args(words)
    assert settings.detector.init_args.fitted == f"runs/detectors/{path.stem}.safetensors"
    settings.detector.init_args.fitted = None
    assert isinstance(parser.instantiate(settings).detector(Tiny()), FittedDetector)
    assert f"--detector {path.stem}" in path.read_text() and path.read_text().startswith("# ")


def test_features_come_in_batches_that_change_nothing(fitted: dict[str, FittedDetector]) -> None:
    x, _, index = images(30)
    for name in ("LID", "KD dropout"):
        found = [features(fitted[name], x, index, 0, size) for size in (7, 30)]
        assert torch.allclose(found[0], found[1], atol=1e-4)
    assert len(bends(Tiny())) == 3


# --- what people look at ----------------------------------------------------------------------------------------------

# averaged form over k = 6 .. 12 on 1,000 points of a uniform cube: edges bias it down
CUBE_DIMENSIONS = {2: (1.8, 2.2), 5: (4.1, 5.2), 10: (7.2, 10.0)}


@pytest.mark.parametrize("d", CUBE_DIMENSIONS)
def test_intrinsic_dimension_of_cubes(d: int) -> None:
    """The same through a linear map that keeps lengths; duplicates are left out and counted."""
    from adversarial_lightning.reproduce.intrinsic_dimension import intrinsic_dimension

    g = torch.Generator().manual_seed(0)
    x = torch.rand(1000, d, generator=g, dtype=torch.float64)
    value, by_k, duplicates = intrinsic_dimension(x, 6, 12)
    low, high = CUBE_DIMENSIONS[d]
    assert low < value < high and list(by_k) == list(range(6, 13)) and not duplicates
    into = torch.linalg.qr(torch.randn(50, d, generator=g, dtype=torch.float64))[0]
    mapped = x @ into.T
    again = intrinsic_dimension(torch.cat([mapped, mapped[:9]]), 6, 12)
    assert again[0] == pytest.approx(value) and again[2] == 9
    assert intrinsic_dimension(x, 6, 12, "mackay")[0] < value * 1.05
    for k1, k2 in ((2, 5), (5, 1000), (6, 5)):
        with pytest.raises(ValueError, match="k1"):
            intrinsic_dimension(x, k1, k2)


def test_a_failed_attack_stays_in_the_denominator() -> None:
    """An attack finds nothing on half of the images: N, ACC-ADV, ACC-CLA and ACC-COM are of all of them."""
    from adversarial_lightning.reproduce.detector_tables import rates, versions

    torch.manual_seed(0)
    net = ERNet(width=2, embedding=2).eval()
    images = Digits(test_limit=40).dataset("test")

    class EveryOther(Unbounded):
        """Whitens every other image, and fails on the others."""

        def perturb(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, noise: Any) -> torch.Tensor:
            every_other = (torch.arange(len(x)) % 2 == 0).view(-1, 1, 1, 1)
            return torch.where(every_other, torch.ones_like(x), x)

    v = versions(net, images, EveryOther(by=1.0))
    assert len(v["adversarial"]) == len(v["right"]) == 40 and int(v["found"].sum()) == 20
    assert torch.equal(v["adversarial"][~v["found"]], v["clean"][~v["found"]])

    class Scores:
        """Log-odds that flag white images alone."""

        mean, std, weight, bias, own_theta = 0.0, 1.0, torch.ones(1), 0.0, 0.9

    f = {name: v[name].flatten(1).mean(1, keepdim=True) for name in ("clean", "noisy", "adversarial")}
    row = rates(Scores(), f, v, 0.9)  # type: ignore[arg-type]
    assert (row["n"], row["found"], row["acc_adv"]) == (40, 20, 0.5) and row["auroc"] == 1
    assert row["of"] == {"acc_adv": 40, "acc_nadv": 80, "acc_cla": 20, "acc_com": 40}
    failed = v["right"][~v["found"].numpy()]
    assert row["acc_cla"] == failed.mean() and row["acc_com"] == 0.5 + failed.mean() / 2


@pytest.mark.long
def test_the_tables_are_made_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The whole protocol on digits, cut down, with an untrained network: every row is there, and identities hold."""
    import json
    import sys

    from adversarial_lightning.checkpoints.spec import describe
    from adversarial_lightning.reproduce import detector_tables

    torch.manual_seed(0)
    net, data = ERNet(width=2, embedding=2), Digits(test_limit=150)
    content = {"network": describe(net), "data": describe(data)}
    weights = {f"network.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": weights, "catalogue": content}, tmp_path / "a.ckpt")
    cut = "--train-limit 600 --test-limit 150 --steps 2 --cw-steps 5 --cw-consts 2 --joint-images 4 --joint-steps 2"
    more = f"{cut} --joint-restarts 1 --joint-targets 1 --weights 1 --confident 30".split()
    files = [f"--{name}={tmp_path / 'a.ckpt'}" for name in ("er", "undefended")]
    monkeypatch.setattr(sys, "argv", ["x", *files, f"--output={tmp_path / 'x.json'}", *more])
    detector_tables.main()
    figures = json.loads((tmp_path / "x.json").read_text())["figures"]
    for place, title in (("er", "ER1"), ("er", "ER2"), ("undefended", "KD"), ("undefended", "LID")):
        rows = figures[place][title]["rows"]
        assert len([name for name in rows if "paired" not in name]) in (8, 12)  # C&W may find nothing
        for r in rows.values():
            if r.get("acc_cla") is not None:
                assert r["acc_com"] == pytest.approx(r["acc_adv"] + (1 - r["acc_adv"]) * r["acc_cla"])
        assert figures[place][title]["joint"]["joint"]["robust"] <= figures[place][title]["joint"]["pgd"]["robust"]
