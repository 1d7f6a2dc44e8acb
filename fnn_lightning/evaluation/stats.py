"""How sure a figure is: intervals of accuracies and means, tests of differences."""

import math
import statistics
from collections.abc import Sequence


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Compute the 95 % interval of an accuracy.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    1927.

    Args:
        correct: Number of images classified correctly.
        total: Number of images, 1 or more.

    Returns:
        Lower and upper bound, from 0 to 1.
    """
    from scipy.stats import binomtest

    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Compute the mean of independent figures, such as those of several seeds, and how sure it is.

    Args:
        values: Two figures or more.

    Returns:
        Mean, sample standard deviation (with n − 1), and half of the width of the mean's 95 %
        interval by Student's t distribution.

    Raises:
        ValueError: If there are fewer than two values.
    """
    from scipy.stats import t

    mean, deviation = statistics.mean(values), statistics.stdev(values)
    half_width = t.ppf(0.975, len(values) - 1) * deviation / math.sqrt(len(values))
    return mean, deviation, float(half_width)


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute the p-value of the exact McNemar test, two-sided.

    It is the probability that two classifiers of the same accuracy differ this much or more in
    what one of them alone gets right.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated
    proportions or percentages", 1947, with the binomial distribution in place of its
    approximation.

    Args:
        only_first: Number of images that only the first classifier gets right.
        only_second: Number of images that only the second one gets right.
    """
    from scipy.stats import binomtest

    differing = only_first + only_second
    return float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several tests for how many they are.

    To call a difference more than chance when its adjusted p-value is below 0.05 is wrong about
    one or more of the differences with a probability of at most 0.05.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Returns:
        The adjusted p-values, in the order of the given ones.
    """
    adjusted, greatest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = greatest
    return adjusted
