"""Confidence intervals of accuracies and means, and tests of differences."""

import math
import statistics
from collections.abc import Sequence


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Compute the 95 % confidence interval of an accuracy.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    1927.

    Args:
        correct: Number of images classified correctly.
        total: Number of images, 1 or more.

    Returns:
        Lower and upper bound, from 0 to 1.

    Example:
        >>> low, high = wilson_interval(9_800, 10_000)
        >>> print(f"{low:.4f} to {high:.4f}")
        0.9771 to 0.9826
    """
    # written out: a table of a thousand runs has two of them for each, and SciPy is slow to import
    accuracy, z = correct / total, statistics.NormalDist().inv_cdf(0.975)
    centre = accuracy + z**2 / (2 * total)
    half_width = z * math.sqrt(accuracy * (1 - accuracy) / total + (z / (2 * total)) ** 2)
    scale = 1 + z**2 / total
    return max(0.0, (centre - half_width) / scale), min(1.0, (centre + half_width) / scale)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Compute the mean of independent results, such as those of several seeds, and its precision.

    Args:
        values: Two results or more.

    Returns:
        Mean, sample standard deviation (with n − 1), and half the width of the mean's 95 %
        confidence interval by Student's t distribution.

    Raises:
        ValueError: If there are fewer than two values.

    Example:
        >>> mean, deviation, half_width = mean_interval([97.9, 98.1, 98.0])
        >>> print(f"{mean:.2f} ± {half_width:.2f}")
        98.00 ± 0.25
    """
    from scipy.stats import t

    mean, deviation = statistics.mean(values), statistics.stdev(values)
    half_width = t.ppf(0.975, len(values) - 1) * deviation / math.sqrt(len(values))
    return mean, deviation, float(half_width)


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute the two-sided p-value of the exact McNemar test.

    This is the probability that two equally accurate classifiers differ at least this much in the
    images that only one of them gets right.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated
    proportions or percentages", 1947; here with the exact binomial distribution instead of its
    approximation.

    Args:
        only_first: Number of images that only the first classifier gets right.
        only_second: Number of images that only the second classifier gets right.

    Example:
        >>> mcnemar(1, 5)
        0.21875
    """
    from scipy.stats import binomtest

    differing = only_first + only_second
    return float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several tests for their number.

    Call a difference significant if its adjusted p-value is below 0.05: the probability that any
    of these calls is wrong is then at most 0.05.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Returns:
        The adjusted p-values, in the order of `p_values`.

    Example:
        >>> holm([0.01, 0.5, 0.25])
        [0.03, 0.5, 0.5]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
