"""The table that `seeds` prints: the results of each seed, their mean and its interval."""

from collections.abc import Sequence
from typing import Any

from fnn_lightning.evaluation.stats import mean_interval
from fnn_lightning.runs.run_folder import final_test_accuracy, val_result

Column = dict[int, float]
"""A metric by seed, as shown: an accuracy in percent. Seeds without a result are missing."""


def seed_results(metrics: dict[str, Any], test: bool) -> dict[str, float]:
    """Return the results of a completed run by the names of their columns; accuracies in percent.

    Args:
        metrics: The run's metrics.
        test: Whether the run has to be tested as well; without a test it has no results.

    Example:
        >>> best = {"monitor": "val/acc", "score": 0.5}
        >>> metrics = {"fit": {"best": best, "checkpoint": "checkpoints/best.ckpt"}}
        >>> seed_results(metrics, test=False), seed_results(metrics, test=True)
        ({'best val/acc, %': 50.0}, {})
    """
    results = [val_result(metrics)]
    if test:
        results.append(("test/acc", final_test_accuracy(metrics)))
        if results[-1][1] is None:
            return {}
    return {
        f"{name}, %" if name.endswith("acc") else name: (
            100 * value if name.endswith("acc") else value
        )
        for name, value in results
        if value is not None
    }


def results_table(
    columns: dict[str, Column], seeds: Sequence[int], spreads: dict[str, Column] | None = None
) -> str:
    """Lay out the results: a row for each seed, then their mean and its 95 % interval.

    Args:
        columns: Each metric, by the name of its column.
        seeds: The seeds.
        spreads: The standard deviation over the folds of each seed, if it has several.

    Example:
        >>> print(results_table({"val/loss": {0: 0.25}}, range(2)))
        seed          val/loss
        0               0.2500
        1               failed
    """
    rows = [["seed", *columns]]
    for seed in seeds:
        cells = []
        for name, column in columns.items():
            f = number_format(name)
            cell = f"{column[seed]:{f}}" if seed in column else "failed"
            if spreads and seed in column:
                cell += f" ± {spreads[name][seed]:{f}}"
            cells.append(cell)
        rows.append([str(seed), *cells])
    completed = min((len(column) for column in columns.values()), default=0)
    if completed > 1:
        stats = [
            (number_format(name), *mean_interval([*column.values()]))
            for name, column in columns.items()
        ]
        count = f"{completed} of {len(seeds)}" if completed < len(seeds) else f"{completed}"
        means = [f"{mean:{f}} ± {std:{f}}" for f, mean, std, _ in stats]
        rows.append([f"mean ± standard deviation of {count}", *means])
        bounds = [
            f"{mean - half:{f}} to {mean + half:{f}}" if std else "unknown: all equal"
            for f, mean, std, half in stats
        ]
        rows.append(["95 % interval of the mean", *bounds])
    width = max(len(row[0]) for row in rows)
    return "\n".join(
        "  ".join([row[0].ljust(width), *(f"{cell:>16}" for cell in row[1:])]) for row in rows
    )


def number_format(name: str) -> str:
    """Return the format of a column's numbers."""
    return ".2f" if name.endswith("%") else ".4f"
