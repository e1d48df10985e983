"""Pictures of what a network makes of images: in reports, in TensorBoard during training, from benchmarks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Bare, Coded, adam, digits, finish, trainer
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from adversarial_lightning.attacks import CW, FGSM, PGD, Attack, HighConfidence, Noise, Square, noise_for
from adversarial_lightning.callbacks import NetworkPictures
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.defenses import MALA, Magnet, Purified, Purifier
from adversarial_lightning.detectors import DetectorGuardedModel, MaxProbability
from adversarial_lightning.evaluation import Campaign, run_campaign, write_report
from adversarial_lightning.evaluation.campaign.merge import merge
from adversarial_lightning.evaluation.report import embeddings as module
from adversarial_lightning.evaluation.report import purifier_steps as steps_module
from adversarial_lightning.evaluation.report.embeddings import (
    draw_codes,
    encode,
    flatten,
    network_figures,
    rademacher,
    surface,
    views,
)
from adversarial_lightning.evaluation.report.grids import grids
from adversarial_lightning.evaluation.report.pictures import EACH, Gallery
from adversarial_lightning.lightning_modules import ERClassifier, Standard
from adversarial_lightning.networks import ConvAutoencoder, Denoiser


class Rounded(nn.Module):
    """Without gradients, and without saying so."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Bare()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.inner(x)
        return logits


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images and steps; t-SNE of the first two coordinates."""
    for name, value in {"_IMAGES": 12, "_LEAST": 5, "_STEPS": 5, "_ATTACK_STEPS": 2}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "flatten", lambda codes, joint: [c[:, :2].cpu().numpy() for c in codes])


def test_codes_are_those_of_the_encoder_behind_any_wrapper() -> None:
    net = Coded(3, dropout=0.5).train()
    x = torch.rand(230, 1, 28, 28)
    codes, predictions = encode(DetectorGuardedModel(net, MaxProbability(net)), x)
    assert net.training
    with torch.no_grad():
        assert torch.allclose(codes, net.eval().encoder(x), atol=1e-6)
        assert torch.equal(predictions, net(x).argmax(1))
    with pytest.raises(ValueError, match="an encoder: Bare has none"):
        encode(Bare(), x)


@pytest.mark.long  # scikit-learn starts a process to count the cores
def test_groups_far_apart_stay_apart_and_broken_rows_are_left_out() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40, 4, generator=g) + 30 * shift for shift in (0, 1))
    a[3, 1] = torch.nan
    for joint in (False, True):
        first, second = flatten([a, b], joint)
        assert first.shape == second.shape == (40, 2)
        assert np.isnan(first[3]).all() and np.isfinite(np.delete(first, 3, 0)).all() and np.isfinite(second).all()
    inside, gap = np.nanstd(first, 0).max(), np.linalg.norm(np.nanmean(first, 0) - second.mean(0))
    assert gap > 3 * inside  # of one fit for both


def test_histograms_count_every_code_in_the_colours_of_the_legend() -> None:
    codes = {"clean": torch.rand(50, 2) * 2, "attacked": torch.rand(50, 2), "prior": torch.randn(400, 2).clamp(-3, 3)}
    figure = draw_codes(codes)
    assert [axes.get_title() for axes in figure.axes] == ["coordinate 1", "coordinate 2"]
    for axes in figure.axes:
        sums = {patch.get_label(): float(np.sum(patch.get_data().values)) for patch in axes.patches}
        assert sums == {name: pytest.approx(100) for name in codes}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(codes)
    assert len(draw_codes({"clean": torch.rand(9, 33), "prior": torch.rand(9, 33)}).axes) == 20


def test_loss_surface_of_a_plane() -> None:
    """Of a linear loss: steepest along the gradient's sign, and the value at the image in the middle."""

    class Plane(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            s = x.flatten(1).sum(1)
            return torch.stack([torch.zeros_like(s), s], 1)

    x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])
    r = torch.tensor([1.0, -1.0, 1.0, 1.0]).view(1, 1, 2, 2).expand(2, 1, 2, 2)
    steps = torch.linspace(-0.1, 0.1, 5)
    found = surface(Plane(), x, y, r, steps)
    assert found.shape == (2, 5, 5)
    expected = nn.functional.softplus(2 + 4 * steps[:, None] + 2 * steps[None])
    assert torch.allclose(found[0], expected, atol=1e-6)
    assert torch.allclose(found[1], nn.functional.softplus(-(2 - 4 * steps[:, None] + 2 * steps[None])), atol=1e-6)


def test_random_signs_are_the_same_for_every_model() -> None:
    noise = Noise.keyed(0, torch.arange(6))
    r = rademacher(torch.zeros(6, 1, 28, 28), noise)
    assert set(r.unique().tolist()) == {-1.0, 1.0} and abs(float(r.mean())) < 0.05
    assert torch.equal(r[2:4], rademacher(torch.zeros(2, 1, 28, 28), noise[torch.arange(2, 4)]))


@pytest.mark.parametrize(
    ("norm", "eps", "reach"), [("linf", 0.1, 0.1), ("l2", 2.8, 0.1), ("l1", 78.4, 0.1)], ids=["linf", "l2", "l1"]
)
def test_surfaces_reach_as_far_as_the_ball(
    norm: Any, eps: float, reach: float, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def noted(model: nn.Module, x: Tensor, y: Tensor, r: Tensor, steps: Tensor) -> Tensor:
        seen.append(steps)
        return surface(model, x, y, r, steps)

    monkeypatch.setattr(module, "surface", noted)
    x, y, index = digits().dataset("val").__getitems__(list(range(4)))
    x = torch.nn.functional.interpolate(x, 28)
    (drawn,) = views(Bare28(), x, y, Noise.keyed(0, index), PGD(norm, eps=eps, steps=1))
    assert drawn.name == "loss_surface" and len(drawn.figure.axes) == 3
    assert float(seen[0][-1]) == pytest.approx(reach) and float(seen[0][0]) == pytest.approx(-reach)
    with pytest.raises(ValueError, match="has no ball"):
        views(Bare28(), x, y, Noise.keyed(0, index), CW())


class Bare28(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits


def finished(folder: Path, suite: dict[str, Attack], net: nn.Module) -> Campaign:
    c = Campaign(suite, Digits().dataset("test"), 12, 0, folder, "test")
    run_campaign(c, net.eval())
    return c


@pytest.mark.long
def test_reports_show_them_where_gradients_can_be_trusted(tmp_path: Path, quick: None) -> None:
    """With an encoder all three; none for a defense that demands BPDA or EOT, for which plain gradients say nothing."""
    facts = {"checkpoint": {"path": "a.ckpt", "sha256": "0"}, "data": {"class_path": "Digits", "init_args": {}}}
    net = Coded(3)
    c = finished(tmp_path, {"fgsm": FGSM(eps=0.1)}, net)
    shown = {}
    for eot in (False, True):
        write_report(
            c, merge(c), **facts, defenses=[], required_adaptations={"bpda": False, "eot": eot}, command="", model=net
        )  # type: ignore[arg-type]
        page = (tmp_path / "report.html").read_text()
        tags = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload().Tags()["images"]
        shown[eot] = ('<section id="views">' in page, {"embedding/tsne", "embedding/prior", "loss_surface"} & set(tags))
    assert shown == {False: (True, {"embedding/tsne", "embedding/prior", "loss_surface"}), True: (False, set())}
    assert "PGD at ℓ∞ ≤ 0.1, 12 images" in network_figures(c, net, 1e3)[0][0].caption
    finish(c)  # without the model


def test_what_is_too_dear_or_has_no_gradient_is_left_out_aloud(tmp_path: Path, quick: None) -> None:
    net = Bare()
    c = finished(tmp_path / "a", {"fgsm": FGSM(eps=0.1)}, net)
    assert [d.name for d in network_figures(c, net, 1e3)[0]] == ["loss_surface"]
    assert network_figures(c, net, 0.0) == (
        [],
        ["Embeddings and loss surfaces are left out: they would take too long."],
    )
    rounded = Rounded()
    c = finished(tmp_path / "b", {"square": Square(eps=0.1, queries=3)}, rounded)
    drawn, (note,) = network_figures(c, rounded, 1e3)
    assert not drawn and "does not require grad" in note
    assert network_figures(finished(tmp_path / "c", {"cw": CW(steps=1, search_steps=1)}, net), net, 1e3) == ([], [])


@pytest.mark.long
@pytest.mark.parametrize("coded", [True, False])
def test_pictures_appear_during_training(
    coded: bool, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second epoch and after the last; of a network without an encoder, loss surfaces."""
    seen: list[list[str]] = []
    monkeypatch.setattr(module, "draw_codes", lambda versions: seen.append(list(versions)) or draw_codes(versions))
    logger = TensorBoardLogger(tmp_path, name="", version="")
    critic = {"critic_hidden": [16], "optimizer": adam, "classifier_optimizer": adam}
    model = ERClassifier(Coded(3), prior="uniform", **critic) if coded else Standard(Bare(), adam)  # type: ignore[arg-type]
    pictures = NetworkPictures(PGD(eps=0.1, steps=2), limit=12, every_n_epochs=2)
    trainer(tmp_path, epochs=3, logger=logger, log_every_n_steps=1, callbacks=[pictures]).fit(model, digits())
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    expected = {"loss_surface"} | ({"embedding/tsne", "embedding/prior"} if coded else set())
    assert set(events.Tags()["images"]) == expected and model.training
    assert seen == [["clean", "attacked", "the prior"]] * (2 if coded else 0)
    assert all(len(events.Images(name)) == 2 for name in expected)


def test_the_prior_drawn_is_that_of_the_module(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Tensor]] = []
    monkeypatch.setattr(module, "draw_codes", lambda versions: seen.append(versions) or draw_codes(versions))
    x, y, index = digits().dataset("val").__getitems__(list(range(12)))
    prior = ERClassifier(Coded(3), prior="uniform").prior
    for known in ({}, {"prior": prior, "prior_name": "the prior"}):
        views(Coded(3), x, y, Noise.keyed(0, index), FGSM(eps=0.1), **known)  # type: ignore[arg-type]
    assert list(seen[0]) == ["clean", "attacked", "N(0, 1)"] and list(seen[1]) == ["clean", "attacked", "the prior"]
    assert torch.equal(seen[1]["the prior"], prior(Noise.keyed(0, index).fork("prior"), seen[1]["clean"]))
    assert torch.equal(seen[0]["N(0, 1)"], Noise.keyed(0, index).fork("prior").normal(seen[0]["clean"]))


class Halves(Purifier):
    """Halves the image in two steps."""

    def forward(self, x: Tensor) -> Tensor:
        *_, end = self.states(x)
        return end

    def states(self, x: Tensor) -> Iterator[Tensor]:
        yield from (x, 0.75 * x, 0.5 * x)


@pytest.mark.long
def test_adversarial_images_are_followed_through_the_purifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of the page, easy and hard ones; below each what the classifier alone says of that state."""
    facts = {"checkpoint": {"path": "a.ckpt", "sha256": "0"}, "data": {"class_path": "Digits", "init_args": {}}}
    seen: list[tuple[Any, ...]] = []
    draw = steps_module.draw_steps
    monkeypatch.setattr(steps_module, "draw_steps", lambda *args: seen.append(args) or draw(*args))
    torch.manual_seed(2)
    net = Purified(Bare(), Halves())
    c = finished(tmp_path, {"fgsm": FGSM(eps=0.3)}, net)
    nothing = {"bpda": False, "eot": False}
    write_report(c, merge(c), **facts, defenses=[], required_adaptations=nothing, command="", model=net)  # type: ignore[arg-type]
    assert '<section id="steps">' in (tmp_path / "report.html").read_text()
    ((name, heading, examples, states, p),) = seen
    assert (name, heading) == ("steps/linf 0.3", "ℓ∞ ≤ 0.3") and 1 <= len(examples) <= EACH
    x = torch.stack([e.attacked for e in examples])
    assert all(torch.equal(state, share * x) for state, share in zip(states, (1, 0.75, 0.5), strict=True))
    with torch.no_grad():
        assert torch.allclose(p[1], net.classifier(0.75 * x).softmax(1))
        assert [e.outcome.adversarial for e in examples] == p[2].argmax(1).tolist()
    panels = draw(name, heading, examples, states, p).figure.axes
    assert len(panels) == 4 * len(examples)
    assert [float(v) for v in panels[3].lines[0].get_ydata()] == p[:, 0, examples[0].outcome.label].tolist()
    shots = [Gallery("linf 0.3", "", {"broken": examples})]
    assert steps_module.steps(c, net.classifier, shots, 1e3) == steps_module.steps(c, net, [], 1e3) == ([], [])
    assert steps_module.steps(c, net, shots, 0.0)[1] == ["The purifier's steps are left out: they would take too long."]


def test_a_chain_shows_its_steps() -> None:
    denoiser = Denoiser(ConvAutoencoder(width=4))
    for chain, n in ((MALA(denoiser, 0.03, 3, 0.1), 4), (MALA(denoiser, 0.03, 0, 0.1), 1), (Magnet(denoiser), 2)):
        x = torch.rand(2, 1, 28, 28)
        with torch.no_grad(), noise_for(chain, Noise.keyed(0, torch.arange(2))):
            found = list(chain.states(x))
        with torch.no_grad(), noise_for(chain, Noise.keyed(0, torch.arange(2))):
            assert len(found) == n and torch.equal(found[0], x) and torch.equal(found[-1], chain(x))


@pytest.mark.long
def test_images_are_turned_into_other_classes_where_the_suite_does_so(tmp_path: Path) -> None:
    """As many sources as the allowance is enough for; nothing without the high-confidence attack."""
    torch.manual_seed(2)
    net = Bare()
    own = HighConfidence(steps=5, max_step=0.5)
    c = finished(tmp_path / "a", {"own": own, "fgsm": FGSM(eps=0.1)}, net)
    drawn, left_out = grids(c, net, 1e3)
    classes = sorted(set(c.table(c.runs("clean")[0])["label"].tolist()))
    assert [d.name for d in drawn] == ["grids/targets", "grids/confidence"] and not left_out
    assert drawn[0].pixels().shape[:2] == (30 * len(classes) + 2, 30 * 10 + 2)
    assert drawn[1].pixels().shape[:2] == (4 * (60 + 12), 58 * len(classes) + 2)
    x, y, _ = c.batch(c.samples)
    first = x[int((y == classes[1]).nonzero()[0])]
    cell = drawn[0].figure.axes[0].images[0].get_array()[32:60, 2 + 30 * classes[1] :][:, :28, 0]
    assert np.allclose(cell, first[0].numpy())
    each = float(np.mean(c.table(c.runs("own")[0])["seconds"]))
    assert grids(c, net, 13 * each * 3.5)[0][0].pixels().shape[0] == 30 * 3 + 2
    assert grids(c, net, 13 * each * 1.5) == (
        [],
        ["Images attacked towards every class are left out: own would take too long."],
    )
    assert grids(finished(tmp_path / "b", {"fgsm": FGSM(eps=0.1)}, net), net, 1e3) == ([], [])
    with torch.no_grad():  # a class that none of the images has: nothing is right, and nothing is attacked
        net.layers[4].weight.zero_()
        net.layers[4].bias.copy_(10.0 * (torch.arange(10) == next(k for k in range(10) if k not in classes)))
    assert grids(finished(tmp_path / "c", {"own": own}, net), net, 1e3) == ([], [])
