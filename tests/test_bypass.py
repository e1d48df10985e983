"""What BPDA puts in a purifier's place, and transfer from behind filters, against gradients computed by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import save_network
from torch import Tensor, nn
from victims import Linear

from adversarial_lightning.attacks import BPDA, PGD, Noise, Transfer
from adversarial_lightning.attacks.core.bpda import straight_through
from adversarial_lightning.attacks.transfer import CheckpointSurrogate
from adversarial_lightning.checkpoints.spec import describe
from adversarial_lightning.defenses import RIDE, BitDepth, MeanFilter, Purified, TVChambolle
from adversarial_lightning.evaluation.campaign.identity import with_files
from adversarial_lightning.networks import ConvAutoencoder, Denoiser, SmallCNN

ROOT = Path(__file__).resolve().parent.parent
SMALL: dict[str, Any] = {"channels": (1, 4, 4, 1), "dropout_after": (2,), "steps": 5, "stages": 2, "estimates": 3}


def gradient(attack: BPDA, model: nn.Module, x: Tensor) -> Tensor:
    """Of the sum of the logits of class 1, as an attack in the place of ``attack.attack`` would see it."""
    found: list[Tensor] = []

    class Look(PGD):
        def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
            x = x.detach().requires_grad_()
            found.append(torch.autograd.grad(model(x)[:, 1].sum(), x)[0])
            return x

    BPDA(Look(), attack.backward, attack.steps, attack.network)(
        model, x, torch.zeros(len(x), dtype=torch.long), Noise.keyed(0, torch.arange(len(x)))
    )
    return found[0]


@pytest.fixture
def linear() -> Linear:
    return Linear((1, 8, 8)).double()


def test_a_mean_filter_stands_in(linear: Linear) -> None:
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    model = Purified(linear, BitDepth())
    through = x.clone().requires_grad_()
    expected = torch.autograd.grad(linear(MeanFilter(3)(through))[:, 1].sum(), through)[0]
    assert torch.allclose(gradient(BPDA(PGD(), "mean"), model, x), expected)
    assert not torch.allclose(gradient(BPDA(PGD()), model, x), expected)


def test_a_surrogate_of_its_own_gives_way_and_comes_back(linear: Linear) -> None:
    """Total variation is a mean filter backwards, unless an attack asks for something else; one inside another, too."""
    x, purifier = torch.rand(3, 1, 8, 8, dtype=torch.float64), TVChambolle()
    model = Purified(linear, purifier)
    bare = torch.autograd.grad(linear(through := x.clone().requires_grad_())[:, 1].sum(), through)[0]
    with straight_through(purifier, torch.square):
        assert torch.allclose(gradient(BPDA(PGD()), model, x), bare)
        assert purifier.surrogate is torch.square
    own = torch.autograd.grad(model(through)[:, 1].sum(), through)[0]
    assert torch.allclose(own, gradient(BPDA(PGD(), "mean"), model, x)) and not torch.allclose(own, bare)
    assert not vars(purifier).keys() & {"surrogate"}


def test_a_network_of_the_attackers_stands_in(linear: Linear, tmp_path: Path) -> None:
    torch.manual_seed(1)
    denoiser = Denoiser(ConvAutoencoder(width=2, mean_pixel=0.5), 0.15)
    owned = CheckpointSurrogate(str(save_network(denoiser, tmp_path / "dae.ckpt")))
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    found = gradient(BPDA(PGD(), "network", network=owned), Purified(linear, BitDepth()), x)
    through = x.clone().requires_grad_()
    expected = torch.autograd.grad(linear(owned.network().double()(through))[:, 1].sum(), through)[0]
    assert torch.allclose(found, expected) and expected.any()
    classifier = CheckpointSurrogate(str(save_network(SmallCNN(), tmp_path / "cnn.ckpt")))
    with pytest.raises(ValueError, match=r"makes images of images, this makes \(3, 10\)"):
        gradient(BPDA(PGD(), "network", network=classifier), Purified(Linear((1, 28, 28)), BitDepth()), x28())


def x28() -> Tensor:
    return torch.rand(3, 1, 28, 28)


@pytest.mark.parametrize("space", ["pixels", "normalized"])
@pytest.mark.parametrize("at_once", ["auto", 2])
def test_the_fitted_network_stands_in_with_its_weights_held(linear: Linear, space: Any, at_once: Any) -> None:
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    ride = RIDE(**SMALL, space=space, mean=[0.3], std=[0.2], sigma=0.0, max_images_per_pass=at_once)
    found = gradient(BPDA(PGD(), "frozen"), Purified(linear, ride), x)
    assert len(ride.fits) == (1 if at_once == "auto" else 2)
    fitted = [(fit, i) for fit in ride.fits for i in range(len(fit.noise))]
    mean, std = (0.3, 0.2) if space == "normalized" else (0.0, 1.0)
    for i, (fit, row) in enumerate(fitted):
        through = x[i : i + 1].clone().requires_grad_()
        h = (through - mean) / std
        layers = [p[row] for p in fit.parameters]
        for k in range(0, 6, 2):
            h = F.conv2d(h, layers[k], layers[k + 1], padding=1)
            h = h.relu() if k < 4 else h
        h = h.sigmoid() if space == "pixels" else h
        expected = torch.autograd.grad(linear(h * std + mean)[:, 1].sum(), through)[0]
        assert torch.allclose(found[i : i + 1], expected) and expected.any()


def test_the_frozen_network_averages_its_own_draws(linear: Linear) -> None:
    """The mean over `estimates` noisy copies; the same draws when asked again, and the fit is left as it was."""
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    ride = RIDE(**SMALL, sigma=0.3)
    z = ride(x)
    weights = [p.clone() for p in ride.fits[0].parameters]
    through = x.clone().requires_grad_()
    assert torch.equal(ride.frozen(through), ride.frozen(through))
    direction, step = torch.randn_like(x), 1e-6
    with torch.no_grad():
        numeric = (ride.frozen(x + step * direction) - ride.frozen(x - step * direction)).sum() / (2 * step)
    analytic = (torch.autograd.grad(ride.frozen(through).sum(), through)[0] * direction).sum()
    assert torch.allclose(numeric, analytic, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(weights, ride.fits[0].parameters, strict=True))
    assert (ride.frozen(x) - z).abs().mean() < 0.1  # near x_est, which has other draws around the combined image


def test_what_cannot_stand_in_is_named(linear: Linear) -> None:
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    dip = RIDE(**SMALL, random_input=True, noisy_target=False)
    with pytest.raises(ValueError, match="no gradient"):
        gradient(BPDA(PGD(), "frozen"), Purified(linear, dip), x)
    with pytest.raises(ValueError, match="BitDepth has no frozen"):
        gradient(BPDA(PGD(), "frozen"), Purified(linear, BitDepth()), x)
    ride = RIDE(**SMALL)
    ride(x[:1])
    with pytest.raises(ValueError, match="did not fit 2 images to the end"):
        ride.frozen(x)
    for backward, network in (("network", None), ("mean", Given())):
        with pytest.raises(ValueError, match="belong together"):
            BPDA(PGD(), backward, network=network)  # type: ignore[arg-type]


class Given(CheckpointSurrogate):
    """Refuses nothing."""

    def __init__(self) -> None:
        pass


def test_transfer_from_behind_a_filter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = SmallCNN().eval()
    nn.init.normal_(network.head[-1].weight)  # its first logits are zero
    path = str(save_network(network, tmp_path / "net.ckpt"))
    x, y, noise = x28(), torch.tensor([1, 2, 3]), Noise.keyed(0, torch.arange(3))
    attack = PGD(eps=0.1, steps=3)
    for name, purifier in (("mean_filter", MeanFilter(3)), ("tv_chambolle", TVChambolle(0.25))):
        owned = CheckpointSurrogate(path, str(ROOT / "configs" / "defenses" / f"{name}.yaml"))
        found = Transfer(attack, owned)(network, x, y, noise)
        assert torch.equal(found, attack(Purified(network, purifier), x, y, noise.fork("transfer")))
        assert not torch.equal(found, Transfer(attack, CheckpointSurrogate(path))(network, x, y, noise))
    assert owned.network() is owned.network()
    part = with_files(describe(Transfer(attack, owned)))["init_args"]["surrogate"]["init_args"]
    assert part["defenses"]["file"] == "tv_chambolle.yaml" and len(part["defenses"]["sha256"]) == 64
    with pytest.raises(ValueError, match=r"no file 'none\.yaml'"):
        CheckpointSurrogate(path, "none.yaml")
