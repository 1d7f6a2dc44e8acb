"""The subcommand `seeds`: trains one config with several seeds and measures their spread."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

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
from fnn_lightning.runs.files import quote
from fnn_lightning.runs.multirun_folder import (
    LOCK,
    choose_folder,
    lock_file,
    remove_if_unused,
    write_or_compare,
)
from fnn_lightning.runs.progress import STOPPING, StatusLine, TimeLeft, duration
from fnn_lightning.runs.run_folder import (
    final_test_accuracy,
    fit_completed,
    read_metrics,
)
from fnn_lightning.runs.subprocesses import Subprocesses, exit_stopped, failure_reason

SEEDS_CONFIG = "seeds.yaml"  # the settings that all runs of the folder share
OUTPUT, ERRORS = "output.txt", "errors.txt"  # of each run, in its folder
REFRESH_SECONDS = 0.5  # of the status line, and for warnings and errors
RESERVED = ("--seed_everything", "--run_folder", "--ckpt_path", "--print_config")


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
    parser.add_argument(
        "seeds", type=int, metavar="NUMBER", help="Number of seeds, which are 0, 1, …"
    )
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
            with StatusLine() as status:
                runs = Runs(children, folder, args.test, lock.fileno(), status)
                failed = runs.train(range(args.seeds))
            if children.stop_signal:
                resume = f"{COMMAND} seeds {args.seeds} --folder {quote(folder)}"
                resume += " --test true" * args.test
                exit_stopped(children.stop_signal, f"resume with: {resume}")
            if failed is None:
                if is_new:
                    remove_if_unused(folder, SEEDS_CONFIG, LOCK)
                raise SystemExit(2)
            print_results(folder, range(args.seeds), args.test)
    if failed:
        names, where = ", ".join(map(str, failed)), f"{OUTPUT} and {ERRORS} in {folder}/seed_*"
        print(f"error: seed {names} failed; see {where}", file=sys.stderr)
        raise SystemExit(1)


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

    def train(self, seeds: Sequence[int]) -> list[int] | None:
        """Train the seeds that have no result yet, until a stop signal comes.

        Args:
            seeds: The seeds.

        Returns:
            The seeds that failed, or None if `fit` refused its arguments and has said why.

        Raises:
            InputError: If `fit` left no results.
        """
        failed: list[int] = []
        pending = [seed for seed in seeds if any(self._commands(seed))]
        if pending:
            print(f"the output of each run goes to {self.folder / 'seed_*' / OUTPUT}", flush=True)
        time_left = TimeLeft(len(pending))
        for done, seed in enumerate(pending, start=1):
            place = f"{seed + 1} of {len(seeds)}"
            started = time.monotonic()
            exit_status = 0
            for command in self._commands(seed):
                exit_status = self._run(command, seed, place, time_left)
                if self.children.stop_signal:
                    return failed
                if exit_status:
                    break
            if exit_status == 2:
                remove_if_unused(self._run_folder(seed), OUTPUT, ERRORS)
                return None
            if exit_status:
                failed.append(seed)
            time_left.update(done)
            result = self._result(seed, exit_status)
            line = f"seed {seed}   {result}   {duration(time.monotonic() - started)}"
            if not self.status.shown:  # which says the rest
                line += f"   ({place}{time_left})"
            self.status.print(line)
        return failed

    def _run_folder(self, seed: int) -> Path:
        return self.folder / f"seed_{seed}"

    def _commands(self, seed: int) -> Iterator[list[str]]:
        """Yield the command lines that a seed still needs; each is run before the next is made."""
        run = self._run_folder(seed)
        trains = not fit_completed(read_metrics(run))
        if trains:
            fit = ["fit", "--config", str(self.folder / SEEDS_CONFIG)]
            yield [*fit, "--seed_everything", str(seed), "--run_folder", str(run)]
        metrics = read_metrics(run)
        if not fit_completed(metrics):
            raise InputError(f"Expected `fit` to leave its results in {run}, but it did not")
        if self.test and (trains or final_test_accuracy(metrics) is None):
            yield ["test", "--ckpt_path", str(run / metrics["fit"]["checkpoint"])]

    def _run(self, command: list[str], seed: int, place: str, time_left: TimeLeft) -> int:
        """Run a subcommand to its end, and return its exit status."""
        run = self._run_folder(seed)
        run.mkdir(exist_ok=True)
        # files, not pipes: a run outlives this process if that is killed
        with (
            (run / OUTPUT).open("ab") as output,
            (run / ERRORS).open("ab") as errors,
            (run / ERRORS).open("rb") as new_errors,
        ):
            new_errors.seek(0, os.SEEK_END)
            child = self.children.start(
                command, stdout=output, stderr=errors, pass_fds=(self.lock_fd,)
            )
            ended = False
            while not ended:
                text = f"seed {seed} ({place}){time_left}"
                self.status.show(STOPPING if self.children.stop_signal else text)
                ended = bool(self.children.wait(REFRESH_SECONDS))
                text = new_errors.read().decode(errors="replace")
                if text:
                    self.status.print(text.removesuffix("\n"), sys.stderr)
        if not (run / ERRORS).stat().st_size:
            (run / ERRORS).unlink()
        return int(child.returncode)

    def _result(self, seed: int, exit_status: int) -> str:
        if exit_status:  # a process that was killed has not said why it ended
            return f"failed: {failure_reason(b'', exit_status)}" if exit_status < 0 else "failed"
        results = seed_results(read_metrics(self._run_folder(seed)), self.test)
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
        if fit_completed(metrics):
            for name, value in seed_results(metrics, test).items():
                columns.setdefault(name, {})[seed] = value
    print(results_table(columns, seeds))
    if yaml.safe_load((folder / SEEDS_CONFIG).read_text(encoding="utf-8"))["data"]["val_size"] == 0:
        print("validation is the test set, since val_size is 0")
    print(f"look at them: tensorboard --logdir {quote(folder)}")
