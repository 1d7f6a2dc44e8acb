"""The table of `runs`, for a terminal of any width, as CSV and as JSON."""

import csv
import io
import json
import shutil
from typing import Any

from fnn_lightning.runs.progress import duration
from fnn_lightning.runs.records import Columns, RunRecord

ACCURACIES = ("val_acc", "val_low", "val_high", "test_acc", "test_low", "test_high")
MIN_RECIPE, MAX_RECIPE, MAX_RUN = 18, 60, 32  # characters of the cells that may be cut
GAP = "  "
HEADINGS = {
    **{"run": "run", "recipe": "recipe", "parameters": "params"},
    **{"seed": "seed", "val": "val, %", "test": "test, %", "seconds": "time", "steps": "steps"},
    **{"epochs": "epochs", "when": "when"},
}
# what a narrow terminal goes without, first to last
LEFT_OUT = (
    "steps",
    "epochs",
    "network",
    "val ±",
    "when",
    "parameters",
    "test ±",
    "seconds",
    "seed",
)
RIGHT = ("parameters", "seed", "seconds", "steps", "epochs")


def to_table(records: list[RunRecord], width: int | None = None) -> str:
    """Lay out runs as an aligned table, with the columns for which there is room.

    Args:
        records: The runs, at least one.
        width: Characters in a line; by default as many as the terminal has.
    """
    width = width or shutil.get_terminal_size().columns
    hidden: set[str] = set()
    rows = table_rows(records, hidden)
    everything = rows[0].keys()
    for name in LEFT_OUT:
        if needed_width(rows) <= width:
            break
        hidden.add(name)
        rows = table_rows(records, hidden)
    widths = {name: max(len(row[name]) for row in rows) for name in rows[0]}
    fixed = sum(size for name, size in widths.items() if name != "recipe")
    room = width - fixed - len(GAP) * (len(widths) - 1)
    widths["recipe"] = min(widths["recipe"], max(room, len("recipe")))
    lines = []
    for row in rows:
        cells = [
            cell.rjust(widths[name]) if name in RIGHT else cut(cell, widths[name])
            for name, cell in row.items()
        ]
        lines.append(GAP.join(cells).rstrip())
    if any("±" in line for line in lines):
        lines.append("±: half of the 95 % interval (Wilson)")
    names = [HEADINGS[name] for name in LEFT_OUT if name in hidden & everything]
    if names:
        lines.append(f"no room for {', '.join(names)}: widen the terminal, or see --output")
    return "\n".join(lines)


def table_rows(records: list[RunRecord], hidden: set[str]) -> list[dict[str, str]]:
    """Return the cells of a table, without hidden and empty columns; headings are the first row."""
    cells = [table_cells(record.columns, hidden) for record in records]
    names = [name for name in HEADINGS if name not in hidden and any(row[name] for row in cells)]
    return [{name: row[name] for name in names} for row in (HEADINGS, *cells)]


def table_cells(columns: Columns, hidden: set[str]) -> dict[str, str]:
    """Write the values of a run for a reader."""
    cells = {name: "" if value is None else str(value) for name, value in columns.items()}
    run = cells["run"]
    cells["run"] = run if len(run) <= MAX_RUN else f"…{run[1 - MAX_RUN :]}"
    recipe = cells["recipe"] or "?"
    cells["recipe"] = recipe if len(recipe) <= MAX_RECIPE else f"{recipe[: MAX_RECIPE - 1]}…"
    for split in ("val", "test"):
        cells[split] = accuracy(columns, split, f"{split} ±" not in hidden)
    if columns["state"] != "complete":
        cells["val"] = columns["state"]
    if isinstance(columns["parameters"], int):
        cells["parameters"] = short_count(columns["parameters"])
    if columns["seconds"] is not None:
        cells["seconds"] = duration(columns["seconds"])
    cells["when"] = cells["when"][:10]
    return {name: "".join(filter(str.isprintable, cell)) for name, cell in cells.items()}


def accuracy(columns: Columns, split: str, with_interval: bool) -> str:
    """Write an accuracy in per cent.

    >>> accuracy({"val_acc": 0.98, "val_low": 0.975, "val_high": 0.985}, "val", True)
    '98.00 ±0.50'
    """
    value, low, high = (columns[f"{split}_{name}"] for name in ("acc", "low", "high"))
    if value is None:
        return ""
    half = f" ±{50 * (high - low):.2f}" if with_interval and low is not None else ""
    return f"{100 * value:.2f}{half}"


def short_count(count: int) -> str:
    """Write a number in three digits or so.

    >>> short_count(7860), short_count(671_754), short_count(1_336_842)
    ('7.9k', '672k', '1.34M')
    """
    if count < 1000:
        return str(count)
    scaled, unit = (count / 1000, "k") if count < 999_500 else (count / 1e6, "M")
    digits = 0 if scaled >= 100 else 1 if scaled >= 10 or unit == "k" else 2
    return f"{scaled:.{digits}f}{unit}"


def needed_width(rows: list[dict[str, str]]) -> int:
    """Return the width of a table whose recipes are cut as far as they may be."""
    widths = {name: max(len(row[name]) for row in rows) for name in rows[0]}
    widths["recipe"] = min(widths["recipe"], MIN_RECIPE)
    return sum(widths.values()) + len(GAP) * (len(widths) - 1)


def cut(text: str, width: int) -> str:
    """Cut or fill a text to a width.

    >>> cut("mnist, max_epochs 7", 8), cut("mnist", 8)
    ('mnist, …', 'mnist   ')
    """
    return text.ljust(width) if len(text) <= width else f"{text[: width - 1]}…"


def to_csv(records: list[RunRecord]) -> str:
    """Write runs as CSV: all columns, and the settings that are not the same in all runs."""
    settings = {name for record in records for name in record.settings}
    differing = sorted(
        name for name in settings if len({record.settings.get(name) for record in records}) > 1
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows: list[list[Any]] = [
        [*record.columns.values(), *(record.settings.get(name) for name in differing)]
        for record in records
    ]
    columns = list(records[0].columns) if records else []
    writer.writerows([[*columns, *differing], *rows])
    return text.getvalue()


def to_json(records: list[RunRecord]) -> str:
    """Write runs as JSON: all columns, and all settings as `settings`."""
    objects = [{**record.columns, "settings": record.settings} for record in records]
    return json.dumps(objects, indent=2, ensure_ascii=False) + "\n"
