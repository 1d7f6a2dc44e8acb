"""The subcommand `sweep`: searches for the settings that validate best, with Optuna."""

import json
import math
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import STDOUT, Popen
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import yaml

from fnn_lightning.commands.options import make_parser, parse, refuse, split
from fnn_lightning.errors import InputError
from fnn_lightning.runs.subprocesses import (
    LOCK,
    Subprocesses,
    discard,
    folder_for,
    lock,
    read_metrics,
    reason,
    settle,
    stopped,
)

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage

CONFIG, SPACE = "sweep.yaml", "space.yaml"  # what all trials of the folder share
OUTPUT = "output.txt"
GIVEN = ("--run_folder", "--ckpt_path", "--print_config", "--checkpoint.monitor")
SELECT = "--checkpoint.monitor=val/acc"
RETRY_SECONDS = 1.0  # this often the trials of other processes are looked at
SHOWN = 5  # trials in the table at the end

Space = dict[str, "BaseDistribution"]
"""What each option is drawn from. The choices are texts, as they follow the option."""


class Trial(NamedTuple):
    """A trial that this process is to run."""

    number: int
    params: dict[str, Any]
    """What was drawn for each option."""
    run: Path
    """The folder of its run."""
    output: IO[bytes]
    """Where its output goes; locked as long as anyone works on the trial."""


def main(argv: list[str]) -> None:
    """Run trials until there are as many as wanted, and print the best.

    Args:
        argv: What follows the subcommand.

    Raises:
        InputError: If what the user gave cannot be used.
        SystemExit: With status 1 if all trials failed, 130 or 143 if it was stopped.
    """
    parser = make_parser(
        "sweep",
        "Searches a space of options for the best val/acc; takes all options of fit as well. The "
        "same command goes on with a sweep, and joins it from another machine.",
    )
    parser.add_argument("--space", type=str, required=True, help="YAML file with the space.")
    parser.add_argument("--trials", type=int, default=20, help="Number of trials in all.")
    parser.add_argument("--folder", type=str | None, help="Folder of all trials; a new one.")
    parser.add_argument(
        "--storage", type=str | None, help="URL of a database; FOLDER/sweep.db if not given."
    )
    parser.add_argument("--workers", type=int, default=1, help="Number of trials at a time.")
    own, others = split(parser, argv)
    args = parse(parser, own)
    for name in ("trials", "workers"):
        if args[name] < 1:
            raise InputError(f"Expected `{name}` to be 1 or more, but got {args[name]}")
    if args.storage is not None and args.folder is None:
        raise InputError("Expected --folder beside --storage: all who join the sweep share both")
    refuse(others, "sweep", GIVEN)
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            f"sweep needs Optuna, which is missing ({error}): pip install -e '.[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = read_space(Path(args.space).expanduser())

    with Subprocesses() as children:
        first = options({name: example(entry) for name, entry in space.items()})
        children.answer(["fit", *others, *first, SELECT, "--trainer.fast_dev_run=1"])
        settings = children.answer(["fit", *others, "--print_config"])
        folder = folder_for(args.folder, "sweeps", CONFIG)
        with storage_errors():
            storage, study = begin(folder, settings, space, args.storage)
            named = [] if args.folder else ["--folder", str(folder)]
            sweep = Sweep(children, storage, study, folder, space, others)
            sweep.run(args.trials, args.workers)
            if children.stop:
                again = f"python -m fnn_lightning sweep {shlex.join([*argv, *named])}"
                raise stopped(children.stop, f"go on with: {again}")
            print_best_trials(study, folder)


class Sweep:
    """The trials of a study, each trained by a process of its own.

    Optuna's storage says which trials there are; the lock on a trial's output says whether anyone
    works on it. One that is running for Optuna and locked by nobody was interrupted, in whatever
    way and on whatever machine, and whoever finds it goes on with it, from its checkpoint.

    Args:
        children: Where to run them.
        storage: Optuna's storage.
        study: Optuna's study in it.
        folder: Folder of the trials' runs.
        space: What is drawn.
        argv: The options of `fit` that all trials share.
    """

    def __init__(
        self,
        children: Subprocesses,
        storage: "RDBStorage",
        study: "Study",
        folder: Path,
        space: Space,
        argv: list[str],
    ) -> None:
        self.children = children
        self.storage = storage
        self.study = study
        self.folder = folder
        self.space = space
        self.argv = argv

    def run(self, trials: int, workers: int) -> None:
        """Run trials until there are as many in all and none is left running, or a signal comes.

        Args:
            trials: Number of trials, those of others included.
            workers: Number of those that this process runs at a time.
        """
        env = dict(os.environ)
        if workers > 1:  # else each would take all cores
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
        running: dict[Popen[bytes], Trial] = {}
        waiting = False
        while not self.children.stop or running:
            while len(running) < workers and not self.children.stop:
                trial = self.claim(trials)
                if trial is None:
                    break
                if read_metrics(trial.run):  # only the study does not know of it yet
                    self.finish(trial, 0)
                    continue
                command = ["fit", *self.argv, *options(trial.params), SELECT]
                command += ["--run_folder", str(trial.run)]
                child = self.children.start(command, stdout=trial.output, stderr=STDOUT, env=env)
                running[child] = trial
            if not running and not self.children.stop:
                if not self.in_state("RUNNING"):
                    return
                if not waiting:
                    print("waiting for trials that other processes train", flush=True)
                    waiting = True
            for child in self.children.wait(RETRY_SECONDS):
                trial = running.pop(child)
                if child.returncode and self.children.stop:
                    trial.output.close()  # to be gone on with
                else:
                    self.finish(trial, child.returncode)

    def claim(self, trials: int) -> Trial | None:
        """Find a trial that was interrupted, or begin one if there are fewer than wanted.

        Args:
            trials: Number of trials wanted.
        """
        from optuna.samplers import TPESampler

        with locked(self.folder):
            for trial in self.in_state("RUNNING"):
                claimed = self._take(trial.number, trial.params)
                if claimed and trial.params.keys() == self.space.keys():
                    return claimed
                if claimed:  # killed while its options were drawn
                    self._tell(claimed, None, "lost before it began")
            begun = len(self.study.get_trials(deepcopy=False)) - len(self.in_state("WAITING"))
            if begun >= trials:
                return None
            # what is drawn depends on the trials before alone, however often the sweep was resumed
            self.study.sampler = TPESampler(seed=begun, constant_liar=True)
            new = self.study.ask(self.space)
            return self._take(new.number, new.params)

    def _take(self, number: int, params: dict[str, Any]) -> Trial | None:
        run = trial_folder(self.folder, number)
        run.mkdir(exist_ok=True)
        output = lock(run / OUTPUT)
        return None if output is None else Trial(number, params, run, output)

    def finish(self, trial: Trial, status: int) -> None:
        """Record how a trial has ended, and say so.

        Args:
            trial: The trial.
            status: Exit status of its process.
        """
        fit = read_metrics(trial.run).get("fit")
        if status:
            self._tell(trial, None, reason((trial.run / OUTPUT).read_bytes(), status))
        elif fit is None or fit["best"] is None:
            self._tell(trial, None, "it left no result")
        else:
            self._tell(trial, fit["best"]["score"], f"{fit['seconds']:.1f} s")

    def _tell(self, trial: Trial, value: float | None, text: str) -> None:
        from optuna.trial import TrialState

        if value is None:
            study_id = self.storage.get_study_id_from_name(self.study.study_name)
            trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
            self.storage.set_trial_user_attr(trial_id, "reason", text)
            self.study.tell(trial.number, state=TrialState.FAIL)
        else:
            self.study.tell(trial.number, value)
        trial.output.close()
        result = f"failed: {text}" if value is None else f"val/acc {100 * value:.2f} %   {text}"
        print(f"trial {trial.number:>4}   {result}   {shown(trial.params)}", flush=True)

    def in_state(self, state: str) -> list[Any]:
        """Return the study's trials that are in one of Optuna's states."""
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=(TrialState[state],))


def begin(folder: Path, settings: str, space: Space, url: str | None) -> "tuple[RDBStorage, Study]":
    """Open the storage and the study of a folder, or make them.

    Args:
        folder: Folder of the trials.
        settings: The config that they share.
        space: What is drawn.
        url: The database; one in the folder if not given.

    Raises:
        InputError: If the folder holds another sweep, or the database another study.
    """
    import optuna

    described = {name: json.loads(as_json(entry)) for name, entry in space.items()}
    with locked(folder):
        new = not (folder / CONFIG).is_file()
        settle(folder / CONFIG, settings)
        settle(folder / SPACE, yaml.safe_dump(described, sort_keys=False))
        try:
            storage = optuna.storages.RDBStorage(url or f"sqlite:///{folder.absolute()}/sweep.db")
            study = optuna.create_study(
                storage=storage,
                study_name=folder.absolute().name,
                direction="maximize",
                load_if_exists=True,
            )
            trials = len(study.get_trials(deepcopy=False))
            if new and trials:
                raise InputError(
                    f"Expected a new study, but the storage has one named {study.study_name} "
                    "already: name another --folder, or the one in which it began"
                )
        except BaseException:
            if new:
                discard(folder, CONFIG, SPACE, LOCK)
            raise
        if trial_folder(folder, trials).exists():
            raise InputError(
                f"Expected {folder} and the storage to be of the same sweep, but it holds "
                f"{trial_folder(folder, trials).name}, of which the storage knows nothing"
            )
    return storage, study


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time deal with the trials of a folder."""
    file = lock(folder / LOCK, wait=True)
    assert file
    with file:
        yield


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what goes wrong with the database into one line.

    Raises:
        InputError: If something does.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (ImportError, SQLAlchemyError, StorageInternalError) as error:
        raise InputError(
            f"Expected --storage to be a database that can be used, but: {error}"
        ) from error


def read_space(path: Path) -> Space:
    """Read a space: a YAML mapping from options of `fit` to what their values are drawn from.

    That is `{choices: […]}`, or `{low: …, high: …}` with `log: true` or a `step` if wanted, whole
    numbers if both bounds are. `depth` and `width` make `model.hidden_dims` together.

    Raises:
        InputError: If it is not such a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"Expected --space to be a YAML file, but got {str(path)!r}: {error.strerror}"
        ) from error
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"Expected {path} to be a YAML file, but it is not: {error}") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"Expected {path} to map options to values, but got {content!r:.100}")
    space = {str(name): distribution(str(name), entry) for name, entry in content.items()}
    for name in space:
        if f"--{name}" in GIVEN or name in ("config", "help"):
            raise InputError(f"Expected no `{name}` in {path}: it cannot be searched")
    dims = {"depth", "width"} & space.keys()
    if len(dims) == 1 or (dims and "model.hidden_dims" in space):
        raise InputError(
            f"Expected `depth` and `width` together, or `model.hidden_dims` instead, in {path}"
        )
    for name, least in (("depth", 0), ("width", 1)):
        if name in dims and not holds_integers_from(space[name], least):
            raise InputError(f"Expected `{name}` in {path} to be whole numbers from {least} on")
    return space


def distribution(name: str, entry: Any) -> "BaseDistribution":
    """Make Optuna's distribution from an entry of a space.

    Raises:
        InputError: If it is none.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    keys = set(entry) if isinstance(entry, dict) else set()
    if keys == {"choices"}:
        choices = entry["choices"]
        if not isinstance(choices, list) or not choices:
            raise InputError(f"Expected `choices` of `{name}` to be a list, but got {choices!r}")
        texts = [as_text(choice) for choice in choices]
        if len(set(texts)) < len(texts):
            raise InputError(f"Expected each of `choices` of `{name}` once, but got {choices}")
        return CategoricalDistribution(texts)
    if not {"low", "high"} <= keys <= {"low", "high", "log", "step"}:
        raise InputError(
            f"Expected `{name}` in the space to be {{choices: […]}} or {{low: …, high: …}}, with "
            f"log: true or step: …, but got {entry!r:.200}"
        )
    low, high = (number(entry[key], f"{key}` of `{name}") for key in ("low", "high"))
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"Expected `log` of `{name}` to be true or false, but got {log!r}")
    if low > high:
        raise InputError(f"Expected `low` of `{name}` to be at most {high}, but got {low}")
    if log and low <= 0:
        raise InputError(f"Expected `low` of `{name}` to be positive with log, but got {low}")
    step = number(entry["step"], f"step` of `{name}") if "step" in entry else None
    if step is not None and (log or step <= 0):
        raise InputError(f"Expected `step` of `{name}` to be positive, and without log")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a step that does not divide the range
            if not (isinstance(low, int) and isinstance(high, int)):
                return FloatDistribution(low, high, log=log, step=step)
            if isinstance(step, float):
                raise ValueError("between whole numbers the step is one, too")
            return IntDistribution(low, high, log=log, step=step or 1)
    except (UserWarning, ValueError) as error:
        raise InputError(f"Expected another range of `{name}`: {error}") from error


def number(value: Any, name: str) -> int | float:
    """Return a finite number; YAML takes 1e-4, without a dot, for a text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        result = float(value) if isinstance(value, float | str) else math.nan
    except ValueError:
        result = math.nan
    if not math.isfinite(result):
        raise InputError(f"Expected `{name}` to be a number, but got {value!r}")
    return result


def as_text(value: Any) -> str:
    """Return a value as it follows an option on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def as_json(entry: "BaseDistribution") -> str:
    """Describe a distribution, for comparison with another."""
    from optuna.distributions import distribution_to_json

    return str(distribution_to_json(entry))


def holds_integers_from(entry: "BaseDistribution", least: int) -> bool:
    """Tell whether all that a distribution holds are whole numbers from a least one on."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(entry, CategoricalDistribution):
        return all(str(text).isdecimal() and int(str(text)) >= least for text in entry.choices)
    return isinstance(entry, IntDistribution) and entry.low >= least


def example(entry: "BaseDistribution") -> Any:
    """Return the first value of a distribution."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(entry, CategoricalDistribution):
        return entry.choices[0]
    assert isinstance(entry, FloatDistribution | IntDistribution)
    return entry.low


def options(params: dict[str, Any]) -> list[str]:
    """Return what was drawn as options of `fit`."""
    given = dict(params)
    if "depth" in given:
        given["model.hidden_dims"] = int(given.pop("depth")) * [int(given.pop("width"))]
    return [f"--{name}={as_text(value)}" for name, value in given.items()]


def trial_folder(folder: Path, number: int) -> Path:
    """Return the folder of a trial's run."""
    return folder / f"trial_{number:04}"


def shown(params: dict[str, Any]) -> str:
    """Return what was drawn as it is read most easily."""
    return "  ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in params.items()
    )


def print_best_trials(study: "Study", folder: Path) -> None:
    """Print the best trials, and what to do with the first.

    Raises:
        SystemExit: With status 1 if all have failed.
    """
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    if not complete:
        print(
            f"error: all {len(trials)} trials failed; see {folder / 'trial_*' / OUTPUT}",
            file=sys.stderr,
        )
        raise SystemExit(1)
    complete.sort(key=lambda trial: -float(trial.value or 0))
    print(f"the best of {len(trials)} trials, {len(trials) - len(complete)} of which failed")
    print("trial   val/acc, %   options")
    for trial in complete[:SHOWN]:
        print(f"{trial.number:>5}   {100 * (trial.value or 0):>10.2f}   {shown(trial.params)}")
    run = trial_folder(folder, complete[0].number)
    best = shlex.quote(str(run / read_metrics(run)["fit"]["checkpoint"]))
    print(f"test the best  python -m fnn_lightning test --ckpt_path {best}")
    print(f"look at all    tensorboard --logdir {shlex.quote(str(folder))}")
