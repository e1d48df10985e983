import numpy as np
import pytest
import torch

from adversarial_lightning.evaluation.outcomes.statistics import (
    bitmap_of,
    bootstrap,
    flags_of,
    paired,
    remaining_variance,
    sampling_interval,
)
from adversarial_lightning.evaluation.outcomes.subset import Samples, random_images, random_numbers, random_subset
from adversarial_lightning.reproduce.subset_bias import coverage


def test_a_subset_is_random_nested_keyed_and_independent_of_the_other_samples():
    numbers = torch.arange(5_000)
    few, many = random_subset(numbers, 100, 3), random_subset(numbers, 1_000, 3)
    assert len(few) == 100 and set(few.tolist()) < set(many.tolist())
    assert few.tolist() == sorted(few.tolist()) != list(range(100))
    assert few.tolist() != random_subset(numbers, 100, 4).tolist()
    assert random_subset(numbers, None, 3).tolist() == numbers.tolist()
    shuffled = numbers[torch.randperm(5_000, generator=torch.Generator().manual_seed(0))]
    assert set(shuffled[random_subset(shuffled, 100, 3)].tolist()) == set(few.tolist())
    rest = numbers[numbers != few[0]]
    assert len(set(rest[random_subset(rest, 100, 3)].tolist()) & set(few.tolist())) == 99


def test_seed_0_is_the_default() -> None:
    images, numbers = IndexedTensors(500), torch.arange(500)
    expected = random_subset(numbers, 20, 0).tolist()
    assert random_subset(numbers, 20).tolist() == random_numbers(range(500), 20) == expected
    assert random_images(images, 20)[2].tolist() == expected != random_images(images, 20, 1)[2].tolist()


class IndexedTensors:
    """Numbered images, as a data set gives them."""

    def __init__(self, n: int) -> None:
        self.indices = torch.arange(n)

    def __getitems__(self, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        index = self.indices[positions]
        return index[:, None, None, None] / 500, index % 10, index


def test_every_sample_is_drawn_equally_often_and_the_mean_is_not_biased():
    numbers, hits = torch.arange(200), torch.zeros(200)
    for seed in range(1_000):
        hits[random_subset(numbers, 50, seed)] += 1
    expected, deviation = 250.0, (1_000 * 0.25 * 0.75) ** 0.5
    assert (hits - expected).abs().max() < 4 * deviation
    assert abs(float((hits * numbers).sum() / hits.sum()) - 99.5) < 1.5


def ordered(n: int = 10_000) -> np.ndarray:
    """Outcomes whose second half is 15 points better than the first, as on MNIST's test set."""
    return np.random.default_rng(0).random(n) < np.where(np.arange(n) < n // 2, 0.52, 0.67)


@pytest.mark.parametrize("n", [300, 1_000, 5_000])
def test_intervals_of_random_subsets_hold_the_whole_sets_accuracy_and_the_first_images_do_not(n: int) -> None:
    found = coverage(ordered(), n, seeds=400)
    assert 0.93 <= found["covered"] <= 0.97
    assert abs(found["mean"] - found["whole"]) < 0.005 and found["first"] < found["whole"] - 0.05
    assert not found["first_covers"] or n < 1_000


@pytest.mark.parametrize(
    ("samples", "wide"),
    [
        (Samples("random", 0, 1_000, 10**9), 1.0),
        (Samples("random", 0, 1_000, 1_100), (100 / 1_099) ** 0.5),
        (Samples("all", None, 1_000, 1_000), None),
        (Samples("first", None, 1_000, 10_000), None),
    ],
)
def test_an_interval_is_over_the_images_that_were_not_looked_at(samples: Samples, wide: float | None) -> None:
    """Wilson's and the bootstrap's, narrowed by the share of the set that was seen; none where nothing is estimated."""
    values = np.random.default_rng(0).random(1_000)
    if wide is None:
        assert sampling_interval(0.6, samples) is bootstrap(values, samples) is None
        return
    expected = 2 * 1.96 * (0.6 * 0.4 / 1_000) ** 0.5, 2 * 1.96 * values.std() / 1_000**0.5
    for bounds, whole in zip((sampling_interval(0.6, samples), bootstrap(values, samples)), expected, strict=True):
        assert bounds is not None and bounds[1] - bounds[0] == pytest.approx(wide * whole, rel=0.1)
    assert bootstrap(values, samples) == bootstrap(values, samples)


def test_a_mean_over_draws_keeps_the_variance_over_draws() -> None:
    nearly_all = Samples("random", 0, 999, 1_000)
    assert remaining_variance(nearly_all, draws=20) == 1 / 20 and remaining_variance(nearly_all) == 1 / 999


def test_two_models_are_compared_on_the_same_samples() -> None:
    """Discordant samples alone decide: 12 against 2 is significant (p 0.013), 8 against 2 is not (p 0.11)."""
    both = np.ones(50, bool)
    for gained, lost, p in ((12, 2, 0.01294), (8, 2, 0.10938), (0, 0, 1.0)):
        one = np.concatenate([both, np.ones(gained, bool), np.zeros(lost, bool)])
        other = np.concatenate([both, np.zeros(gained, bool), np.ones(lost, bool)])
        assert paired(one, other) == pytest.approx(p, abs=1e-5)
        assert (flags_of(bitmap_of(one), len(one)) == one).all()
