import math

from fnn_lightning.evaluation.charts import Chart, line_chart, thin_out, ticks


def test_a_chart_spans_its_axes_and_leaves_out_what_is_not_finite() -> None:
    curve = [(0.0, 1.0), (5.0, math.nan), (10.0, 0.0)]
    chart = line_chart({"loss": curve, "nothing": []}, "step", "loss", from_zero=True)
    assert chart is not None
    (line,) = chart.lines
    assert line.points == [(Chart.left, Chart.top), (Chart.right, Chart.bottom)]
    assert [label for _, label in chart.x_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert line_chart({"loss": [(1.0, math.inf)]}, "step", "loss", from_zero=True) is None


def test_ticks_enclose_any_range() -> None:
    for low, high in [(0, 1), (0.25, 0.25), (-3, 1e6), (0.98134, 0.98135), (0, 1e-9)]:
        found = ticks(low, high)
        assert found[0] <= low <= high <= found[-1]
        assert 2 <= len(found) <= 8
        assert found == sorted(set(found))


def test_a_long_curve_keeps_its_extremes() -> None:
    curve = [(float(x), math.sin(x)) for x in range(100_000)]
    curve[77_777] = (77_777.0, 9.0)
    kept = thin_out(curve)
    assert len(kept) <= 402
    assert (77_777.0, 9.0) in kept
    assert kept == sorted(kept)
