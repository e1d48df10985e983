"""Filters against plain computations of the same, at their edges, and what they refuse."""

import itertools

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from scipy.ndimage import median_filter
from torch import Tensor
from victims import Linear, at_distance

from adversarial_lightning.attacks import PGD, Noise
from adversarial_lightning.defenses import (
    JPEG,
    BitDepth,
    MeanFilter,
    Median,
    Purified,
    Purifier,
    TVBregman,
    TVChambolle,
)

FILTERS: list[Purifier] = [
    *(MeanFilter(), Median(), Median(11), TVBregman(), TVBregman(0.075), TVChambolle(), TVChambolle(1.75)),
    *(JPEG(), JPEG(1), JPEG(100), BitDepth(), BitDepth(1)),
]
IDS = [f"{type(p).__name__}-{next((v for v in vars(p).values() if isinstance(v, int | float)), '')}" for p in FILTERS]


def variation(x: Tensor) -> float:
    """Sum of the absolute differences of neighbours."""
    return float(x.diff(dim=2).abs().sum() + x.diff(dim=3).abs().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(5, 1, 11, 17), (2, 3, 20, 12), (1, 1, 28, 28), (0, 3, 12, 12)], ids=str)
@pytest.mark.parametrize("purifier", FILTERS, ids=IDS)
def test_shape_type_and_range_stay_and_the_input_too(
    purifier: Purifier, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.rand(shape, dtype=torch.float64).to(dtype)
    for given in (x, x.to(memory_format=torch.channels_last)):
        before = given.clone()
        z = purifier(given)
        assert z.shape == x.shape and z.dtype == dtype and torch.equal(given, before)
        assert bool(((z >= 0) & (z <= 1)).all())
        for i in range(len(x)):  # each image is one alone
            assert torch.equal(purifier(given[i : i + 1]), z[i : i + 1])


@pytest.mark.parametrize("purifier", FILTERS, ids=IDS)
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_black_and_white_images_stay(purifier: Purifier, value: float, channels: int) -> None:
    x = torch.full((2, channels, 13, 16), value)
    z = purifier(x)
    if isinstance(purifier, Median):  # there are zeros around it
        r = purifier.size // 2
        x, z = (v[:, :, r : 13 - r, r : 16 - r] for v in (x, z))
    assert z.numel() and torch.allclose(z, x, atol=1 / 255 if isinstance(purifier, JPEG) else 1e-6)


@pytest.mark.parametrize("purifier", [TVBregman(), TVBregman(0.25), TVChambolle(), BitDepth(1)], ids=IDS[3:7])
def test_channels_are_filtered_alone(purifier: Purifier) -> None:
    x = torch.rand(2, 3, 9, 13)
    z = purifier(x)
    for c in range(3):
        assert torch.equal(purifier(x[:, c : c + 1]), z[:, c : c + 1])


@pytest.mark.parametrize("size", [3, 5, 7, 9, 11])
def test_median_is_scipys_with_zeros_around(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(5, 3, 12, 11)
    z = Median(size)(x)
    assert np.array_equal(z.numpy(), median_filter(x.numpy(), (1, 1, size, size), mode="constant", cval=0))
    monkeypatch.setattr(Median, "MEMORY", 2 * 3 * 12 * 11 * size**2)  # two images at a time
    assert torch.equal(Median(size)(x), z)


def test_median_of_an_impulse_and_its_gradient() -> None:
    impulse = torch.zeros(1, 1, 9, 9)
    impulse[0, 0, 4, 4] = 1
    assert not Median()(impulse).any()
    x = torch.rand(2, 1, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Median(), (x,))


@pytest.mark.parametrize(
    "make,smoother",
    [(TVBregman, [50, 20, 10, 5, 2, 1, 0.75, 0.5, 0.25, 0.125, 0.075]), (TVChambolle, [0.01, 0.25, 0.5, 1, 1.75])],
)
def test_which_weight_smooths_more(make: type[TVBregman] | type[TVChambolle], smoother: list[float]) -> None:
    """The trap of scikit-image: they go opposite ways. Over the grids of RIDE's paper, on noisy squares."""
    clean = torch.zeros(2, 1, 24, 24)
    clean[:, :, 6:18, 6:18] = 0.8
    x = (clean + 0.15 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    roughness = [variation(make(weight)(x)) for weight in smoother]
    assert variation(x) > roughness[0] and all(a > b for a, b in itertools.pairwise(roughness))
    nearest = min(float((make(weight)(x) - clean).square().mean()) for weight in smoother)
    assert nearest < 0.65 * float((x - clean).square().mean())


LUMINANCE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 18 22 37
56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""


def test_jpeg_rounds_the_cosine_transform_of_blocks() -> None:
    """A grey image of quality 50, computed by the standard's definition, up to the rounding of libjpeg's integers."""
    steps = np.array(LUMINANCE.split(), float).reshape(8, 8)
    x = torch.rand(1, 1, 16, 24)
    expected = np.zeros((16, 24))
    for i in range(0, 16, 8):
        for j in range(0, 24, 8):
            block = (x[0, 0, i : i + 8, j : j + 8] * 255).round().double().numpy() - 128
            rounded = steps * np.round(dctn(block, norm="ortho") / steps)
            expected[i : i + 8, j : j + 8] = (idctn(rounded, norm="ortho") + 128).clip(0, 255) / 255
    far = np.abs(JPEG(50)(x)[0, 0].numpy() - expected)
    assert (
        np.median(far) < 1 / 255 and far.max() < 0.2
    )  # one coefficient on the edge of rounding moves a block a little


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_of_lower_quality_is_further_away(channels: int) -> None:
    x = torch.rand(2, channels, 24, 17)
    distances = [float((JPEG(quality)(x) - x).abs().mean()) for quality in (10, 50, 75, 95)]
    assert all(a > b for a, b in itertools.pairwise(distances))
    ramp = torch.linspace(0, 1, 24).view(1, 1, 24, 1).expand(1, channels, 24, 17)
    assert (JPEG(95)(ramp) - ramp).abs().max() < 0.02  # right way up, and channels where they were
    colour = torch.tensor([0.8, 0.5, 0.2])[:channels].view(1, channels, 1, 1).expand(1, channels, 8, 10)
    assert (JPEG(95)(colour) - colour).abs().max() < 0.02


@pytest.mark.parametrize("bits", range(1, 9))
def test_bit_depth_leaves_its_values_and_moves_by_half_a_step(bits: int) -> None:
    x = torch.linspace(0, 1, 2**10).view(1, 1, 32, 32)
    z = BitDepth(bits)(x)
    assert len(z.unique()) == 2**bits and (z - x).abs().max() <= 0.5 / (2**bits - 1) + 1e-6
    assert torch.equal(BitDepth(bits)(z), z)


@pytest.mark.parametrize("purifier", [Median(), TVBregman(), TVChambolle(), JPEG(), BitDepth(3)], ids=lambda p: str(p))
def test_pgd_sees_through_filters(purifier: Purifier) -> None:
    """Exact forwards, a gradient that is not zero backwards: what a linear classifier loses, it loses behind them."""
    inner = Linear((1, 8, 8))
    x, y = at_distance(inner, "linf", 0.02, 16)
    model = Purified(inner, purifier)
    z = PGD(eps=0.3, steps=20)(model, x, y, Noise.keyed(0, torch.arange(16)))
    with torch.no_grad():
        assert torch.equal(model(x), inner(purifier(x)))
        assert (model(z).argmax(1) == y).float().mean() < 0.2


@pytest.mark.parametrize(
    "make,message",
    [
        *[(lambda size=size: Median(size), "odd and at least 3") for size in (1, 4, -3)],
        *[(lambda w=w: TVBregman(w), "weight must be above 0") for w in (0.0, -1.0, float("inf"), float("nan"))],
        *[(lambda w=w: TVChambolle(w), "weight must be above 0") for w in (0.0, -1.0)],
        *[(lambda make=make: make(steps=0), "steps must be at least 1") for make in (TVBregman, TVChambolle)],
        *[(lambda quality=quality: JPEG(quality), "quality must be") for quality in (0, 101)],
        *[(lambda bits=bits: BitDepth(bits), "bits must be") for bits in (0, 9)],
        (lambda: Median(9)(torch.rand(1, 1, 8, 12)), "9 x 9 pixels is larger than images of 8 x 12"),
        (lambda: JPEG()(torch.rand(1, 2, 8, 8)), "1 or 3 channels, not 2"),
        *[
            (lambda p=p: p(torch.tensor([0.0, float("nan")]).view(2, 1, 1, 1).expand(2, 1, 4, 4)), "1 of 2 images hold")
            for p in (TVBregman(), TVChambolle(), JPEG())
        ],
    ],
)
def test_bad_settings_and_images(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
