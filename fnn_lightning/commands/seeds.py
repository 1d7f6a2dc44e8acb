"""The subcommand `seeds`: trains one config with several seeds, and says how far they differ."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from fnn_lightning.commands.options import make_parser, parse, refuse, split
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.stats import mean_interval
from fnn_lightning.runs.subprocesses import (
    LOCK,
    Subprocesses,
    discard,
    folder_for,
    lock,
    read_metrics,
    settle,
    stopped,
    test_accuracy,
    val_result,
)

CONFIG = "seeds.yaml"  # what all runs of the folder are trained with
GIVEN = ("--seed_everything", "--run_folder", "--ckpt_path", "--print_config")

Column = dict[int, float]
"""A figure of each seed that has one, as it is shown: percent for an accuracy."""


def main(argv: list[str]) -> None:
    """Train with the seeds 0, 1, … one after the other, and print a table.

    Args:
        argv: What follows the subcommand.

    Raises:
        InputError: If what the user gave cannot be used.
        SystemExit: With status 1 if a seed failed, 2 if `fit` could not use what it was given, 130
            or 143 if it was stopped.
    """
    parser = make_parser(
        "seeds",
        "Trains the same config with several seeds; takes all options of fit as well. Given the "
        "folder again, it goes on, and without further options it takes the settings from there.",
    )
    parser.add_argument("seeds", type=int, help="Number of seeds: 0, 1, …")
    parser.add_argument("--folder", type=str | None, help="Folder of all runs; a new one.")
    parser.add_argument(
        "--test", type=bool, default=False, help="Whether to measure each run on the test set."
    )
    own, others = split(parser, argv)
    args = parse(parser, own)
    if args.seeds < 1:
        raise InputError(f"Expected `seeds` to be 1 or more, but got {args.seeds}")
    refuse(others, "seeds", GIVEN)

    with Subprocesses() as children:
        stored = Path(args.folder or "", CONFIG).expanduser()
        new = not (args.folder and stored.is_file())
        settings = None
        if new or others:
            settings = children.answer(["fit", *others, "--print_config"])
            check_leaves_results(settings)
        folder = folder_for(args.folder, "seeds", CONFIG)
        file = lock(folder / LOCK)
        if file is None:
            raise InputError(f"Expected {folder} to be free, but a run in it has not ended yet")
        with file:
            if settings is not None:
                settle(folder / CONFIG, settings)
            to_go_on = f"python -m fnn_lightning seeds {args.seeds} --folder "
            to_go_on += shlex.quote(str(folder)) + " --test true" * args.test
            failed = train(children, folder, range(args.seeds), args.test, file.fileno(), to_go_on)
            if failed is None:
                if new:
                    discard(folder, CONFIG, LOCK)
                raise SystemExit(2)
            print_results(folder, range(args.seeds), args.test)
    if failed:
        names = ", ".join(map(str, failed))
        print(f"error: seed {names} failed; see what it said", file=sys.stderr)
        raise SystemExit(1)


def train(
    children: Subprocesses, folder: Path, seeds: Sequence[int], test: bool, fd: int, to_go_on: str
) -> list[int] | None:
    """Run what is left to do.

    Args:
        children: Where to run it.
        folder: Folder of the runs.
        seeds: The seeds.
        test: Whether to run `test`, too.
        fd: The lock, which the children share.
        to_go_on: The command that goes on.

    Returns:
        The seeds that failed, or None if what the user gave cannot be used, as the run has said.
    """
    failed = []
    for seed in seeds:
        run = folder / f"seed_{seed}"
        fit = ["--config", str(folder / CONFIG), "--seed_everything", str(seed)]
        commands = []
        if not read_metrics(run):
            commands.append(["fit", *fit, "--run_folder", str(run)])
        if test and (commands or test_accuracy(read_metrics(run)) is None):
            commands.append(["test"])
        for command in commands:
            if command == ["test"]:
                command.extend(["--ckpt_path", str(run / read_metrics(run)["fit"]["checkpoint"])])
            else:
                print(f"seed {seed}", flush=True)
            child = children.start(command, pass_fds=(fd,))
            children.wait()
            if children.stop:
                raise stopped(children.stop, f"go on with: {to_go_on}")
            if child.returncode == 2:
                return None
            if child.returncode:
                failed.append(seed)
                break
            if not read_metrics(run):
                raise InputError(f"Expected `fit` to leave its results in {run}, but it did not")
    return failed


def check_leaves_results(settings: str) -> None:
    """Refuse settings with which a run would leave nothing to put into a table."""
    trainer = yaml.safe_load(settings)["trainer"]
    off = {
        "logger": trainer["logger"] is False,
        "enable_checkpointing": trainer["enable_checkpointing"] is False,
        "fast_dev_run": bool(trainer["fast_dev_run"]),
    }
    for name, is_off in off.items():
        if is_off:
            value = str(trainer[name]).lower()
            raise InputError(f"Expected runs that leave results, but got --trainer.{name} {value}")


def print_results(folder: Path, seeds: Sequence[int], test: bool) -> None:
    """Print the figures of each seed, and what can be said of their mean."""
    columns: dict[str, Column] = {}
    for seed in seeds:
        metrics = read_metrics(folder / f"seed_{seed}")
        if not metrics:
            continue
        figures = [val_result(metrics)]
        if test:
            figures.append(("test/acc", test_accuracy(metrics)))
            if figures[-1][1] is None:
                continue
        for name, value in figures:
            if value is not None:
                percent = name.endswith("acc")
                column = columns.setdefault(f"{name}, %" if percent else name, {})
                column[seed] = 100 * value if percent else value
    print(results_table(columns, seeds))
    if yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))["data"]["val_size"] == 0:
        print("validation is the test set, since val_size is 0")
    print(f"look at them: tensorboard --logdir {shlex.quote(str(folder))}")


def results_table(columns: dict[str, Column], seeds: Sequence[int]) -> str:
    """Draw the figures, a line for each seed, and below them what is known of their mean."""
    rows = [["seed", *columns]]
    for seed in seeds:
        figures = [
            f"{column[seed]:{form(name)}}" if seed in column else "failed"
            for name, column in columns.items()
        ]
        rows.append([str(seed), *figures])
    ended = min((len(column) for column in columns.values()), default=0)
    if ended > 1:
        known = [(form(name), *mean_interval([*c.values()])) for name, c in columns.items()]
        count = f"{ended} of {len(seeds)}" if ended < len(seeds) else f"{ended}"
        means = [f"{mean:{f}} ± {std:{f}}" for f, mean, std, _ in known]
        rows.append([f"mean ± standard deviation of {count}", *means])
        bounds = [f"{mean - half:{f}} to {mean + half:{f}}" for f, mean, _, half in known]
        rows.append(["95 % interval of the mean", *bounds])
    width = max(len(row[0]) for row in rows)
    return "\n".join(
        "  ".join([row[0].ljust(width), *(f"{cell:>16}" for cell in row[1:])]) for row in rows
    )


def form(name: str) -> str:
    """Return how the figures of a column are written."""
    return ".2f" if name.endswith("%") else ".4f"
