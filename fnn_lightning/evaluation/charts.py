"""Line charts as the report's template draws them, in SVG that follows the page's colours."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Curve = Sequence[tuple[float, float]]
"""Points of a curve, x ascending; those that are not finite are not drawn."""

WIDTH, HEIGHT = 440, 260  # of the drawing, so that its letters can be read on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 8, 38  # margins of the axes
MAX_POINTS = 400  # more than can be told apart
MAX_DOTS = 50


@dataclass
class Line:
    """A curve in the drawing's coordinates."""

    name: str
    points: list[tuple[float, float]]
    dots: bool
    """Whether each point is marked."""


@dataclass
class Chart:
    """A chart in the drawing's coordinates, whose origin is at the top left."""

    xlabel: str
    ylabel: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    bars: list[tuple[float, float]] = field(default_factory=list)
    """Middle and height of each."""
    diagonal: bool = False

    width, height = WIDTH, HEIGHT
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM


def line_chart(
    curves: Mapping[str, Curve], xlabel: str, ylabel: str, from_zero: bool
) -> Chart | None:
    """Lay out named curves.

    Args:
        curves: The curves by their names.
        xlabel: What the x-axis shows.
        ylabel: What the y-axis shows.
        from_zero: Whether the y-axis begins at 0.

    Returns:
        None if no point of them is finite.
    """
    finite = {name: [point for point in curve if all(map(math.isfinite, point))]
              for name, curve in curves.items()}  # fmt: skip
    drawn = {name: thin_out(curve) for name, curve in finite.items() if curve}
    if not drawn:
        return None
    xs, ys = zip(*(point for curve in drawn.values() for point in curve), strict=True)
    x_range = (0.0, max(*xs, 1.0))
    y_range = (0.0 if from_zero else min(ys), max(ys))
    return make_chart(drawn, xlabel, ylabel, x_range, y_range)


def reliability_chart(bins: Sequence[tuple[float, float, int]]) -> Chart:
    """Lay out accuracy over confidence, with the number of predictions as bars, on a log scale.

    Args:
        bins: What `measures.reliability` returned.
    """
    curve = [(confidence, accuracy) for confidence, accuracy, _ in bins]
    unit = (0.0, 1.0)
    chart = make_chart({"this network": curve}, "confidence", "accuracy", unit, unit)
    most = math.log10(1 + max(count for _, _, count in bins))
    height = chart.bottom - chart.top
    chart.bars = [
        (x, height * math.log10(1 + count) / most)
        for (x, _), (_, _, count) in zip(chart.lines[0].points, bins, strict=True)
    ]
    chart.diagonal = True
    return chart


def make_chart(
    curves: Mapping[str, Curve],
    xlabel: str,
    ylabel: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> Chart:
    """Bring curves into the drawing's coordinates, and place the ticks."""
    x_ticks, y_ticks = ticks(*x_range), ticks(*y_range)
    x_low, x_high = x_range
    # up to the next tick, which begins and ends the axis
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x(value: float) -> float:
        share = (value - x_low) / (x_high - x_low)
        return round(Chart.left + share * (Chart.right - Chart.left), 1)

    def y(value: float) -> float:
        share = (value - y_low) / (y_high - y_low)
        return round(Chart.bottom - share * (Chart.bottom - Chart.top), 1)

    lines = [
        Line(name, [(x(a), y(b)) for a, b in curve], len(curve) <= MAX_DOTS)
        for name, curve in curves.items()
    ]
    x_labels = [(x(tick), f"{tick:,g}") for tick in x_ticks if x_low <= tick <= x_high]
    return Chart(xlabel, ylabel, x_labels, [(y(tick), f"{tick:g}") for tick in y_ticks], lines)


def ticks(low: float, high: float) -> list[float]:
    """Return 3 to 7 round numbers, the first at most `low` and the last at least `high`.

    Example:
        >>> ticks(0, 840)
        [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]
        >>> ticks(0.91, 0.975)
        [0.9, 0.92, 0.94, 0.96, 0.98]
    """
    if high - low < 1e-9 * max(1.0, abs(low)):  # a flat curve
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def thin_out(curve: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep the lowest and the highest of neighbouring points where there are too many to see.

    Example:
        >>> thin_out((x, abs(x - 5)) for x in range(4000))[:3]  # of 20 and 20 points
        [(5, 0), (19, 14), (20, 15)]
    """
    points = list(curve)
    if len(points) <= MAX_POINTS:
        return points
    size = -(-2 * len(points) // MAX_POINTS)
    kept = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        by_height = sorted(group, key=lambda point: point[1])
        kept += sorted({by_height[0], by_height[-1]})
    return kept
