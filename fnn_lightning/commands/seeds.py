"""The subcommand `seeds`: trains one config with several seeds and measures their spread."""

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from fnn_lightning.commands.options import make_parser, parse, refuse_options, split_argv
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.stats import mean_interval
from fnn_lightning.runs.files import quote
from fnn_lightning.runs.multirun_folder import (
    LOCK,
    choose_folder,
    lock_file,
    remove_if_unused,
    write_or_compare,
)
from fnn_lightning.runs.run_folder import (
    final_test_accuracy,
    fit_completed,
    read_metrics,
    val_result,
)
from fnn_lightning.runs.subprocesses import Subprocesses, exit_stopped

SEEDS_CONFIG = "seeds.yaml"  # the settings that all runs of the folder share
RESERVED = ("--seed_everything", "--run_folder", "--ckpt_path", "--print_config")

Column = dict[int, float]
"""A metric by seed, as shown: an accuracy in percent. Seeds without a result are missing."""


def main(argv: list[str]) -> None:
    """Train with the seeds 0, 1, … one after the other, and print a table of the results.

    Args:
        argv: The command line after `seeds`.

    Raises:
        InputError: If an argument is invalid.
        SystemExit: With status 1 if a seed failed, 2 if `fit` refused its arguments, 130 or 143
            after a stop signal.
    """
    parser = make_parser(
        "seeds",
        "Trains one config with several seeds. Takes all options of fit as well. Given an earlier "
        "--folder, it resumes; the settings need not be repeated.",
    )
    parser.add_argument("seeds", type=int, help="Number of seeds: 0, 1, …")
    parser.add_argument(
        "--folder", type=str | None, help="Folder of all runs; by default a new one."
    )
    parser.add_argument("--test", type=bool, default=False, help="Also test each run.")
    own_argv, fit_argv = split_argv(parser, argv)
    args = parse(parser, own_argv)
    if args.seeds < 1:
        raise InputError(f"Expected `seeds` to be 1 or more, but got {args.seeds}")
    refuse_options(fit_argv, "seeds", RESERVED)

    with Subprocesses() as children:
        stored = Path(args.folder or "", SEEDS_CONFIG).expanduser()
        is_new = not (args.folder and stored.is_file())
        settings = None
        if is_new or fit_argv:
            settings = children.check_output(["fit", *fit_argv, "--print_config"])
            check_leaves_results(settings)
        folder = choose_folder(args.folder, "seeds", SEEDS_CONFIG)
        lock = lock_file(folder / LOCK)
        if lock is None:
            raise InputError(f"Expected {folder} to be free, but a run in it has not ended yet")
        with lock:
            if settings is not None:
                write_or_compare(folder / SEEDS_CONFIG, settings)
            resume = f"python -m fnn_lightning seeds {args.seeds} --folder "
            resume += quote(folder) + " --test true" * args.test
            failed = train(children, folder, range(args.seeds), args.test, lock.fileno(), resume)
            if failed is None:
                if is_new:
                    remove_if_unused(folder, SEEDS_CONFIG, LOCK)
                raise SystemExit(2)
            print_results(folder, range(args.seeds), args.test)
    if failed:
        names = ", ".join(map(str, failed))
        print(f"error: seed {names} failed; see its output", file=sys.stderr)
        raise SystemExit(1)


def train(
    children: Subprocesses,
    folder: Path,
    seeds: Sequence[int],
    test: bool,
    lock_fd: int,
    resume: str,
) -> list[int] | None:
    """Train the seeds that have no result yet.

    Args:
        children: Starts the processes.
        folder: Folder of the runs.
        seeds: The seeds.
        test: Whether to test each run as well.
        lock_fd: File descriptor of the folder's lock, which the children inherit.
        resume: The command that resumes, printed after a stop signal.

    Returns:
        The seeds that failed, or None if `fit` refused its arguments and has said why.

    Raises:
        SystemExit: After a stop signal.
    """
    failed = []
    for seed in seeds:
        run = folder / f"seed_{seed}"
        fit = ["--config", str(folder / SEEDS_CONFIG), "--seed_everything", str(seed)]
        metrics = read_metrics(run)
        commands = []
        if not fit_completed(metrics):
            commands.append(["fit", *fit, "--run_folder", str(run)])
        if test and (commands or final_test_accuracy(metrics) is None):
            commands.append(["test"])
        for command in commands:
            if command == ["test"]:
                command.extend(["--ckpt_path", str(run / read_metrics(run)["fit"]["checkpoint"])])
            else:
                print(f"seed {seed}", flush=True)
            child = children.start(command, pass_fds=(lock_fd,))
            children.wait()
            if children.stop_signal:
                exit_stopped(children.stop_signal, f"resume with: {resume}")
            if child.returncode == 2:
                return None
            if child.returncode:
                failed.append(seed)
                break
            if not fit_completed(read_metrics(run)):
                raise InputError(f"Expected `fit` to leave its results in {run}, but it did not")
    return failed


def check_leaves_results(settings: str) -> None:
    """Refuse settings with which a run would leave no results for the table.

    Args:
        settings: A config as YAML.

    Raises:
        InputError: If the config switches off logging or checkpoints.
    """
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
    """Print the results of each seed, and their mean.

    Args:
        folder: Folder of the runs.
        seeds: The seeds.
        test: Whether to show test accuracies as well.
    """
    columns: dict[str, Column] = {}
    for seed in seeds:
        metrics = read_metrics(folder / f"seed_{seed}")
        if not fit_completed(metrics):
            continue
        results = [val_result(metrics)]
        if test:
            results.append(("test/acc", final_test_accuracy(metrics)))
            if results[-1][1] is None:
                continue
        for name, value in results:
            if value is not None:
                percent = name.endswith("acc")
                column = columns.setdefault(f"{name}, %" if percent else name, {})
                column[seed] = 100 * value if percent else value
    print(results_table(columns, seeds))
    if yaml.safe_load((folder / SEEDS_CONFIG).read_text(encoding="utf-8"))["data"]["val_size"] == 0:
        print("validation is the test set, since val_size is 0")
    print(f"look at them: tensorboard --logdir {quote(folder)}")


def results_table(columns: dict[str, Column], seeds: Sequence[int]) -> str:
    """Lay out the results: a row for each seed, then their mean and its 95 % interval.

    Example:
        >>> print(results_table({"val/loss": {0: 0.25}}, range(2)))
        seed          val/loss
        0               0.2500
        1               failed
    """
    rows = [["seed", *columns]]
    for seed in seeds:
        cells = [
            f"{column[seed]:{number_format(name)}}" if seed in column else "failed"
            for name, column in columns.items()
        ]
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
        bounds = [f"{mean - half:{f}} to {mean + half:{f}}" for f, mean, _, half in stats]
        rows.append(["95 % interval of the mean", *bounds])
    width = max(len(row[0]) for row in rows)
    return "\n".join(
        "  ".join([row[0].ljust(width), *(f"{cell:>16}" for cell in row[1:])]) for row in rows
    )


def number_format(name: str) -> str:
    """Return the format of a column's numbers."""
    return ".2f" if name.endswith("%") else ".4f"
