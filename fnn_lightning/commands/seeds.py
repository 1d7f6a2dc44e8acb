"""The subcommand `seeds`: trains one config with several seeds and measures their spread."""

import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fnn_lightning.commands.main import COMMAND
from fnn_lightning.commands.options import make_parser, parse, refuse_options, split_argv
from fnn_lightning.commands.seeds_table import (
    Column,
    number_format,
    results_table,
    seed_results,
)
from fnn_lightning.errors import InputError
from fnn_lightning.runs.files import quote, write_atomic
from fnn_lightning.runs.multirun_folder import (
    LOCK,
    choose_folder,
    fold_runs,
    lock_file,
    remove_if_unused,
    write_or_compare,
)
from fnn_lightning.runs.progress import STOPPING, StatusLine, TimeLeft, duration, says
from fnn_lightning.runs.run_folder import (
    final_test_accuracy,
    fit_completed,
    read_metrics,
)
from fnn_lightning.runs.subprocesses import Subprocesses, exit_stopped, failure_reason

SEEDS_CONFIG = "seeds.yaml"  # the settings that all runs of the folder share
OUTPUT, ERRORS = "output.txt", "errors.txt"  # of each run, in its folder
OUT_OF_FOLD = "out_of_fold.csv"
SUSPECTS, GALLERY = "suspect_labels.csv", "suspect_labels.html"
REFRESH_SECONDS = 0.5  # of the status line, and for warnings and errors
RESERVED = ("--seed_everything", "--run_folder", "--ckpt_path", "--print_config")


class Run(NamedTuple):
    """A run of a seed: its only one, or that in which one of the folds validates."""

    seed: int
    folder: Path
    options: list[str]
    """Those of `fit` that the other runs of the seed do not have."""

    @property
    def label(self) -> str:
        """The seed, and the fold if there are several.

        >>> Run(3, Path("seed_3"), []).label
        '3'
        >>> Run(3, Path("seed_3/fold_1"), ["--data.fold=1"]).label
        '3 fold 1'
        """
        return (
            f"{self.seed} {self.folder.name.replace('_', ' ')}" if self.options else str(self.seed)
        )


def main(argv: list[str]) -> None:
    """Train with several seeds, one after the other, and print a table of the results.

    With `--data.folds` each seed is trained once for each fold that validates.

    Args:
        argv: The command line after `seeds`.

    Raises:
        InputError: If an argument is invalid.
        SystemExit: With status 1 if a seed failed, 2 if `fit` refused its arguments, 130 or 143
            after a stop signal.
    """
    parser = make_parser(
        "seeds",
        "Trains one config with several seeds. Takes all options of fit as well; with --data.folds "
        "alone, each fold validates in turn. Given an earlier --folder, it resumes; the settings "
        "need not be repeated.",
    )
    parser.add_argument(
        "seeds", type=int, metavar="NUMBER", help="Number of seeds, which are 0, 1, …"
    )
    parser.add_argument(
        "--first",
        type=int | None,
        default=None,
        help="First seed; by default 0 or, of an earlier --folder, the first in it.",
    )
    parser.add_argument(
        "--folder", type=str | None, help="Folder of all runs; by default a new one."
    )
    parser.add_argument("--test", type=bool, default=False, help="Also test each run.")
    own_argv, fit_argv = split_argv(parser, argv)
    args = parse(parser, own_argv)
    if args.seeds < 1:
        raise InputError(f"Expected `seeds` to be 1 or more, but got {args.seeds}")
    if args.first is None:
        args.first = first_seed(Path(args.folder).expanduser()) if args.folder else 0
    if not 0 <= args.first <= 2**32 - args.seeds:
        raise InputError(
            f"Expected seeds from 0 to {2**32 - 1}, but got {args.seeds} from --first {args.first}"
        )
    refuse_options(fit_argv, "seeds", RESERVED)

    with Subprocesses() as children:
        stored = Path(args.folder or "", SEEDS_CONFIG).expanduser()
        is_new = not (args.folder and stored.is_file())
        settings = None
        if is_new or fit_argv:
            settings = children.check_output(["fit", *fit_argv, "--print_config"])
            check_leaves_results(settings)
            fold_runs(Path(), settings)  # fails now, before a folder is made
        folder = choose_folder(args.folder, "seeds", SEEDS_CONFIG)
        lock = lock_file(folder / LOCK)
        if lock is None:
            raise InputError(f"Expected {folder} to be free, but a run in it has not ended yet")
        with lock:
            if settings is not None:
                write_or_compare(folder / SEEDS_CONFIG, settings)
            settings = (folder / SEEDS_CONFIG).read_text(encoding="utf-8")
            runs = [
                Run(seed, run, options)
                for seed in range(args.first, args.first + args.seeds)
                for run, options in fold_runs(folder / f"seed_{seed}", settings).items()
            ]
            with StatusLine() as status:
                trainer = Runs(children, folder, args.test, lock.fileno(), status)
                failed = trainer.train(runs)
            if children.stop_signal:
                resume = f"{COMMAND} seeds {args.seeds} --folder {quote(folder)}"
                resume += f" --first {args.first}" if args.first else ""
                resume += " --test true" * args.test
                exit_stopped(children.stop_signal, f"resume with: {resume}")
            if failed is None:
                if is_new:
                    remove_if_unused(folder, SEEDS_CONFIG, LOCK)
                raise SystemExit(2)
            print_results(folder, runs, args.test)
            if len(runs) > args.seeds:
                write_out_of_fold(folder, runs)
    if failed:
        names = ", ".join(run.label for run in failed)
        where = f"{OUTPUT} and {ERRORS} in {all_runs(folder, runs)}"
        print(f"error: seed {names} failed; see {where}", file=sys.stderr)
        raise SystemExit(1)


def first_seed(folder: Path) -> int:
    """Return the first seed that has been trained in a folder; 0 if there is none."""
    names = [path.name.removeprefix("seed_") for path in folder.glob("seed_*")]
    return min((int(name) for name in names if name.isdecimal()), default=0)


def all_runs(folder: Path, runs: Sequence[Run]) -> Path:
    """Return a pattern of the folders of all runs, for a reader."""
    return folder / "seed_*" / ("fold_*" if runs[0].options else "")


class Runs:
    """The runs of a folder, each trained in a process of its own, one after the other.

    What they print goes to files in their folders. Warnings and errors are shown here as well.

    Args:
        children: Starts the processes.
        folder: Folder of the runs.
        test: Whether to test each run as well.
        lock_fd: File descriptor of the folder's lock, which the children inherit.
        status: Shows which seed is trained, and the time left.
    """

    def __init__(
        self, children: Subprocesses, folder: Path, test: bool, lock_fd: int, status: StatusLine
    ) -> None:
        self.children = children
        self.folder = folder
        self.test = test
        self.lock_fd = lock_fd
        self.status = status

    def train(self, runs: Sequence[Run]) -> list[Run] | None:
        """Train the runs that have no result yet, until a stop signal comes.

        Args:
            runs: The runs.

        Returns:
            The runs that failed, or None if `fit` refused its arguments and has said why.

        Raises:
            InputError: If `fit` left no results.
        """
        failed: list[Run] = []
        pending = [(place, run) for place, run in enumerate(runs, 1) if any(self._commands(run))]
        if pending:
            where = all_runs(self.folder, runs) / OUTPUT
            print(f"the output of each run goes to {where}", flush=True)
        time_left = TimeLeft(len(pending))
        for done, (number, run) in enumerate(pending, start=1):
            place = f"{number} of {len(runs)}"
            started = time.monotonic()
            exit_status = 0
            for command in self._commands(run):
                exit_status = self._run(command, run, place, time_left)
                if self.children.stop_signal:
                    return failed
                if exit_status:
                    break
            if exit_status == 2:
                remove_if_unused(run.folder, OUTPUT, ERRORS)
                if run.folder.parent != self.folder:
                    remove_if_unused(run.folder.parent)
                return None
            if exit_status:
                failed.append(run)
            time_left.update(done)
            result = self._result(run, exit_status)
            line = f"seed {run.label}   {result}   {duration(time.monotonic() - started)}"
            if not self.status.shown:  # which says the rest
                line += f"   ({place}{time_left})"
            self.status.print(line)
        return failed

    def _commands(self, run: Run) -> Iterator[list[str]]:
        """Yield the command lines that a run still needs; each is run before the next is made."""
        trains = not fit_completed(read_metrics(run.folder))
        if trains:
            fit = ["fit", "--config", str(self.folder / SEEDS_CONFIG), *run.options]
            yield [*fit, "--seed_everything", str(run.seed), "--run_folder", str(run.folder)]
        metrics = read_metrics(run.folder)
        if not fit_completed(metrics):
            raise InputError(f"Expected `fit` to leave its results in {run.folder}, but it did not")
        if self.test and (trains or final_test_accuracy(metrics) is None):
            yield ["test", "--ckpt_path", str(run.folder / metrics["fit"]["checkpoint"])]

    def _run(self, command: list[str], run: Run, place: str, time_left: TimeLeft) -> int:
        """Run a subcommand to its end, and return its exit status."""
        output_path, errors_path = run.folder / OUTPUT, run.folder / ERRORS
        run.folder.mkdir(parents=True, exist_ok=True)
        # files, not pipes: a run outlives this process if that is killed
        with (
            output_path.open("ab") as output,
            errors_path.open("ab") as errors,
            errors_path.open("rb") as new_errors,
        ):
            new_errors.seek(0, os.SEEK_END)
            child = self.children.start(
                command, stdout=output, stderr=errors, pass_fds=(self.lock_fd,)
            )
            ended = False
            while not ended:
                text = f"seed {run.label} ({place}){time_left}"
                self.status.show(STOPPING if self.children.stop_signal else text)
                ended = bool(self.children.wait(REFRESH_SECONDS))
                text = new_errors.read().decode(errors="replace")
                if text:
                    self.status.print(text.removesuffix("\n"), sys.stderr)
        if not errors_path.stat().st_size:
            errors_path.unlink()
        return int(child.returncode)

    def _result(self, run: Run, exit_status: int) -> str:
        if exit_status:  # a process that was killed has not said why it ended
            return f"failed: {failure_reason(b'', exit_status)}" if exit_status < 0 else "failed"
        results = seed_results(read_metrics(run.folder), self.test)
        return "   ".join(
            f"{name.removesuffix(', %')} {value:{number_format(name)}}{' %' * name.endswith('%')}"
            for name, value in results.items()
        )


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


def print_results(folder: Path, runs: Sequence[Run], test: bool) -> None:
    """Print the results of each seed, over its folds if it has several, and their mean.

    Args:
        folder: Folder of the runs.
        runs: The runs.
        test: Whether to show test accuracies as well.
    """
    columns: dict[str, Column] = {}
    spreads: dict[str, Column] = {}
    seeds = sorted({run.seed for run in runs})
    for seed in seeds:
        results = [seed_results(metrics, test) for metrics in completed(runs, seed) or ()]
        for name in results[0] if results else ():
            if not all(name in each for each in results):  # one is not tested, or has no validation
                continue
            values = [each[name] for each in results]
            columns.setdefault(name, {})[seed] = statistics.fmean(values)
            if len(values) > 1:
                spreads.setdefault(name, {})[seed] = statistics.stdev(values)
    print(results_table(columns, seeds, spreads))
    if spreads:
        count = len(runs) // len(seeds)
        print(f"of each seed: mean ± standard deviation of {count} folds, which validate in turn")
    if yaml.safe_load((folder / SEEDS_CONFIG).read_text(encoding="utf-8"))["data"]["val_size"] == 0:
        print("validation is the test set, since val_size is 0")
    print(f"look at them: tensorboard --logdir {quote(folder)}")


def completed(runs: Sequence[Run], seed: int) -> list[dict[str, Any]] | None:
    """Return the metrics of a seed's runs; None if one of them has not completed."""
    metrics = [read_metrics(run.folder) for run in runs if run.seed == seed]
    return metrics if all(map(fit_completed, metrics)) else None


def write_out_of_fold(folder: Path, runs: Sequence[Run]) -> None:
    """Write what the networks predict for the images that they did not train on; print how well.

    Beside it comes a list and a gallery of the images whose label is probably wrong.

    Args:
        folder: Folder of the runs; the files are written there.
        runs: The runs. Only seeds of which all folds have completed take part.

    Raises:
        InputError: If a network or the data cannot be read.
    """
    from fnn_lightning.evaluation.out_of_fold import out_of_fold_csv, predict_out_of_fold  # slow
    from fnn_lightning.evaluation.suspect_labels import make_gallery, suspect_labels, suspects_csv

    seeds = [seed for seed in sorted({run.seed for run in runs}) if completed(runs, seed)]
    if not seeds:
        print("no out-of-fold predictions: no seed has completed all its folds")
        return
    checkpoints = [
        run.folder / read_metrics(run.folder)["fit"]["checkpoint"]
        for run in runs
        if run.seed in seeds
    ]
    with says("predicting out of fold"):
        predictions = predict_out_of_fold(checkpoints)
        write_atomic(folder / OUT_OF_FOLD, out_of_fold_csv(predictions))
        suspects = suspect_labels(predictions)
        write_atomic(folder / SUSPECTS, suspects_csv(predictions, suspects))
        write_atomic(folder / GALLERY, make_gallery(predictions, suspects).encode())
    correct, total = int(predictions.is_correct.sum()), len(predictions.labels)
    averaged = f", probabilities averaged over {len(seeds)} seeds" if len(seeds) > 1 else ""
    print(
        f"out of fold: {correct:,} of {total:,} training images correct "
        f"({100 * correct / total:.2f} %){averaged}; see {folder / OUT_OF_FOLD}"
    )
    print(f"labels to look at: {len(suspects):,}, the most suspect first; see {folder / GALLERY}")
