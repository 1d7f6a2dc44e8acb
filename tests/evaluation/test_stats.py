import pytest

from fnn_lightning.evaluation.stats import holm, mcnemar, mean_interval, wilson_interval


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # R. G. Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
     (1, 29, 0.0061, 0.1718)],
)  # fmt: skip
def test_wilson_interval_agrees_with_published_values(
    correct: int, total: int, low: float, high: float
) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_mean_interval_uses_student_t_with_n_minus_1_degrees() -> None:
    # variance (2.25 + 0.25 + 0.25 + 2.25) / 3; 3.182446 is the 97.5 % quantile of t with 3 degrees
    deviation = (5 / 3) ** 0.5
    expected = (2.5, deviation, 3.182446 * deviation / 2)
    assert mean_interval([1, 2, 3, 4]) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="two"):
        mean_interval([98.3])


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    # heads and tails of a fair coin: 2 (1 + 6) / 2⁶, 2 / 2⁶
    [(1, 5, 14 / 64), (5, 1, 14 / 64), (0, 6, 2 / 64), (3, 3, 1.0), (0, 0, 1.0), (9_000, 0, 0.0)],
)
def test_mcnemar_is_the_exact_two_sided_binomial_test(
    only_first: int, only_second: int, p: float
) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-9)


def test_holm_multiplies_by_rank_and_keeps_the_order() -> None:
    # 4 × 0.005, 3 × 0.01, 2 × 0.03, and 0.04, raised to the value before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
