from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t, ttest_ind, ttest_rel

from fnn_lightning.evaluation.random_effects import (
    Variance,
    accuracy_interval,
    recipe_difference,
    seeds_needed,
    variance_of_mean,
)


def scores(
    rng: np.random.Generator, hardness: NDArray[np.float64], seeds: int
) -> NDArray[np.float64]:
    """Return what seeds get right of images that they get wrong with these probabilities."""
    return (rng.random((seeds, len(hardness))) >= hardness).astype(float)


def test_the_part_of_the_images_is_the_covariance_of_different_seeds() -> None:
    rng = np.random.default_rng(0)
    first, second = scores(rng, rng.random(60), 3), scores(rng, rng.random(60), 4)

    def covariance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        return float(np.cov(one, other)[0, 1])

    shared = sum(
        np.mean([covariance(*pair) for pair in combinations(rows, 2)]) for rows in (first, second)
    ) - 2 * np.mean([covariance(one, other) for one, other in product(first, second)])
    variance = variance_of_mean([first, second])
    assert variance.images == pytest.approx(shared / 60, rel=1e-9)
    of_seeds = [rows.mean(axis=1).var(ddof=1) / len(rows) for rows in (first, second)]
    assert variance.seeds == pytest.approx(of_seeds, rel=1e-9)

    result = recipe_difference(first, second)
    total = sum(of_seeds) + shared / 60
    degrees = total**2 / (of_seeds[0] ** 2 / 2 + of_seeds[1] ** 2 / 3 + (shared / 60) ** 2 / 59)
    difference = first.mean() - second.mean()
    assert result.p_value == pytest.approx(2 * t.sf(abs(difference) / total**0.5, degrees))
    assert (result.low, result.high) == pytest.approx(
        t.interval(0.95, degrees, difference, total**0.5)
    )


def test_where_all_images_are_alike_it_is_welchs_test_of_the_seeds() -> None:
    rng = np.random.default_rng(0)
    # every image is as hard: what a mean of seeds differs by is the seeds' own
    first, second = scores(rng, np.full(200, 0.3), 4), scores(rng, np.full(200, 0.4), 6)
    assert variance_of_mean([first, second]).images == 0
    welch = ttest_ind(first.mean(axis=1), second.mean(axis=1), equal_var=False)
    assert recipe_difference(first, second).p_value == pytest.approx(welch.pvalue, rel=1e-9)


def test_where_all_seeds_are_alike_it_is_the_paired_test_of_the_images() -> None:
    rng = np.random.default_rng(0)
    first, second = (np.tile(scores(rng, np.full(100, 0.3), 1), (3, 1)) for _ in range(2))
    paired = ttest_rel(first[0], second[0])
    result = recipe_difference(first, second)
    assert result.p_value == pytest.approx(paired.pvalue, rel=1e-9)
    # equally right on other images: not without variance
    shifted = np.stack([np.roll(first[0], shift) for shift in range(3)])
    assert recipe_difference(shifted, second).p_value > 0.01
    for right in range(1, 100):  # of which the mean is rounded
        row = np.arange(100) < right
        seeds = np.stack([np.roll(row, shift) for shift in range(3)])
        assert variance_of_mean([seeds, second]).seeds == (0, 0)
    assert recipe_difference(first, first).p_value == 1.0
    assert recipe_difference(np.ones((2, 9)), np.zeros((3, 9))).p_value == 0.0


def test_the_interval_of_one_recipe_covers_seeds_and_images() -> None:
    rows = np.tile(np.array([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=bool), 4)
    # of seeds: 3/4, 3/4, 1/2, whose variance is 1/48; of images: the mean covariance of two seeds
    of_seeds, of_images = 1 / 144, (0.2 + 2 / 7.5) / 3 / 16
    total = of_seeds + of_images
    degrees = total**2 / (of_seeds**2 / 2 + of_images**2 / 15)
    assert accuracy_interval(rows) == pytest.approx(t.interval(0.95, degrees, 2 / 3, total**0.5))
    assert accuracy_interval(np.array([[1, 1, 0], [1, 0, 0]])) == (0, 1)


@pytest.mark.parametrize(
    ("effect", "count"),
    # J. Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, table 2.4.1: n in
    # each of two groups for a difference of so many standard deviations, power 0.80, two-sided 0.05
    [(0.20, 393), (0.50, 64), (0.80, 26), (1.00, 17)],
)
def test_the_seeds_needed_are_those_of_published_tables(effect: float, count: int) -> None:
    # with one image's share of chance at 0 it is the t test of two independent groups
    five_seeds = Variance((1 / 5, 1 / 5), (5, 5), 0.0, 10_000)
    assert abs((seeds_needed(effect, five_seeds) or 0) - count) <= 1
    assert seeds_needed(-effect, five_seeds) == seeds_needed(effect, five_seeds)


def test_more_seeds_do_not_help_where_the_images_are_too_few() -> None:
    # 80 % power needs 1.960 + 0.842 standard errors
    images = Variance((1e-9, 1e-9), (5, 5), 1e-6, 10_000)
    assert seeds_needed(0.0027, images) is None
    needed = seeds_needed(0.0029, images)
    assert needed is not None
    assert needed < 10
    assert seeds_needed(0.0, images) is None
    assert seeds_needed(0.5, images) == 2
