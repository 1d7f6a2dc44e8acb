"""How far a sweep is: the trials that are done, running and failed, the best, the time left."""

from typing import TYPE_CHECKING, Any

from fnn_lightning.runs.progress import STOPPING, StatusLine, TimeLeft

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


class SweepProgress:
    """Shows how far a study is, with the trials of other processes.

    Args:
        study: Optuna's study.
        trials: Number of trials wanted.
        status: The line to show it in.
    """

    def __init__(self, study: "Study", trials: int, status: StatusLine) -> None:
        self._study = study
        self._trials = trials
        self._status = status
        self._running = self._failed = self._done = 0
        self._best: FrozenTrial | None = None
        self._ask()
        self._done_before = self._done
        self._time_left = TimeLeft(trials - self._done)

    def update(self) -> None:
        """Note what has changed, after a trial of this process has begun or ended."""
        self._ask()
        self._time_left.update(self._done - self._done_before)

    def _ask(self) -> None:
        trials = self._study.get_trials(deepcopy=False)
        states = [trial.state.name for trial in trials]
        self._running, self._failed = states.count("RUNNING"), states.count("FAIL")
        self._done = states.count("COMPLETE") + self._failed
        completed = [trial for trial in trials if trial.state.name == "COMPLETE"]
        self._best = max(completed, key=lambda trial: float(trial.value or 0), default=None)

    def show(self, stopping: bool) -> None:
        """Refresh the status line.

        Args:
            stopping: Whether a stop signal has come.
        """
        # what matters most comes first, since the end may be cut
        parts = [f"{self._done} of {self._trials} trials{self._time_left}"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        parts.append(f"{self._running} running")
        if self._best:
            parts.append(f"{self._best_score()}: {short_params(self._best.params)}")
        self._status.show(STOPPING if stopping else ", ".join(parts))

    def print(self, line: str) -> None:
        """Print a line above the status line."""
        self._status.print(line)

    def print_trial(self, line: str) -> None:
        """Print the line of a trial that has ended; in a log file with how far the sweep is."""
        if not self._status.shown:
            best = f", {self._best_score()}" if self._best else ""
            line += f"   ({self._done} of {self._trials}{best}{self._time_left})"
        self._status.print(line)

    def _best_score(self) -> str:
        assert self._best is not None
        return f"best {100 * (self._best.value or 0):.2f} %"


def format_params(params: dict[str, Any]) -> str:
    """Write a trial's parameters for a reader, floats with four digits.

    Example:
        >>> format_params({"optimizer.lr": 0.123456, "model.activation": "relu"})
        'optimizer.lr=0.1235  model.activation=relu'
    """
    return "  ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in params.items()
    )


def short_params(params: dict[str, Any]) -> str:
    """Write a trial's parameters by the last words of their names.

    Example:
        >>> short_params({"optimizer.lr": 0.123456, "model.activation": "relu"})
        'lr=0.1235  activation=relu'
    """
    return format_params({name.rpartition(".")[2]: value for name, value in params.items()})
