import torch

from adversarial_lightning.evaluation.outcomes.subset import random_subset


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


def test_every_sample_is_drawn_equally_often_and_the_mean_is_not_biased():
    numbers, hits = torch.arange(200), torch.zeros(200)
    for seed in range(1_000):
        hits[random_subset(numbers, 50, seed)] += 1
    expected, deviation = 250.0, (1_000 * 0.25 * 0.75) ** 0.5
    assert (hits - expected).abs().max() < 4 * deviation
    assert abs(float((hits * numbers).sum() / hits.sum()) - 99.5) < 1.5
