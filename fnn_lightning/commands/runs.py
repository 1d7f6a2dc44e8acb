"""The subcommand `runs`: a leaderboard of the runs in a folder and in those below it.

Importing this file must stay quick: no torch.
"""

import difflib
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

from fnn_lightning.commands.main import COMMAND
from fnn_lightning.commands.options import make_parser, parse
from fnn_lightning.commands.recipes import name_recipe
from fnn_lightning.commands.runs_table import ACCURACIES, to_csv, to_json, to_table
from fnn_lightning.errors import InputError
from fnn_lightning.runs.files import display_path, output_file, write_atomic
from fnn_lightning.runs.records import RunRecord, find_runs, read_record
from fnn_lightning.runs.run_folder import RUNS
from fnn_lightning.runs.settings import to_text

Column = Literal[
    "run", "recipe", "state", "dataset", "network", "parameters", "seed",
    "val_acc", "test_acc", "seconds", "epochs", "steps", "when",
]  # fmt: skip
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    **{"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le},
    **{">": operator.gt, ">=": operator.ge},
}
CONDITION = re.compile(r"\s*([\w.]+)\s*(=|!=|<=|>=|<|>)\s*(.+?)\s*")
DESCENDING = ("val_acc", "test_acc", "when")
NUMBERS = ("parameters", "seed", "seconds", "epochs", "steps")


class Condition(NamedTuple):
    """What `--filter` demands of a run."""

    name: str
    """A column, or a setting by its name on the command line."""
    comparison: str
    """One of `COMPARISONS`."""
    value: str | float
    """A number where it can be read as one."""

    def holds(self, record: RunRecord) -> bool:
        """Tell whether a run meets it; one whose value is not known does not."""
        known = record.columns.get(self.name)
        if known is None and self.name not in record.columns:
            known = as_value(record.settings[self.name]) if self.name in record.settings else None
        if known is None:
            return False
        compare = COMPARISONS[self.comparison]
        if isinstance(known, str) == isinstance(self.value, str):
            return compare(known, self.value)
        return compare(str(known), str(self.value))


def main(argv: list[str]) -> None:
    """Print a table of the runs in a folder, or write it as CSV or JSON.

    Args:
        argv: The command line after `runs`.

    Raises:
        InputError: If there is no run, or an argument is invalid.
    """
    parser = make_parser(
        "runs",
        "Lists the runs in a folder and in those below it, the best first: recipe, accuracies with "
        "their 95 % intervals, time. A terminal shows the columns that fit; --output has all.",
    )
    parser.add_argument("folder", nargs="?", type=str, default=RUNS, help="Folder of the runs.")
    parser.add_argument(
        "--sort",
        type=Column | None,
        default=None,
        help="Column to sort by: accuracies and dates from the highest, all else from the lowest. "
        "By default test_acc; runs that are not tested come after, by val_acc.",
    )
    parser.add_argument(
        "--filter",
        type=str,
        nargs="*",
        default=[],
        metavar="CONDITION",
        help="Lists only runs for which it holds: a column or a setting, one of = != < <= > >=, "
        "and a value, as 'test_acc>=98%' or data.batch_size=200. Of several, all.",
    )
    parser.add_argument(
        "--output", type=str | None, default=None, help="File for all columns, .csv or .json."
    )
    options = parse(parser, argv)
    check_filter(argv, options.filter)
    output = output_file(options.output, (".csv", ".json")) if options.output else None
    root = Path(options.folder).expanduser()
    records = read_records(root)
    conditions = [parse_condition(text, records) for text in options.filter]
    listed = [record for record in records if all(each.holds(record) for each in conditions)]
    listed = sort_records(listed, options.sort)
    if output:
        encode = to_json if output.suffix.lower() == ".json" else to_csv
        # a folder's name can be any bytes
        write_atomic(output, encode(listed).encode(errors="backslashreplace"))
        print(f"{len(listed):,} of {len(records):,} runs in {display_path(output)}")
    elif listed:
        print(to_table(listed))
    if conditions and not output:
        print(f"{len(listed):,} of {len(records):,} runs in {root}")


def read_records(root: Path) -> list[RunRecord]:
    """Read what is known of the runs in a folder, with the names of their recipes.

    Raises:
        InputError: If there is none.
    """
    records = []
    for folder in find_runs(root):
        record = read_record(folder, root)
        (name, run), *others = record.columns.items()
        recipe = name_recipe(record.settings, record.columns["network"])
        records.append(record._replace(columns={name: run, "recipe": recipe, **dict(others)}))
    if not records:
        what = "holds none" if root.is_dir() else "is no folder"
        raise InputError(
            f"Expected a folder with runs, but {root} {what}: train one, {COMMAND} fit --config "
            f"mnist, or name another folder, {COMMAND} runs FOLDER"
        )
    return records


def check_filter(argv: list[str], texts: list[str]) -> None:
    """Check that `--filter` stands once, and that conditions alone follow it.

    Raises:
        InputError: If it is given twice, or a text after it is no condition.
    """
    if sum(word.partition("=")[0] == "--filter" for word in argv) > 1:
        raise InputError(
            "Expected --filter once, but got it twice: give all conditions after one, as --filter "
            "'test_acc>98%' seed=1"
        )
    for text in texts:
        if CONDITION.fullmatch(text) is None:
            raise InputError(
                f"Expected --filter to be a name, one of {' '.join(COMPARISONS)}, and a value, but "
                f"got {text!r}: give it as 'test_acc>=98%' or data.batch_size=200, and a folder "
                "before --filter"
            )


def parse_condition(text: str, records: list[RunRecord]) -> Condition:
    """Read a condition of `--filter`.

    Args:
        text: As `val_acc>0.98`, `test_acc>98%`, `optimizer=Adam` or `hidden_dims=[100]`.
        records: The runs, which have the columns and settings that there are. A setting may be
            given by the last part of its name if no other ends in it.

    Raises:
        InputError: If it cannot be read, or there is no such column or setting.
    """
    parts = CONDITION.fullmatch(text)
    assert parts is not None  # `check_filter` has seen to it
    given, comparison, value = parts.groups()
    columns = records[0].columns.keys()
    settings = {name for record in records for name in record.settings}
    ending = [name for name in settings if name.endswith(f".{given}")]
    name = ending[0] if len(ending) == 1 and given not in columns | settings else given
    if name not in columns | settings:
        names = ending or difflib.get_close_matches(given, columns | settings, n=3)
        near = f"did you mean {' or '.join(sorted(names))}?" if names else ""
        hint = near or f"the columns are {', '.join(get_args(Column))}"
        raise InputError(f"Expected a column or a setting in --filter, but got {given}: {hint}")
    wanted = as_value(value)
    if name in ACCURACIES and (not isinstance(wanted, float) or not 0 <= wanted <= 1):
        raise InputError(
            f"Expected {name} in --filter to be from 0 to 1, or in per cent, but got {value}: "
            f"give it as '{name}{comparison}98%'"
        )
    if name in NUMBERS and not isinstance(wanted, float):
        raise InputError(
            f"Expected {name} in --filter to be a number, but got {value}: give it as "
            f"'{name}{comparison}1000'"
        )
    return Condition(name, comparison, wanted)


def as_value(text: str) -> str | float:
    """Read a value: a number if it is one, otherwise text in the form of `to_text`.

    >>> as_value("98%"), as_value("1e-3"), as_value("[512,512]"), as_value("null")
    (0.98, 0.001, '[512, 512]', '–')
    """
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        pass
    try:
        return to_text(yaml.safe_load(text))
    except yaml.YAMLError:
        return text


def sort_records(records: list[RunRecord], column: str | None) -> list[RunRecord]:
    """Sort runs; those without a value come last, in the order that they have.

    Args:
        records: The runs.
        column: The column; None for the test accuracy, and of runs that are not tested for that of
            validation.
    """
    if column is None:
        return sort_records(sort_records(records, "val_acc"), "test_acc")
    known = [record for record in records if record.columns[column] is not None]
    known.sort(key=lambda record: record.columns[column], reverse=column in DESCENDING)
    return known + [record for record in records if record.columns[column] is None]
