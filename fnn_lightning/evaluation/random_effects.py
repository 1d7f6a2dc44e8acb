"""Tests of recipes, each trained with several seeds: seeds and images are both drawn by chance."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIGNIFICANCE = 0.05  # of both tests of `compare`: a smaller p-value is more than chance
POWER = 0.8
MAX_SEEDS = 1_000_000
ROUNDING = 1e-20  # variance of equal accuracies; a single image of a million has 1e-12

Scores = NDArray[np.floating] | NDArray[np.bool_]
"""Of each seed (row) on each image, 1 for correct and 0 for wrong; a share over several folds.

Of shape `(seeds, images)`, two or more of each."""


class RecipeDifference(NamedTuple):
    """How much more of the images the first of two recipes gets right than the second."""

    difference: float
    """From −1 to 1."""
    low: float
    """Lower end of the 95 % interval of the difference, over other seeds and other images."""
    high: float
    """Upper end."""
    p_value: float
    """Two-sided."""
    seeds_needed: int | None
    """Seeds of each recipe with which a true difference of this size would be found in 80 % of
    comparisons at the level 0.05; None if no number would do."""


class Variance(NamedTuple):
    """The variance of a mean over seeds and images."""

    seeds: tuple[float, ...]
    """The part of each recipe: the variance of its mean over seeds, the images being given."""
    counts: tuple[int, ...]
    """Number of seeds of each recipe."""
    images: float
    """What more seeds would not lower: that other images would be harder for one recipe alone."""
    image_count: int

    @property
    def total(self) -> float:
        """The variance of the mean."""
        return sum(self.seeds) + self.images

    @property
    def degrees_of_freedom(self) -> float:
        """Those of Welch and Satterthwaite, for the total."""
        parts = zip(self.seeds, self.counts, strict=True)
        inverse = sum(part**2 / (count - 1) for part, count in parts)
        inverse += self.images**2 / (self.image_count - 1)
        return self.total**2 / inverse if inverse else math.inf

    def with_seeds(self, count: int) -> "Variance":
        """Return what the variance would be with so many seeds of each recipe."""
        seeds = tuple(part * now / count for part, now in zip(self.seeds, self.counts, strict=True))
        return Variance(seeds, (count,) * len(seeds), self.images, self.image_count)


def variance_of_mean(recipes: Sequence[Scores]) -> Variance:
    """Estimate the variance of a recipe's accuracy, or of the difference between those of two.

    Images and seeds are random and crossed; the seeds of one recipe have nothing to do with those
    of another. The variance between the images of the seeds' mean holds a share of what seed and
    image do together, and so has the variance between seeds; that share is counted once.

    Source: the moments of N. A. Obuchowski and H. E. Rockette, "Hypothesis testing of diagnostic
    accuracy for multiple readers and multiple tests", 1995, where seeds are readers and images are
    cases, for readers that differ between the tests; S. L. Hillis, "A marginal-mean ANOVA approach
    for analyzing multireader multicase radiological imaging data", 2014.

    Args:
        recipes: One, or two to subtract the second from the first, with the same images.
    """
    count = recipes[0].shape[1]
    seeds, shared = [], 0.0
    for scores in recipes:
        of_seeds, of_images = scores.mean(axis=1), scores.mean(axis=0)
        of_recipe = float(of_seeds.var(ddof=1)) / len(scores)
        seeds.append(of_recipe if of_recipe > ROUNDING else 0.0)
        residual = scores - of_images - of_seeds[:, None] + of_images.mean()
        shared += float((residual**2).sum()) / (len(scores) - 1) / (count - 1) / scores.size
    per_image = recipes[0].mean(axis=0)
    for scores in recipes[1:]:
        per_image = per_image - scores.mean(axis=0)
    images = float(per_image.var(ddof=1)) / count
    if any(seeds):  # else all seeds are equally right, if on other images
        images = max(images - shared, 0.0)
    return Variance(tuple(seeds), tuple(map(len, recipes)), images, count)


def accuracy_interval(scores: Scores) -> tuple[float, float]:
    """Compute the 95 % confidence interval of a recipe's accuracy, over other seeds and images.

    Example:
        >>> scores = np.array([[1, 1, 1, 0], [1, 1, 0, 1], [1, 1, 1, 0]])
        >>> print("{:.3f} to {:.3f}".format(*accuracy_interval(scores)))
        0.242 to 1.000
    """
    mean, half_width = float(scores.mean()), half_interval(variance_of_mean([scores]))
    return max(0.0, mean - half_width), min(1.0, mean + half_width)


def half_interval(variance: Variance) -> float:
    """Return half the width of a 95 % confidence interval, by Student's t distribution."""
    from scipy.stats import t

    quantile = t.ppf(1 - SIGNIFICANCE / 2, variance.degrees_of_freedom)
    return float(quantile) * math.sqrt(variance.total)


def recipe_difference(first: Scores, second: Scores) -> RecipeDifference:
    """Test whether two recipes differ in accuracy, over other seeds and other images.

    This is Student's t test with the standard error of crossed random effects, `variance_of_mean`,
    and the degrees of freedom of Welch and Satterthwaite. It calls about 5 % of simulated pairs of
    equal recipes different at the level 0.05: docs/options.md has the figures. Simpler tests do
    not. One of the images alone, such as McNemar's, takes the seeds for given: up to 43 %. A t test
    of the seeds' accuracies takes the images for given: up to 51 %. So does a permutation test of
    the seeds, whose p-value is never below 0.1 with three seeds each.

    Args:
        first: Scores of the first recipe.
        second: Those of the second, on the same images; the number of seeds may be another.

    Example:
        >>> first = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
        >>> second = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 1]])
        >>> print(f"{recipe_difference(first, second).p_value:.3f}")
        0.039
    """
    from scipy.stats import t

    difference = float(first.mean() - second.mean())
    variance = variance_of_mean([first, second])
    half_width = half_interval(variance)
    if variance.total:
        ratio = abs(difference) / math.sqrt(variance.total)
        p_value = float(2 * t.sf(ratio, variance.degrees_of_freedom))
    else:
        p_value = 0.0 if difference else 1.0
    return RecipeDifference(
        difference,
        difference - half_width,
        difference + half_width,
        p_value,
        seeds_needed(difference, variance),
    )


def seeds_needed(difference: float, variance: Variance) -> int | None:
    """Return how many seeds of each of two recipes it takes to find a difference between them.

    Args:
        difference: The true one.
        variance: As measured with the seeds that there are.

    Returns:
        The smallest number with which the test finds it with a probability of 0.8 at the level
        0.05, the images being as many as now; None if no number would do.
    """

    def is_enough(count: int) -> bool:
        return power(difference, variance.with_seeds(count)) >= POWER

    if not difference or not is_enough(MAX_SEEDS):
        return None
    return 2 + bisect_left(range(2, MAX_SEEDS), True, key=is_enough)


def power(difference: float, variance: Variance) -> float:
    """Return the probability that the test finds a true difference at the level 0.05.

    That it finds the opposite is left out: nct.cdf is NaN for some of these tiny probabilities.
    """
    from scipy.stats import nct, t

    if not variance.total:
        return float(difference != 0)
    degrees = variance.degrees_of_freedom
    critical = t.ppf(1 - SIGNIFICANCE / 2, degrees)
    # far above the critical value, where the distribution is not computed, it is found for certain
    centre = min(abs(difference) / math.sqrt(variance.total), 3 * critical + 10)
    return float(nct.sf(critical, degrees, centre))
