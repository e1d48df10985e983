"""RIDE: the algorithm box, images together and alone, the regularisers, what is refused, what an attacker sees."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import BPDA, FGSM, PGD, Noise, noise_for
from adversarial_lightning.attacks.core.gradient import ce, input_gradient
from adversarial_lightning.defenses import RIDE, MeanFilter, Purified
from adversarial_lightning.defenses.fitting import PerImageFit
from adversarial_lightning.defenses.ride import Watch, combine

SMALL: dict[str, Any] = {"channels": (1, 6, 6, 1), "dropout_after": (2,), "steps": 50, "stages": 2, "estimates": 2}
DIP: dict[str, Any] = {"random_input": True, "noisy_target": False}
RELEASE: dict[str, Any] = {"estimates": 0, "loss": "norm", "amsgrad": True, "noisy_target": False}
COLOUR: dict[str, Any] = {"channels": (3, 4, 4, 3), "sigma": 0.5, "space": "normalized", "noisy_copies": 2}
STOP: dict[str, Any] = {"patience": 10, "gain": 0.02, "learning_rate": 1e-2}


def images(n: int = 7, channels: int = 1, dtype: torch.dtype = torch.float64, size: tuple[int, int] = (9, 8)) -> Tensor:
    return Noise.keyed(5, torch.arange(n)).uniform(torch.empty(n, channels, *size, dtype=dtype))


def purified(ride: RIDE, x: Tensor, index: list[int] | None = None, seed: int = 0) -> Tensor:
    with noise_for(ride, Noise.keyed(seed, torch.arange(len(x)) if index is None else torch.tensor(index))):
        return ride(x)


def by_the_book(ride: RIDE, x: Tensor, noise: Noise) -> Tensor:
    """Algorithm 2 for one image (1, C, H, W), with modules, autograd and Adam as they come."""
    r, c = ride.fit_settings, x.shape[1]
    mean, std = (x.new_tensor(v).view(-1, 1, 1) for v in (ride.mean, ride.std))
    target, run = (x - mean) / std, noise.split()
    weights, biases = run.fork("weights"), run.fork("biases")
    layers = [nn.Conv2d(a, b, 3, padding=1).to(x) for a, b in zip(r.channels, r.channels[1:], strict=False)]
    for layer in layers:
        bound = (6 / (9 * (layer.in_channels + layer.out_channels))) ** 0.5
        layer.weight.data = (2 * weights.uniform(layer.weight[None].detach()) - 1)[0] * bound
        layer.bias.data = (2 * biases.uniform(layer.bias[None].detach()) - 1)[0] / (9 * layer.in_channels) ** 0.5
    parameters = [p for layer in layers for p in layer.parameters()]
    adam = torch.optim.Adam(parameters, r.learning_rate, weight_decay=r.weight_decay, amsgrad=r.amsgrad, foreach=False)
    copies = target.expand(r.noisy_copies, -1, -1, -1)
    fixed = run.fork("input").normal(copies[None])[0] if r.random_input else None

    def network(z: Tensor, drop: bool) -> Tensor:
        for number, layer in enumerate(layers, 1):
            z = layer(z)
            if number < len(layers):
                z = z.relu()
            if drop and number in r.dropout_after and r.dropout:
                z = z * run.bernoulli(z[None], 1 - r.dropout)[0] / (1 - r.dropout)
        return z.sigmoid() if r.sigmoid else z

    for iteration in range(1, ride.steps * ride.stages + 1):
        copies = target.expand(r.noisy_copies, -1, -1, -1)
        output = network(copies + r.sigma * run.normal(copies[None])[0] if fixed is None else fixed, True)
        s = copies + r.sigma * run.normal(copies[None])[0] if r.noisy_target else copies
        kept = run.bernoulli(copies[None, :, :1], 1 - r.mask_ratio)[0]
        if r.squared:
            loss = ((output - s) ** 2)[kept.expand(-1, c, -1, -1)].mean()
        else:
            loss = (output - s).norm() * kept.double().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if iteration % ride.steps == 0:
            found, draws = output.detach().mean(0, keepdim=True), run.fork(f"estimate {iteration}")
            with torch.no_grad():
                if ride.estimates:
                    z = [target + r.sigma * draws.normal(target) for _ in range(ride.estimates)]
                    found = torch.stack([network(fixed[:1] if fixed is not None else part, False) for part in z]).mean(
                        0
                    )
            d = (target - found).abs().sum(1, keepdim=True)
            low = d < d.flatten().sort().values[(d.numel() - 1) // 2]
            mixed = ride.alpha * target + (1 - ride.alpha) * found
            target = torch.where(low, found, mixed) if ride.suppression else mixed
    return (found * std + mean).clamp(0, 1)


SETTINGS = [
    {},
    DIP,
    {**DIP, "noisy_copies": 2},
    RELEASE,
    COLOUR,
    {"noisy_copies": 3, "dropout": 0.2},
    {"suppression": False, "mask_ratio": 0.0},
]


@pytest.mark.long
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_engine_is_the_algorithm(settings: dict[str, Any]) -> None:
    ride = RIDE(**{**SMALL, "learning_rate": 1e-3, **settings})
    x = images(3, ride.fit_settings.channels[0])
    alone = [by_the_book(ride, x[i : i + 1], Noise.keyed(0, torch.tensor([i]))) for i in range(3)]
    assert torch.allclose(purified(ride, x), torch.cat(alone), rtol=1e-8, atol=0)


@pytest.mark.long
@pytest.mark.parametrize("settings", [{}, STOP, DIP | STOP, COLOUR, RELEASE | STOP], ids=str)
def test_together_is_alone_in_any_order(settings: dict[str, Any]) -> None:
    ride = RIDE(**{**SMALL, **settings})
    x = images(7, ride.fit_settings.channels[0])
    whole = purified(ride, x)
    for rows in ([3], [0, 6], [6, 2, 0, 1, 5, 4, 3]):
        assert torch.allclose(purified(ride, x[rows], rows), whole[rows], rtol=1e-8, atol=0)
    ride.max_images_per_pass = 3
    assert torch.allclose(purified(ride, x), whole, rtol=1e-8, atol=0)


def test_images_stop_one_by_one() -> None:
    left, keep = [], PerImageFit.keep

    def spy(fit: PerImageFit, rows: Tensor) -> None:
        left.append(int(rows.sum()))
        keep(fit, rows)

    with patch.object(PerImageFit, "keep", spy):
        *_, last = RIDE(**{**SMALL, **STOP}).run(images(), Noise.keyed(0, torch.arange(7)))
    assert len(set(left)) > 2 and left[-1] == 0 and last.iteration < 100


def test_single_precision_over_a_short_horizon() -> None:
    ride = RIDE(**{**SMALL, "steps": 10})
    x = images(dtype=torch.float32)
    whole = purified(ride, x)
    assert whole.dtype == torch.float32
    assert torch.allclose(torch.cat([purified(ride, x[[i]], [i]) for i in range(7)]), whole, atol=1e-4)


@pytest.mark.long
def test_over_a_long_horizon_rounding_is_less_than_another_seed() -> None:
    """Single precision drifts apart over hundreds of Adam steps, but stays the same fit."""
    x = images(4, dtype=torch.float32)
    ride = RIDE(**{**SMALL, "steps": 80, "learning_rate": 1e-3})
    together, other = purified(ride, x), purified(ride, x, seed=1)
    alone = torch.cat([purified(ride, x[i : i + 1], [i]) for i in range(4)])

    def psnr(a: Tensor, b: Tensor) -> float:
        return float(-10 * (a - b).square().flatten(1).mean(1).clamp(min=1e-12).log10().mean())

    assert psnr(together, alone) > psnr(together, other) + 10


def test_settings_that_are_one_another() -> None:
    x = images(3)
    dae = purified(RIDE(**{**SMALL, "steps": 40, "stages": 1}), x)
    same = purified(RIDE(**{**SMALL, "steps": 20, "alpha": 1.0, "suppression": False}), x)
    assert torch.equal(dae, same)
    assert not torch.allclose(dae, purified(RIDE(**{**SMALL, "steps": 20, "alpha": 1.0}), x), rtol=1e-8)
    one = [purified(RIDE(**{**SMALL, **DIP, "steps": 20, "stages": 1, "alpha": alpha}), x) for alpha in (0.0, 0.9)]
    assert torch.equal(*one)  # I-DIP with one stage is DIP: nothing is combined before the end


def test_combine_by_hand() -> None:
    target = torch.zeros(1, 1, 2, 2)
    estimate = torch.tensor([[[[0.1, 0.2], [0.4, 0.8]]]])
    assert torch.allclose(combine(target, estimate, 0.5, True), torch.tensor([[[[0.1, 0.1], [0.2, 0.4]]]]))
    assert torch.allclose(combine(target, estimate, 0.5, False), estimate / 2)
    level = torch.full((1, 1, 2, 2), 0.5)
    assert torch.equal(combine(target, level, 1.0, True), target)  # ties stay
    # channels: distances 0.5, 0.3, 0.4, 0.6, although in the larger channel the first pixel is nearest
    first, second = torch.tensor([[0.25, 0.3], [0.4, 0.3]]), torch.tensor([[-0.25, 0.0], [0.0, 0.3]])
    colours = torch.stack([first, second])[None]
    assert (combine(torch.zeros_like(colours), colours, 1.0, True) != 0).any(1).flatten().tolist() == [0, 1, 0, 0]
    x, z = torch.rand(4, 3, 10, 8), torch.rand(4, 3, 10, 8)
    assert (combine(x, z, 1.0, True) == z).all(1).sum((1, 2)).tolist() == [39] * 4
    assert torch.equal(combine(x, z, 0.0, True), z) and torch.equal(combine(x, z, 1.0, False), x)


@pytest.mark.long
@pytest.mark.parametrize("ratio,share", [(0.0, 1.0), (0.9, 0.1)])
def test_the_mask_keeps_whole_pixels(ratio: float, share: float) -> None:
    """A target's pixel counts in all channels or in none."""
    fit_settings = RIDE(**{**SMALL, **COLOUR, **DIP, "mask_ratio": ratio}).fit_settings
    x, noise = images(1, 3), Noise.keyed(0, torch.arange(1))
    loss = PerImageFit(fit_settings, noise.fork(0), x).step(x)
    counts = torch.zeros(3, 9, 8, dtype=torch.bool)
    for place in torch.cartesian_prod(*map(torch.arange, counts.shape)).tolist():
        changed = x.clone()
        changed[0][tuple(place)] += 0.5
        counts[tuple(place)] = PerImageFit(fit_settings, noise.fork(0), x).step(changed) != loss
    assert (counts == counts[:1]).all() and abs(counts.double().mean() - (1 - (1 - share) ** 2)) < 0.08  # two samples


def test_noises_are_fresh_and_independent() -> None:
    draws: list[Tensor] = []
    normal = Noise.normal

    def spy(noise: Noise, like: Tensor) -> Tensor:
        draws.append(normal(noise, like))
        return draws[-1]

    with patch.object(Noise, "normal", spy):
        purified(RIDE(**{**SMALL, "steps": 3, "stages": 1, "estimates": 1}), images(40, size=(20, 20)))
    assert len(draws) == 7
    correlations = torch.corrcoef(torch.stack([d.flatten() for d in draws]))
    assert (correlations - torch.eye(7)).abs().max() < 0.03


@pytest.mark.long
def test_an_identity_is_learned_where_nothing_is_random() -> None:
    x = images(2)
    calm: dict[str, Any] = {"sigma": 0.0, "mask_ratio": 0.0, "learning_rate": 1e-2, "weight_decay": 0.0, "stages": 1}
    for settings, error in (({}, 0.05), (DIP, 0.1)):
        rides = [RIDE((1, 16, 16, 1), (), **calm, **settings, steps=steps) for steps in (5, 600)]
        errors = [(purified(ride, x) - x).abs().mean() for ride in rides]
        assert errors[1] < error < errors[0]


NETWORKS = [
    ((3, 32, 32, 32, 32, 32, 32, 32, 3), (4, 5, 6), 57_251),
    ((1, 16, 16, 16, 1), (2, 3), 4_945),
    ((3, 32, 32, 32, 32, 3), (2, 3), 29_507),
]


@pytest.mark.parametrize("channels,dropped,count", NETWORKS)
def test_networks(channels: tuple[int, ...], dropped: tuple[int, ...], count: int) -> None:
    fit_settings = RIDE(channels, dropped).fit_settings
    x = images(1, channels[0], torch.float32, (5, 7))
    fit = PerImageFit(fit_settings, Noise.keyed(0, torch.arange(1)), x)
    asked: list[int] = []
    bernoulli = Noise.bernoulli
    with patch.object(Noise, "bernoulli", lambda n, like, p: asked.append(like[0].numel()) or bernoulli(n, like, p)):
        fit.step(x)
    assert fit_settings.parameters() == sum(p.numel() for p in fit.parameters) == count
    assert fit.output.shape == x.shape and asked == [35 * channels[layer] for layer in dropped] + [35]


UNET: dict[str, Any] = {"architecture": "unet", "channels": (1, 4, 6, 8, 1), "dropout_after": ()}


def unet_by_hand(parameters: list[Tensor], x: Tensor, sigmoid: bool) -> Tensor:
    """U-Net of three resolutions on one image (1, C, H, W), from the weights of one network."""
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))

    def layer(i: int, z: Tensor) -> Tensor:
        return nn.functional.conv2d(z, *layers[i], padding=1)

    def up(z: Tensor, like: Tensor) -> Tensor:
        return torch.cat([nn.functional.interpolate(z, size=like.shape[2:], mode="nearest"), like], 1)

    half = nn.MaxPool2d(2, ceil_mode=True)
    first = layer(0, x).relu()
    second = layer(1, half(first)).relu()
    third = layer(2, half(second)).relu()
    out = layer(5, layer(4, up(layer(3, up(third, second)).relu(), first)).relu())
    return out.sigmoid() if sigmoid else out


def test_a_unet_is_a_unet() -> None:
    ride, x = RIDE(**{**SMALL, **UNET, "sigma": 0.0}), images(3)
    fit = PerImageFit(ride.fit_settings, Noise.keyed(0, torch.arange(3)), x)
    assert ride.fit_settings.convolutions == [(1, 4), (4, 6), (6, 8), (14, 6), (10, 4), (4, 1)]
    assert ride.fit_settings.parameters() == sum(p[0].numel() for p in fit.parameters)
    assert ride.fit_settings.multiplications(8, 8) == 9 * (64 * (4 + 40 + 4) + 16 * (24 + 84) + 4 * 48)
    found = fit.estimate(x, 1, 0)
    for i in range(3):
        expected = unet_by_hand([p[i].detach() for p in fit.parameters], x[i : i + 1], True)
        assert torch.allclose(found[i : i + 1], expected, rtol=1e-10, atol=0)


def test_a_unet_learns_its_image_as_it_would_alone() -> None:
    settings = {**SMALL, **UNET, "dropout_after": (2, 4), "learning_rate": 1e-2}
    ride, x = RIDE(**settings), images(3)
    whole, end = purified(ride, x), ride.fits[0]
    start = PerImageFit(ride.fit_settings, Noise.keyed(0, torch.arange(3)), x)
    assert bool((end.risk(x, 4) < start.risk(x, 4)).all())
    ride.unrolled(x.requires_grad_(), 2).sum().backward()
    assert torch.allclose(purified(ride, x[1:2].detach(), [1]), whole[1:2], rtol=1e-8, atol=0)
    assert x.grad is not None and bool(x.grad.isfinite().all()) and float(x.grad.abs().sum()) > 0


def test_risk_is_the_mean_squared_error_without_dropout_and_mask() -> None:
    ride, x = RIDE(**{**SMALL, "sigma": 0.0}), images(3)
    fit = PerImageFit(ride.fit_settings, Noise.keyed(0, torch.arange(3)), x)
    expected = (fit.estimate(x, 1, 0) - x).square().flatten(1).mean(1)
    assert torch.allclose(fit.risk(x, 3), expected, rtol=1e-12)


def test_arithmetic_of_the_paper() -> None:
    assert 2 * RIDE().fit_settings.multiplications(224, 224) == pytest.approx(5.72e9, rel=1e-3)


def test_weight_decay_is_added_to_the_gradient() -> None:
    """A huge one decides the sign of Adam's first step; decoupled it would shrink weights in proportion."""
    x = images(2)
    fit = PerImageFit(
        RIDE(**{**SMALL, "weight_decay": 1e9, "learning_rate": 0.01}).fit_settings, Noise.keyed(0, torch.arange(2)), x
    )
    before = [p.detach().clone() for p in fit.parameters]
    fit.step(x)
    for old, new in zip(before, fit.parameters, strict=True):
        assert torch.allclose(new, old - 0.01 * old.sign(), atol=1e-5)


def test_looking_changes_nothing() -> None:
    ride, x, noise = RIDE(**{**SMALL, "steps": 10}), images(2), Noise.keyed(0, torch.arange(2))
    rare, often = list(ride.run(x, noise.fork(0))), list(ride.run(x, noise.fork(0), every=4))
    assert [(m.iteration, m.stage) for m in rare] == [(10, 1), (20, 2)]
    assert [m.iteration for m in often] == [4, 8, 10, 12, 16, 20]
    assert torch.equal(rare[-1].estimate, often[-1].estimate) and torch.equal(rare[0].target, often[2].target)
    assert torch.equal(often[2].target, combine(x, often[2].estimate, 0.9, True))
    assert torch.equal(often[1].target, x) and rare[0].losses.shape == (2,)
    assert not torch.equal(rare[0].target, rare[1].target)  # nor does a later stage change what was seen


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_caller_keeps_its_image_its_mode_and_its_random_numbers(mode: Callable[[], Any]) -> None:
    ride = RIDE(**{**SMALL, "steps": 3})
    plain, generator = purified(ride, images(2)), torch.get_rng_state()
    with mode():
        x = images(2)
        before, state = x.clone(), (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        z = purified(ride, x)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == state
    assert torch.equal(x, before) and torch.equal(z, plain) and z.dtype == x.dtype
    assert not z.requires_grad and z.min() >= 0 and z.max() <= 1
    assert torch.equal(generator, torch.get_rng_state())


def test_seeds_and_fresh_fits() -> None:
    ride, x = RIDE(**{**SMALL, "steps": 3}), images(2)
    assert torch.equal(purified(ride, x), purified(ride, x))
    assert not torch.equal(purified(ride, x, seed=1), purified(ride, x))
    with noise_for(ride, Noise.keyed(0, torch.arange(2))):
        first, second = ride(x), ride(x)
    assert torch.equal(first, purified(ride, x)) and not torch.equal(first, second)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(2, 1, 8, 8), torch.ones(1, 1, 8, 8), torch.full((1, 1, 3, 11), 0.5), torch.rand(0, 1, 8, 8)],
    ids=["zero", "one", "constant", "none"],
)
def test_odd_images(x: Tensor) -> None:
    z = purified(RIDE(**{**SMALL, "steps": 3}), x)
    assert z.shape == x.shape and z.isfinite().all()


def victim() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


def test_bpda_is_the_classifiers_gradient_at_the_fitted_image() -> None:
    ride, f, x = RIDE(**{**SMALL, "steps": 3}), victim(), images(3, dtype=torch.float32, size=(8, 8))
    y, buffers = torch.tensor([0, 1, 2]), [b.clone() for b in f.buffers()]
    with noise_for(ride, Noise.keyed(0, torch.arange(3))):
        found, _ = input_gradient(Purified(f, ride), x, y, ce)
    expected, _ = input_gradient(f, purified(ride, x), y, ce)
    assert torch.equal(found, expected) and not f.training
    assert all(map(torch.equal, buffers, f.buffers())) and all(p.grad is None for p in f.parameters())


def test_eot_draws_fresh_fits_side_by_side_or_not() -> None:
    model = Purified(victim(), RIDE(**{**SMALL, "steps": 3})).double()
    x, y = images(2, size=(8, 8)), torch.tensor([0, 1])
    means = []
    for at_once in (0, 2**16):
        with (
            noise_for(model, Noise.keyed(0, torch.arange(2))),
            patch("adversarial_lightning.attacks.core.eot_batched._AT_ONCE", at_once),
        ):
            means.append(input_gradient(model, x, y, ce, 4)[0])
    assert torch.allclose(*means, rtol=1e-6, atol=1e-12)


UNROLLED = [{}, DIP, {"estimates": 0, "amsgrad": True}, {**COLOUR, "suppression": False}, {"loss": "norm"}]


@pytest.mark.parametrize("settings", UNROLLED, ids=str)
def test_unrolled_it_is_the_run_and_differentiable(settings: dict[str, Any]) -> None:
    """Its value is that of a run with the same draws; its gradient, image by image, that of central differences."""
    ride = RIDE(**{**SMALL, "steps": 4, "learning_rate": 1e-2, **settings})
    x = 0.2 + 0.6 * images(3, ride.fit_settings.channels[0], size=(5, 4))
    with noise_for(ride, Noise.keyed(0, torch.arange(3))):
        ride(x)
    *_, last = ride.run(x, Noise(torch.cat([fit.noise.fork("unrolled").key for fit in ride.fits])))
    z = ride.unrolled(x.requires_grad_())
    assert torch.allclose(z, last.estimate, rtol=1e-6) and not torch.allclose(ride.unrolled(x, 2), z, rtol=1e-3)
    weights, d = images(3, x.shape[1], size=(5, 4)), images(6, x.shape[1], size=(5, 4))[3:]
    (slope,) = torch.autograd.grad((z * weights).sum(), x)
    with patch("adversarial_lightning.defenses.unrolled._BYTES", 0):  # one image at a time
        assert torch.allclose(torch.autograd.grad((ride.unrolled(x) * weights).sum(), x)[0], slope, rtol=1e-9)
    with torch.no_grad():
        up, down = (ride.unrolled(x + h * d) for h in (1e-7, -1e-7))
    expected = ((up - down) * weights).flatten(1).sum(1) / 2e-7
    assert torch.allclose((slope * d).flatten(1).sum(1), expected, rtol=1e-4, atol=1e-9)


def test_bpda_through_the_unrolled_fit() -> None:
    ride, f, x = RIDE(**{**SMALL, "steps": 3}), victim(), images(2, dtype=torch.float32, size=(8, 8))
    model, y, noise = Purified(f, ride), torch.tensor([0, 1]), Noise.keyed(0, torch.arange(2))
    attacks = [BPDA(FGSM(eps=0.05), backward="unrolled", steps=2), FGSM(eps=0.05)]
    one, other = (attack(model, x, y, noise) for attack in attacks)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="no unrolled"):
        BPDA(FGSM(eps=0.05), backward="unrolled")(Purified(f, MeanFilter()), x, y, noise)


def test_an_attack_leaves_image_and_modes() -> None:
    model, x = Purified(victim(), RIDE(**{**SMALL, "steps": 2})), images(2, dtype=torch.float32, size=(8, 8))
    before = x.clone()
    with torch.no_grad():
        z = PGD(eps=0.1, steps=2)(model, x, torch.tensor([0, 1]), Noise.keyed(0, torch.arange(2)))
    assert torch.equal(x, before) and 0 < (z - x).abs().max() <= 0.1 + 1e-6


def test_a_diverged_fit_leaves_its_image_and_no_other_notices() -> None:
    ride, x, step = RIDE(**{**SMALL, "steps": 3}), images(3), PerImageFit.step
    healthy = purified(ride, x)
    assert not ride.diverged.any()

    def poisoned(fit: PerImageFit, target: Tensor) -> Tensor:
        fit.parameters[0].data[1, 0, 0, 0, 0] = torch.inf
        return step(fit, target)

    with patch.object(PerImageFit, "step", poisoned), pytest.warns(UserWarning, match="1 of 3 fits diverged"):
        z = purified(ride, x)
    assert torch.equal(z[1], x[1]) and torch.allclose(z[[0, 2]], healthy[[0, 2]], rtol=1e-9)
    assert ride.diverged.tolist() == [False, True, False] and ride.fallbacks == 1


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    *(({name: 0}, f"{name} must be at least 1") for name in ("steps", "stages", "noisy_copies", "patience")),
    ({"max_images_per_pass": 0}, "max_images_per_pass must be at least 1"),
    ({"estimates": -1}, "estimates must be at least 0"),
    *(({"alpha": value}, "alpha must lie in") for value in (-0.1, 1.1, float("nan"))),
    *(({name: value}, f"{name} must lie in") for name in ("mask_ratio", "dropout") for value in (-0.1, 1.0)),
    *(({name: -1.0}, f"{name} \\(-1.0\\)") for name in ("sigma", "weight_decay", "learning_rate")),
    ({"memory": 0}, "memory must be above 0"),
    ({"channels": (1, 4, 3)}, "channels must begin and end"),
    ({"channels": (1,)}, "channels must begin and end"),
    ({"dropout_after": (3,)}, "hidden layers, 1 to 2"),
    ({"space": "normalized"}, "mean and std need 1 values"),
    ({"architecture": "vnet"}, "architecture"),
    ({"architecture": "unet", "channels": (1, 1), "dropout_after": ()}, "at least one hidden width"),
]


@pytest.mark.parametrize("settings,message", BAD_SETTINGS, ids=lambda v: str(v)[:40])
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RIDE(**{**SMALL, **settings})


BAD_IMAGES = [
    ({}, torch.full((2, 1, 8, 8), torch.nan), "not finite"),
    ({}, torch.rand(2, 1, 8, 8) + 0.5, "in \\[0, 1\\], not in"),
    ({}, torch.rand(2, 3, 8, 8), "network is for 1 channels"),
    ({}, torch.rand(1, 8, 8), "network is for 1 channels"),
    ({"memory": 1e-6}, torch.rand(2, 1, 8, 8), "takes .* GiB, more than"),
]


@pytest.mark.parametrize("settings,x,message", BAD_IMAGES, ids=["nan", "range", "channels", "no batch", "memory"])
def test_bad_images_are_refused_before_any_work(settings: dict[str, Any], x: Tensor, message: str) -> None:
    with patch.object(PerImageFit, "step", side_effect=AssertionError), pytest.raises(ValueError, match=message):
        RIDE(**{**SMALL, **settings})(x)


def test_memory_bounds_the_images_in_one_pass() -> None:
    x = torch.rand(64, 1, 28, 28)
    each = RIDE((1, 16, 16, 16, 1), (2, 3)).fit_settings.bytes_per_image(28, 28, 4)
    for fits in (1, 5, 200):
        ride = RIDE((1, 16, 16, 16, 1), (2, 3), memory=(fits + 0.5) * each / 2**30)
        assert ride.images_per_pass(x) == min(fits, 64)
    assert RIDE((1, 16, 16, 16, 1), (2, 3), max_images_per_pass=7).images_per_pass(x) == 7


def test_long_fits_say_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    for seconds, said in ((1.0, "fitting 8 images takes about 0:01:41 (h:min:s), 0:01:31 are left"), (0.01, "")):
        clock = [i * seconds for i in range(101)]
        with patch("adversarial_lightning.defenses.ride.time.monotonic", side_effect=clock):
            watch = Watch(101, 8)
            for _ in range(101):
                watch.tick()
        err = capsys.readouterr().err
        assert said in err and err.count("fitting") == (2 if said else 0)


def test_images_may_leave_their_range_by_rounding() -> None:
    ride = RIDE(**SMALL)
    for slack in (-1e-6, 1 + 1e-6):
        x = torch.full((1, 1, 4, 4), slack, dtype=torch.float64)
        assert torch.equal(ride._checked(x), x)
    for out in (-2e-6, 1 + 2e-6):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            ride._checked(torch.full((1, 1, 4, 4), out, dtype=torch.float64))
