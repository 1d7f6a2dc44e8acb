"""The tables that `compare` prints: settings that differ, accuracies, pairs of runs or recipes."""

import textwrap
from itertools import combinations, zip_longest

from torch import Tensor

from fnn_lightning.evaluation.random_effects import (
    SIGNIFICANCE,
    accuracy_interval,
    recipe_difference,
)
from fnn_lightning.evaluation.stats import holm, mcnemar, wilson_interval
from fnn_lightning.runs.settings import DEFAULT

WIDTH = 80  # characters in a line
MAX_CELL = 400  # characters; a checkpoint from elsewhere can hold settings of any length
UNKNOWN = "?"


def settings_lines(settings: dict[str, dict[str, str]]) -> list[str]:
    """Lay out the settings that differ, with a column for each network.

    Args:
        settings: For each network's label, what `collect_settings` returns.
    """
    without_config = [
        label
        for label, known in settings.items()
        if not any(name.startswith("trainer.") for name in known)
    ]
    rows = []
    names = dict.fromkeys(name for known in settings.values() for name in known)
    groups = list(dict.fromkeys(name.partition(".")[0] for name in names))
    for name in sorted(names, key=lambda name: groups.index(name.partition(".")[0])):
        is_argument = name.startswith(("optimizer.", "lr_scheduler."))
        missing = DEFAULT if is_argument else UNKNOWN
        row = [known.get(name, missing) for known in settings.values()]
        if len({*row} - {UNKNOWN}) > 1:
            rows.append([name, *row])
    lines = ["settings that differ: none known"]
    if rows:
        lines = align_columns([["settings that differ", *settings], *rows])
        signs = {DEFAULT: "the default, or none", UNKNOWN: "not known"}
        lines += [
            f"{sign}: {meaning}"
            for sign, meaning in signs.items()
            if any(sign in row for row in rows)
        ]
    if without_config:
        labels = ", ".join(without_config)
        lines.append(f"{labels}: no readable config.yaml, so trainer.* is not known")
    return lines


def align_columns(rows: list[list[str]]) -> list[str]:
    """Lay out rows in aligned columns; long cells are wrapped.

    Example:
        >>> align_columns([["", "A", "B"], ["optimizer", "SGD", "Adam"]])
        ['           A    B', 'optimizer  SGD  Adam']
    """
    rows = [
        [cell if len(cell) <= MAX_CELL else f"{cell[:MAX_CELL]} …" for cell in row] for row in rows
    ]
    first_width = max(len(row[0]) for row in rows)
    max_width = max((WIDTH - first_width) // (len(rows[0]) - 1) - 2, 8)
    wrapped = [[[row[0]], *(textwrap.wrap(cell, max_width) for cell in row[1:])] for row in rows]
    widths = [
        max(len(part) for cell in column for part in cell) for column in zip(*wrapped, strict=True)
    ]
    return [
        "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
        for row in wrapped
        for parts in zip_longest(*row, fillvalue="")
    ]


def accuracy_lines(correct: dict[str, Tensor]) -> list[str]:
    """Lay out the accuracy of each network.

    Args:
        correct: For each label, which test images the network classifies correctly: `bool` of
            shape `(N,)`.
    """
    lines = ["   correct  accuracy, %  95 % interval (Wilson)"]
    for label, hits in correct.items():
        count, total = int(hits.sum()), len(hits)
        low, high = wilson_interval(count, total)
        accuracy = 100 * count / total
        lines.append(f"{label}  {count:>7,}  {accuracy:>11.2f}  {100 * low:.2f}–{100 * high:.2f}")
    return lines


def pair_lines(correct: dict[str, Tensor]) -> list[str]:
    """Lay out for each pair of networks whether the difference is more than chance.

    Args:
        correct: For each label, which test images the network classifies correctly: `bool` of
            shape `(N,)`.
    """
    pairs = list(combinations(correct, 2))
    counts = [
        (int((correct[one] & ~correct[other]).sum()), int((correct[other] & ~correct[one]).sum()))
        for one, other in pairs
    ]
    p_values = [mcnemar(*count) for count in counts]
    several = len(pairs) > 1
    lines = ["pair  1st alone  2nd alone  difference, points         p" + "  p (Holm)" * several]
    for (one, other), (first, second), p, adjusted in zip(
        pairs, counts, p_values, holm(p_values), strict=True
    ):
        points = 100 * (first - second) / len(correct[one])
        lines.append(
            f"{one}, {other}  {first:>9,}  {second:>9,}  {points:>+18.2f}  {format_p_value(p):>8}"
            + f"  {format_p_value(adjusted):>8}" * several
            + f"  {verdict(one if first > second else other, adjusted)}"
        )
    return [
        *lines,
        "1st alone: images that only the first network of the pair classifies correctly",
        f"p: exact McNemar test; {p_meaning(len(pairs))} the difference is more than chance",
        "This is about these networks on these images. To tell whether a setting is better in",
        "general, compare folders of `seeds`.",
    ]


def recipe_lines(scores: dict[str, Tensor]) -> list[str]:
    """Lay out the accuracy of each recipe: mean and standard deviation of its seeds.

    Args:
        scores: For each label, how right each seed is on each test image, from 0 to 1: `float64` of
            shape `(seeds, N)`.
    """
    lines = ["   seeds  accuracy, %: mean ± standard deviation  95 % interval"]
    for label, each in scores.items():
        accuracies = each.mean(dim=1)
        low, high = accuracy_interval(each.numpy())
        cell = f"{100 * accuracies.mean():.2f} ± {100 * accuracies.std():.2f}"
        lines.append(
            f"{label}  {len(each):>5}  {cell:>38}  {f'{100 * low:.2f}–{100 * high:.2f}':>13}"
        )
    return lines


def recipe_pair_lines(scores: dict[str, Tensor]) -> list[str]:
    """Lay out for each pair of recipes whether the difference is more than chance.

    Args:
        scores: As `recipe_lines` takes them.
    """
    pairs = list(combinations(scores, 2))
    results = [
        recipe_difference(scores[one].numpy(), scores[other].numpy()) for one, other in pairs
    ]
    adjusted_values = holm([result.p_value for result in results])
    several = len(pairs) > 1
    lines = ["pair  difference, points    95 % interval         p"]
    lines[0] += "  p (Holm)" * several + "  seeds needed"
    for (one, other), result, adjusted in zip(pairs, results, adjusted_values, strict=True):
        interval = f"{100 * result.low:+.2f} to {100 * result.high:+.2f}"
        needed = "none would do" if result.seeds_needed is None else f"{result.seeds_needed:,}"
        lines.append(
            f"{one}, {other}  {100 * result.difference:>+18.2f}  {interval:>15}"
            f"  {format_p_value(result.p_value):>8}"
            + f"  {format_p_value(adjusted):>8}" * several
            + f"  {needed:>12}  "
            + verdict(one if result.difference > 0 else other, adjusted)
        )
    text = (
        f"p: t test, seeds and images both by chance; {p_meaning(len(pairs))} the difference is "
        "more than chance: it would be there with other seeds and other images too"
    )
    lines += [
        *textwrap.wrap(text, WIDTH),
        "seeds needed: of each recipe, to find a difference of this size in 80 % of comparisons",
    ]
    if any(result.seeds_needed is None for result in results):
        lines.append("none would do: for so small a difference the test images are too few")
    return lines


def verdict(better: str, p_value: float) -> str:
    """Say whether a difference is more than chance.

    Args:
        better: Label of the better one.
        p_value: Adjusted for the number of pairs.
    """
    is_chance = p_value >= SIGNIFICANCE
    return "could be chance" if is_chance else f"{better} is better, more than chance"


def p_meaning(pairs: int) -> str:
    """Say below which value of p a difference is more than chance.

    >>> p_meaning(1), p_meaning(3)
    ('below 0.05', 'below 0.05, adjusted for 3 pairs by Holm,')
    """
    return f"below {SIGNIFICANCE}" + f", adjusted for {pairs} pairs by Holm," * (pairs > 1)


def format_p_value(p: float) -> str:
    """Write a p-value in at most eight characters.

    Example:
        >>> format_p_value(0.03125), format_p_value(1e-9)
        ('0.0312', '< 0.0001')
    """
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
