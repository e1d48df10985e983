"""The defense contract: exact forwards, declared gradients, keyed noise, and what attacks make of it."""

import pytest
import torch
from torch import nn
from victims import Linear, at_distance

from adversarial_lightning import defenses
from adversarial_lightning.attacks import PGD, Noise, noise_for
from adversarial_lightning.attacks.core.gradient import input_gradient, margin
from adversarial_lightning.checkpoints.spec import catalogue
from adversarial_lightning.defenses import (
    JPEG,
    MALA,
    MALADE,
    RIDE,
    BitDepth,
    Magnet,
    MeanFilter,
    Median,
    Purified,
    Purifier,
    RandomQuantizer,
    TVBregman,
    TVChambolle,
    required_adaptations,
)
from adversarial_lightning.networks import ConvAutoencoder, Denoiser


def denoiser(trained_for: str | None = None) -> Denoiser:
    return Denoiser(ConvAutoencoder(channels=3, width=2, mean_pixel=0.5), 0.15, trained_for)


PURIFIERS = [
    *(MeanFilter(), MeanFilter(5), RandomQuantizer(), RandomQuantizer(levels=2, std=0.3)),
    *(MALADE(denoiser("a classifier")), MALADE(denoiser("a classifier"), noise_std=0.0), MALA(denoiser(), clip="each")),
    Magnet(denoiser()),
    *(Median(), Median(7), TVBregman(), TVBregman(0.5), TVChambolle(), JPEG(), JPEG(10), BitDepth(), BitDepth(8)),
    RIDE((3, 8, 8, 3), (2,), steps=3, stages=2),
]


class Doubled(Purifier):
    """Not differentiable, with a surrogate of its own."""

    differentiable = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 8).round() / 8

    def surrogate(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_the_table_holds_every_purifier() -> None:
    assert {type(p) for p in PURIFIERS} == {
        c for c in catalogue(defenses) if issubclass(c, Purifier) and c is not Purifier
    }


@pytest.mark.parametrize("purifier", PURIFIERS, ids=lambda p: f"{type(p).__name__}")
def test_images_stay_images_and_streams_belong_to_the_sample(purifier: Purifier) -> None:
    x, index = torch.rand(6, 3, 8, 8), torch.arange(6)
    with noise_for(purifier, Noise.keyed(0, index)):
        z = purifier(x)
    assert z.shape == x.shape and z.min() >= 0 and z.max() <= 1 and not torch.equal(z, x)
    rows = torch.tensor([4, 1])
    with noise_for(purifier, Noise.keyed(0, index[rows])):
        rounding = 1e-5 if isinstance(purifier, RIDE) else 0.0  # of a grouped convolution depends on the batch
        assert torch.allclose(purifier(x[rows]), z[rows], rtol=0, atol=rounding)
    assert purifier.noise is None
    with noise_for(purifier, Noise.keyed(1, index)):
        assert torch.equal(purifier(x), z) == (not purifier.stochastic)
    assert torch.equal(purifier(x), purifier(x)) == (not purifier.stochastic)  # nobody set a stream: fresh draws


def test_bpda_is_exact_forwards_and_the_surrogate_backwards() -> None:
    inner = Linear((1, 6, 6))
    model, x = Purified(inner, Doubled()), torch.rand(4, 1, 6, 6, requires_grad=True)
    logits = model(x)
    assert torch.equal(logits, inner(Doubled()(x.detach())))
    gradient = torch.autograd.grad(margin(logits, torch.zeros(4, dtype=torch.long)).sum(), x)[0]
    assert torch.allclose(gradient.flatten(1), 2 * inner.weight.detach().expand(4, -1))


def test_a_differentiable_purifier_is_differentiated() -> None:
    inner = Linear((1, 6, 6))
    x, y = torch.rand(2, 1, 6, 6), torch.zeros(2, dtype=torch.long)
    through, _ = input_gradient(Purified(inner, MeanFilter()), x, y, margin)
    bare, _ = input_gradient(inner, x, y, margin)
    assert not torch.allclose(through, bare)


def test_defenses_compose_and_declare() -> None:
    model = Purified(Purified(Linear((1, 6, 6)), MeanFilter()), RandomQuantizer())
    assert required_adaptations(model) == {"bpda": True, "eot": True}
    assert required_adaptations(model.classifier) == {"bpda": False, "eot": False}
    assert required_adaptations(nn.Identity()) == {"bpda": False, "eot": False}


def test_attacker_draws_are_not_the_defenders() -> None:
    """PGD sees the model under its own draws, whatever the defender has set, and puts the defender's back."""
    seen: list[torch.Tensor] = []

    class Spy(RandomQuantizer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(self.own_noise(x).key.clone())
            return super().forward(x)

    model, index = Purified(Linear((1, 6, 6)), Spy()), torch.arange(3)
    x, y = torch.rand(3, 1, 6, 6), torch.tensor([0, 1, 0])
    defender_noise = Noise.keyed(0, index).fork("defender")
    with noise_for(model, defender_noise):
        PGD(eps=0.1, steps=2)(model, x, y, Noise.keyed(0, index).fork("attacker"))
        assert len(seen) == 2 and not any(torch.equal(key, defender_noise.key) for key in seen)
        model(x)
    assert torch.equal(seen[-1], defender_noise.key)


def test_bpda_attack_breaks_the_quantizer() -> None:
    """Rounding has gradient zero; through the surrogate the attack finds what is there."""
    inner = Linear((1, 8, 8))
    x, y = at_distance(inner, "linf", 0.05, 8)
    model = Purified(inner, RandomQuantizer(levels=256, std=0.01))
    noise = Noise.keyed(0, torch.arange(8))
    with noise_for(model, noise.fork("defender")):
        assert (model(x).argmax(1) == y).all()
    z = PGD(eps=0.1, steps=10, eot_samples=4)(model, x, y, noise.fork("attacker"))
    with noise_for(model, noise.fork("defender")):
        assert (model(z).argmax(1) != y).all()


@pytest.mark.parametrize("make", [lambda: MeanFilter(2), lambda: RandomQuantizer(1), lambda: RandomQuantizer(4, -1.0)])
def test_bad_settings(make: object) -> None:
    with pytest.raises(ValueError, match="at least"):
        make()  # type: ignore[operator]
