"""Keyed noise: distribution, independence of the batch, forks."""

import pytest
import torch

from adversarial_lightning.attacks import Noise


def draws(seed: int, index: list[int], kind: str = "uniform", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return getattr(Noise.keyed(seed, torch.tensor(index)), kind)(torch.empty(len(index), 3, 5, dtype=dtype))


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_belongs_to_the_sample(kind: str, dtype: torch.dtype) -> None:
    whole = draws(1, [4, 7, 9, 11], kind, dtype)
    for row, index in enumerate([4, 7, 9, 11]):
        assert torch.equal(draws(1, [index], kind, dtype)[0], whole[row])
    assert torch.equal(draws(1, [11, 4], kind, dtype), whole[[3, 0]])
    assert whole.dtype == dtype
    assert not torch.equal(draws(2, [4, 7, 9, 11], kind, dtype), whole)


def test_known_values_stay() -> None:
    """Results on disk depend on these numbers: a change of the generator must be noticed."""
    u = Noise.keyed(0, torch.tensor([0, 1])).uniform(torch.empty(2, 2))
    assert torch.allclose(u, torch.tensor([[0.3380525, 0.2691302], [0.8833108, 0.431528]]), atol=1e-7)


def test_the_generator_is_splitmix64() -> None:
    """The first numbers of the published generator (Steele et al. 2014) for the seed 1234567."""
    words = Noise(torch.tensor([1234567]))._words(3)[0]
    assert [int(w) % 2**64 for w in words] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_moments() -> None:
    index, like = torch.arange(2000), torch.empty(2000, 101)
    u, g = Noise.keyed(3, index).uniform(like), Noise.keyed(3, index).normal(like)
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 2e-3 and abs(u.var() - 1 / 12) < 1e-3
    assert abs(g.mean()) < 5e-3 and abs(g.var() - 1) < 1e-2 and abs((g**4).mean() - 3) < 0.06
    c = Noise.keyed(3, index).bernoulli(like, 0.5).float()
    for p in (0.1, 0.25, 0.5, 0.9):
        assert abs(Noise.keyed(3, index).bernoulli(like, p).float().mean() - p) < 4e-3
    for z in (u - 0.5, g, c - 0.5):  # neighbours: samples, elements, seeds, forks
        scale = z.var()
        assert abs((z[1:] * z[:-1]).mean() / scale) < 0.01
        assert abs((z[:, 1:] * z[:, :-1]).mean() / scale) < 0.01
    other = Noise.keyed(4, index).uniform(like) - 0.5
    fork = Noise.keyed(3, index).fork(0).uniform(like) - 0.5
    for z in (other, fork):
        assert abs((z * (u - 0.5)).mean() * 12) < 0.01


def test_successive_draws_and_forks_differ_and_forks_leave_the_parent() -> None:
    noise, like = Noise.keyed(0, torch.arange(3)), torch.empty(3, 4)
    twin = Noise.keyed(0, torch.arange(3))
    forks = [noise.fork(name).uniform(like) for name in (0, 1, -1, "defender", "attacker")]
    first, second = noise.uniform(like), noise.uniform(like)
    assert torch.equal(first, twin.uniform(like))
    everything = torch.stack([first, second, *forks])
    for i in range(len(everything)):
        for j in range(i):
            assert not torch.equal(everything[i], everything[j])


def test_rows_follow_a_selection() -> None:
    noise, rows = Noise.keyed(0, torch.arange(5)), torch.tensor([3, 1])
    noise.uniform(torch.empty(5, 2))
    assert torch.equal(noise[rows].uniform(torch.empty(2, 4)), noise.uniform(torch.empty(5, 4))[rows])
    with pytest.raises(ValueError, match=r"noise\[rows\]"):
        noise.uniform(torch.empty(2, 4))


def test_coins() -> None:
    noise, like = Noise.keyed(0, torch.tensor([4, 7])), torch.empty(2, 3, 5)
    assert noise.fork(0).bernoulli(like, 1.0).all() and not noise.fork(0).bernoulli(like, 0.0).any()
    thrown = noise.bernoulli(like, 0.5)
    assert thrown.shape == like.shape and thrown.dtype == torch.bool and noise.counter == 2  # 15 in 2 words
    assert torch.equal(Noise.keyed(0, torch.tensor([7])).bernoulli(like[:1], 0.5)[0], thrown[1])
    assert not torch.equal(noise.bernoulli(like, 0.5), thrown) and noise.bernoulli(like, 0.3).dtype == torch.bool
    assert noise.counter == 8  # and 4 words where 8 bits do not say it


def test_split_gives_new_streams_and_advances_by_one() -> None:
    noise, like = Noise.keyed(0, torch.arange(3)), torch.empty(3, 4)
    first, second = noise.split(), noise.split()
    assert noise.counter == 2
    draws = [n.uniform(like) for n in (first, second, noise)]
    assert all(not torch.equal(draws[i], draws[j]) for i in range(3) for j in range(i))
    wide = Noise.keyed(0, torch.arange(3)).repeat(2, 1).split().uniform(torch.empty(6, 4))
    assert torch.equal(wide, torch.cat(draws[:2]))  # copies side by side


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    noise = Noise.keyed(0, torch.arange(3))
    noise.normal(torch.empty(3, 7)), noise.fork("a").uniform(torch.empty(3, 7))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_below_one(dtype: torch.dtype) -> None:
    u = Noise.keyed(0, torch.arange(200)).uniform(torch.empty(200, 2000, dtype=dtype))
    assert u.dtype == dtype and u.min() >= 0 and u.max() < 1 and abs(u.float().mean() - 0.5) < 1e-3
