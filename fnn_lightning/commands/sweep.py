"""The subcommand `sweep`: searches with Optuna for the settings that validate best."""

import os
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import STDOUT, Popen
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from fnn_lightning.commands.main import COMMAND
from fnn_lightning.commands.options import make_parser, parse, refuse_options, split_argv
from fnn_lightning.commands.sweep_progress import SweepProgress, format_params
from fnn_lightning.commands.sweep_space import (
    RESERVED,
    Space,
    first_value,
    fit_options,
    read_space,
    space_yaml,
)
from fnn_lightning.errors import InputError
from fnn_lightning.runs.cores import available_cores
from fnn_lightning.runs.files import quote
from fnn_lightning.runs.multirun_folder import (
    LOCK,
    choose_folder,
    fold_runs,
    lock_file,
    remove_if_unused,
    write_or_compare,
)
from fnn_lightning.runs.progress import StatusLine
from fnn_lightning.runs.run_folder import fit_completed, read_metrics
from fnn_lightning.runs.subprocesses import Subprocesses, exit_stopped, failure_reason

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage

SWEEP_CONFIG, SPACE = "sweep.yaml", "space.yaml"  # the settings that all trials of the folder share
OUTPUT = "output.txt"
MONITOR = "--checkpoint.monitor=val/acc"
RETRY_SECONDS = 1.0  # between looks for trials that other processes have left
BEST_TRIALS = 5  # rows of the table at the end


class Trial(NamedTuple):
    """A trial that this process has locked and may run."""

    number: int
    params: dict[str, Any]
    """The value drawn for each option."""
    folder: Path
    """The folder of its run, or of its runs if folds validate in turn."""
    runs: dict[Path, list[str]]
    """The folder of each run, and the options of `fit` that it has beside the others."""
    output: IO[bytes]
    """The file for its output, locked while any process works on the trial."""

    def next_run(self) -> Path | None:
        """Return the folder of the first run that has not completed; None if all have."""
        return next((run for run in self.runs if not fit_completed(read_metrics(run))), None)


def main(argv: list[str]) -> None:
    """Run trials until there are as many as wanted, and print the best.

    With `--data.folds` a trial trains once for each fold that validates, one after the other, and
    is judged by the mean.

    Args:
        argv: The command line after `sweep`.

    Raises:
        InputError: If an argument is invalid.
        SystemExit: With status 1 if all trials failed, 130 or 143 after a stop signal.
    """
    parser = make_parser(
        "sweep",
        "Searches a space of options for the best val/acc. Takes all options of fit as well; with "
        "--data.folds alone, each fold validates in turn, and the mean counts. "
        "Repeat the command with --folder to resume a sweep, or to join it from another machine.",
    )
    parser.add_argument("--space", type=str, required=True, help="YAML file of the search space.")
    parser.add_argument("--trials", type=int, default=20, help="Number of trials in total.")
    parser.add_argument(
        "--folder", type=str | None, help="Folder of all trials; by default a new one."
    )
    parser.add_argument(
        "--storage", type=str | None, help="URL of a database; by default FOLDER/sweep.db."
    )
    parser.add_argument("--workers", type=int, default=1, help="Number of trials at a time.")
    own_argv, fit_argv = split_argv(parser, argv)
    args = parse(parser, own_argv)
    for name in ("trials", "workers"):
        if args[name] < 1:
            raise InputError(f"Expected `{name}` to be 1 or more, but got {args[name]}")
    if args.storage is not None and args.folder is None:
        raise InputError(
            "Expected --folder beside --storage, but got none: all who join a sweep share both"
        )
    refuse_options(fit_argv, "sweep", RESERVED)
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            f"Expected Optuna, but it is not installed ({error}): pip install -e '.[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = read_space(Path(args.space).expanduser())

    with Subprocesses() as children:
        example = fit_options({name: first_value(values) for name, values in space.items()})
        settings = children.check_output(["fit", *fit_argv, "--print_config"])
        first, *_ = fold_runs(Path(), settings).values()
        check = ["fit", *fit_argv, *example, *first, MONITOR, "--trainer.fast_dev_run=1"]
        children.check_output(check)
        folder = choose_folder(args.folder, "sweeps", SWEEP_CONFIG)
        with storage_errors():
            url = args.storage and args.storage.replace("sqlite:///~", f"sqlite:///{Path.home()}")
            storage, study = open_study(folder, settings, space, url)
            with StatusLine() as status:
                progress = SweepProgress(study, args.trials, status)
                sweep = Sweep(children, storage, study, folder, settings, space, fit_argv, progress)
                sweep.run(args.trials, args.workers)
            if children.stop_signal:
                new_folder = [] if args.folder else ["--folder", str(folder)]
                resume = f"{COMMAND} sweep {quote(*argv, *new_folder)}"
                exit_stopped(children.stop_signal, f"resume with: {resume}")
            print_best_trials(study, folder, fit_argv, settings)


class Sweep:
    """The trials of a study, each trained in a process of its own.

    Optuna's storage says which trials there are; the lock on a trial's output says whether a
    process works on it. A trial that Optuna takes to be running, but that is not locked, was
    interrupted, however and on whichever machine; the process that finds it resumes it.

    Args:
        children: Starts the processes.
        storage: Optuna's storage.
        study: Optuna's study in it.
        folder: Folder of the trials' runs.
        settings: The config that the trials share, as YAML.
        space: The search space.
        fit_argv: The options of `fit` that all trials share.
        progress: Shows how far the sweep is.
    """

    def __init__(
        self,
        children: Subprocesses,
        storage: "RDBStorage",
        study: "Study",
        folder: Path,
        settings: str,
        space: Space,
        fit_argv: list[str],
        progress: SweepProgress,
    ) -> None:
        self.children = children
        self.storage = storage
        self.study = study
        self.folder = folder
        self.settings = settings
        self.space = space
        self.fit_argv = fit_argv
        self.progress = progress

    def run(self, trials: int, workers: int) -> None:
        """Run trials until the study has enough and none is running, or a stop signal comes.

        Args:
            trials: Number of trials in the study, with those of other processes.
            workers: Number of trials that this process runs at a time.
        """
        env = dict(os.environ)
        if workers > 1:  # otherwise each trial would use all cores
            env.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // workers)))
        running: dict[Popen[bytes], tuple[Trial, Path]] = {}
        waiting = False
        while not self.children.stop_signal or running:
            while len(running) < workers and not self.children.stop_signal:
                trial = self.next_trial(trials)
                if trial is None:
                    break
                run = trial.next_run()
                if run is None:  # killed before the study learned of it
                    self.finish(trial, 0)
                    continue
                running[self._start(trial, run, env)] = trial, run
                self.progress.update()
            if not running and not self.children.stop_signal:
                if not self.trials_in_state("RUNNING"):
                    return
                if not waiting:
                    self.progress.print("waiting for trials that other processes train")
                    waiting = True
                self.progress.update()
            self.progress.show(stopping=bool(self.children.stop_signal))
            for child in self.children.wait(RETRY_SECONDS):
                trial, run = running.pop(child)
                pending = None if child.returncode else trial.next_run()
                if self.children.stop_signal and (child.returncode or pending):
                    trial.output.close()  # stays RUNNING in the study, to be resumed
                elif pending and pending != run:  # which otherwise has left no result
                    running[self._start(trial, pending, env)] = trial, pending
                else:
                    self.finish(trial, child.returncode)

    def _start(self, trial: Trial, run: Path, env: dict[str, str]) -> Popen[bytes]:
        command = ["fit", *self.fit_argv, *fit_options(trial.params), *trial.runs[run], MONITOR]
        command += ["--run_folder", str(run)]
        return self.children.start(command, stdout=trial.output, stderr=STDOUT, env=env)

    def next_trial(self, trials: int) -> Trial | None:
        """Lock a trial that was interrupted, or begin one if the study has too few.

        Args:
            trials: Number of trials wanted.

        Returns:
            None if there is nothing to do but to wait for other processes.
        """
        from optuna.samplers import TPESampler

        with folder_lock(self.folder):
            for unfinished in self.trials_in_state("RUNNING"):
                trial = self._lock_trial(unfinished.number, unfinished.params)
                running = [each.number for each in self.trials_in_state("RUNNING")]
                if trial and trial.number not in running:  # another process has just finished it
                    trial.output.close()
                    continue
                if trial and trial.params.keys() == self.space.keys():
                    return trial
                if trial:  # killed while its parameters were drawn
                    self._record_failure(trial, "lost before it began")
            begun = len(self.study.get_trials(deepcopy=False))
            begun -= len(self.trials_in_state("WAITING"))
            if begun >= trials:
                return None
            # seeded by its number: a sweep that was resumed draws what it would have drawn
            self.study.sampler = TPESampler(seed=begun, constant_liar=True)
            new = self.study.ask(self.space)
            return self._lock_trial(new.number, new.params)

    def _lock_trial(self, number: int, params: dict[str, Any]) -> Trial | None:
        folder = trial_folder(self.folder, number)
        folder.mkdir(exist_ok=True)
        output = lock_file(folder / OUTPUT)
        if output is None:
            return None
        return Trial(number, params, folder, fold_runs(folder, self.settings), output)

    def finish(self, trial: Trial, status: int) -> None:
        """Record in the study how a trial has ended, and print it.

        Args:
            trial: The trial.
            status: Exit status of its process.
        """
        metrics = [read_metrics(run) for run in trial.runs]
        fits = [each["fit"] for each in metrics if fit_completed(each) and each["fit"]["best"]]
        scores = [fit["best"]["score"] for fit in fits]
        if status:
            output = (trial.folder / OUTPUT).read_bytes()
            self._record_failure(trial, failure_reason(output, status))
        elif len(scores) < len(trial.runs) or None in scores:
            self._record_failure(trial, "it left no result")
        else:
            score, seconds = statistics.fmean(scores), sum(fit["seconds"] for fit in fits)
            self.study.tell(trial.number, score)
            self._close(trial, f"val/acc {100 * score:.2f} %   {seconds:.1f} s")

    def _record_failure(self, trial: Trial, reason: str) -> None:
        from optuna.trial import TrialState

        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        self.storage.set_trial_user_attr(trial_id, "reason", reason)
        self.study.tell(trial.number, state=TrialState.FAIL)
        self._close(trial, f"failed: {reason}")

    def _close(self, trial: Trial, result: str) -> None:
        trial.output.close()
        self.progress.update()
        self.progress.print_trial(
            f"trial {trial.number:>4}   {result}   {format_params(trial.params)}"
        )

    def trials_in_state(self, state: str) -> list[Any]:
        """Return the study's trials in one of Optuna's states."""
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=(TrialState[state],))


def open_study(
    folder: Path, settings: str, space: Space, url: str | None
) -> "tuple[RDBStorage, Study]":
    """Open the study of a folder, or make it.

    Args:
        folder: Folder of the trials.
        settings: The config that the trials share, as YAML.
        space: The search space.
        url: URL of the database; with None `sweep.db` in the folder.

    Returns:
        Optuna's storage and the study in it.

    Raises:
        InputError: If the folder or the database belongs to another sweep.
    """
    import optuna

    with folder_lock(folder):
        is_new = not (folder / SWEEP_CONFIG).is_file()
        write_or_compare(folder / SWEEP_CONFIG, settings)
        write_or_compare(folder / SPACE, space_yaml(space))
        try:
            storage = open_storage(url or f"sqlite:///{folder.absolute()}/sweep.db")
            study = optuna.create_study(
                storage=storage,
                study_name=folder.absolute().name,
                direction="maximize",
                load_if_exists=True,
            )
            trials = len(study.get_trials(deepcopy=False))
            if is_new and trials:
                raise InputError(
                    f"Expected a new study, but the storage already has one named "
                    f"{study.study_name}: name another --folder, or the one in which it began"
                )
        except BaseException:
            if is_new:
                remove_if_unused(folder, SWEEP_CONFIG, SPACE, LOCK)
            raise
        if trial_folder(folder, trials).exists():
            raise InputError(
                f"Expected {folder} and the storage to be of the same sweep, but the folder holds "
                f"{trial_folder(folder, trials).name}, which the storage does not know"
            )
    return storage, study


def open_storage(url: str) -> "RDBStorage":
    """Open Optuna's storage in a database; no connection stays open between two questions.

    Raises:
        InputError: If the database is in memory only, or of another version of Optuna.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy.pool import NullPool

    if url in ("sqlite://", "sqlite:///:memory:"):
        raise InputError(
            f"Expected --storage to be a file or a server, but got {url}: it is lost at the end"
        )
    try:
        # A pool would hold connections open while trials train, for hours in which the server or
        # a firewall may drop them, and at the end of the process.
        return RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    except RuntimeError as error:
        raise InputError(
            f"Expected --storage to be a database that can be used, but got: {error}"
        ) from error


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time change a folder's list of trials."""
    lock = lock_file(folder / LOCK, wait=True)
    assert lock
    with lock:
        yield


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn an error of the database into one line.

    Raises:
        InputError: If there is one.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (ImportError, SQLAlchemyError, StorageInternalError) as error:
        raise InputError(
            f"Expected --storage to be a database that can be used, but got: {error}"
        ) from error


def trial_folder(folder: Path, number: int) -> Path:
    """Return the folder of a trial."""
    return folder / f"trial_{number:04}"


def print_best_trials(study: "Study", folder: Path, fit_argv: list[str], settings: str) -> None:
    """Print the best trials, and the commands to test the first and to look at all.

    With folds no network has trained on all images: then the command trains one.

    Args:
        study: Optuna's study.
        folder: Folder of the trials.
        fit_argv: The options of `fit` that all trials share.
        settings: The same as YAML.

    Raises:
        SystemExit: With status 1 if all trials have failed.
    """
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    completed = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    if not completed:
        print(
            f"error: all {len(trials)} trials failed; see {folder / 'trial_*' / OUTPUT}",
            file=sys.stderr,
        )
        raise SystemExit(1)
    completed.sort(key=lambda trial: -float(trial.value or 0))
    print(f"the best of {len(trials)} trials, {len(trials) - len(completed)} of which failed")
    print("trial   val/acc, %   options")
    for trial in completed[:BEST_TRIALS]:
        accuracy = 100 * (trial.value or 0)
        print(f"{trial.number:>5}   {accuracy:>10.2f}   {format_params(trial.params)}")
    best = trial_folder(folder, completed[0].number)
    if best in fold_runs(best, settings):
        path = quote(best / read_metrics(best)["fit"]["checkpoint"])
        print(f"test the best  {COMMAND} test --ckpt_path {path}")
    else:
        words = quote(*fit_argv, *fit_options(completed[0].params), "--data.folds=null")
        print(f"train the best {COMMAND} fit {words}")
    print(f"look at all    tensorboard --logdir {quote(folder)}")
