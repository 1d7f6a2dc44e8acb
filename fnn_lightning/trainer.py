"""`Trainer`: Lightning's, set up as the command line sets it up."""

import functools
import inspect
import logging
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.plugins import CheckpointIO

from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.tensorboard import TensorBoardPlots
from fnn_lightning.runs.checkpoint_io import AtomicCheckpointIO
from fnn_lightning.runs.files import display_path
from fnn_lightning.runs.loggers import RunLogger
from fnn_lightning.runs.settings import MAX_EPOCHS, TRAINER_DEFAULTS
from fnn_lightning.runs.signals import Stopped, keep_keyboard_interrupt
from fnn_lightning.training.checkpointing import RunCheckpoint
from fnn_lightning.training.console import Console, TerminateOnSigterm, print_line
from fnn_lightning.training.progress_bar import RunProgressBar
from fnn_lightning.training.resume import Resume

NO_SETTINGS = {
    "barebones": False,
    "callbacks": None,
    "default_root_dir": None,
    "enable_checkpointing": None,
    "enable_progress_bar": None,
    "logger": None,
    "max_epochs": None,
    "max_steps": -1,
    "max_time": None,
    "plugins": None,
}

Method = TypeVar("Method", bound=Callable[..., Any])


def like(original: Any) -> Callable[[Method], Method]:
    """Let a method show the signature and the description of Lightning's."""
    wrap: Any = functools.wraps(original)
    return wrap  # type: ignore[no-any-return]


class Trainer(LightningTrainer):
    """Lightning's Trainer, set up as the command line sets it up.

    It trains for 5 epochs, prints a header and a table of the validations, logs to a new
    `lightning_logs/version_N` with TensorBoard, and keeps `last.ckpt` there. The progress bar is
    shown in a terminal only. Lightning's advertisements, its summary of the model and its table of
    test results are off. Ctrl-C ends training after the step, once `last.ckpt` is written.

    A callback, logger or plugin of the user's takes the place of the one of its kind: one derived
    from `ProgressBar`, `Checkpoint`, `Console` or `TensorBoardPlots`, any logger, any
    `CheckpointIO`. With `logger=False` or `enable_checkpointing=False` no checkpoint is written.

    A Trainer has one run: it refuses to fit another module than the first. An evaluation without
    a model takes the checkpoint of the run, or the module as it is if none was written. Before
    training, evaluations make no folder of a run.

    Args:
        settings: Arguments of Lightning's Trainer. They win over all of the above.

    Example:
        >>> Trainer(max_epochs=2).max_epochs
        2
    """

    def __init__(self, **settings: Any) -> None:
        quiet_lightning()
        config = SimpleNamespace(**{**NO_SETTINGS, **TRAINER_DEFAULTS, **settings})
        given = as_list(config.callbacks)
        set_defaults(config, given, shows_bar=in_terminal())
        own: list[Callback] = [TerminateOnSigterm(), Console()]
        if config.enable_progress_bar:
            own.append(RunProgressBar())
        if not config.barebones:
            writes = config.enable_checkpointing is not False and config.logger is not False
            if config.logger in (None, True):
                config.logger = RunLogger(config.default_root_dir or ".")
            own.append(TensorBoardPlots())
            if not any(isinstance(each, Checkpoint) for each in given):
                config.enable_checkpointing = True  # it also obeys Ctrl-C, whether it writes or not
                checkpoint = RunCheckpoint()
                checkpoint.writes = writes
                own.append(checkpoint)
        kinds = (ProgressBar, TerminateOnSigterm, Console, TensorBoardPlots)
        taken = tuple(kind for kind in kinds if any(isinstance(each, kind) for each in given))
        # An EMA of the user's comes after the pictures, which are drawn of it while it is in place.
        own = [each for each in own if not isinstance(each, taken)]
        config.callbacks = [*own, *given]
        self._trained: Any = None
        """The module that was fitted."""
        super().__init__(**vars(config))

    @like(LightningTrainer.fit)
    def fit(self, *args: Any, **kwargs: Any) -> None:
        model = self._bind(LightningTrainer.fit, args, kwargs).get("model")
        if self._trained is not None and model is not self._trained:
            raise InputError(
                "Expected the module that this Trainer has trained, whose run it continues, but "
                "got another: make a new Trainer"
            )
        try:
            with keep_keyboard_interrupt():
                super().fit(*args, **kwargs)
        except Stopped as stop:
            if stop.signum != signal.SIGINT:
                raise
            saved = f"resume with fit(…, ckpt_path={stop.path!r})" if stop.path else "none saved"
            raise KeyboardInterrupt(f"training was interrupted; {saved}") from None
        finally:
            if self.global_step:
                self._trained = model
        callbacks: list[Callback] = self.callbacks  # type: ignore[attr-defined]
        began = any(isinstance(each, Resume) and each.has_begun for each in callbacks)
        if self.global_step and not began:
            print_line(
                self,
                "done",
                f"all {self.global_step:,} steps are done already; to train longer, resume with "
                "Trainer(max_epochs=…).fit(…, ckpt_path=…)",
            )
        checkpoint = self.checkpoint_callback
        if isinstance(checkpoint, RunCheckpoint) and checkpoint.last_model_path:
            path = checkpoint.best_model_path or checkpoint.last_model_path
            print_line(self, "checkpoint", display_path(path))

    @like(LightningTrainer.validate)
    def validate(self, *args: Any, **kwargs: Any) -> Any:
        return self._evaluate(LightningTrainer.validate, args, kwargs)

    @like(LightningTrainer.test)
    def test(self, *args: Any, **kwargs: Any) -> Any:
        return self._evaluate(LightningTrainer.test, args, kwargs)

    @like(LightningTrainer.predict)
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        return self._evaluate(LightningTrainer.predict, args, kwargs)

    def _evaluate(self, method: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Evaluate with what the user has left out of the arguments."""
        given = self._bind(method, args, kwargs)
        if "verbose" in inspect.signature(method).parameters:
            given.setdefault("verbose", False)  # Lightning's table repeats the lines of `Console`
        if given.get("model") is None:
            given |= self._trained_model(method.__name__, given)
        loggers = self.loggers
        # an evaluation before any training is no run, and makes no folder of one
        self.loggers = [
            each for each in loggers if not isinstance(each, RunLogger) or each.has_folder
        ]
        try:
            with keep_keyboard_interrupt():
                return method(self, **given)
        finally:
            self.loggers = loggers

    def _trained_model(self, stage: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments by which an evaluation without a model takes the one trained."""
        model: Any = self.lightning_module
        if model is None:
            raise InputError(
                f"Expected a model to {stage}, but got none, and this Trainer has trained none: "
                "give one, or call `fit` first"
            )
        checkpoint = self.checkpoint_callback
        if given.get("ckpt_path") or not isinstance(checkpoint, RunCheckpoint | None):
            return {}
        # Lightning would take the best one, which need not be kept
        path = checkpoint and (checkpoint.best_model_path or checkpoint.last_model_path)
        return {"ckpt_path": path} if path else {"model": model}

    def _bind(self, method: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by their names."""
        given = inspect.signature(method).bind_partial(self, *args, **kwargs).arguments
        return {name: value for name, value in given.items() if name != "self"}


def set_defaults(config: Any, given: list[Callback], shows_bar: bool) -> None:
    """Set what the user has left out of a Trainer's settings.

    Callbacks and loggers are not among them: the command line has more of these.

    Args:
        config: Settings of the Trainer as attributes, which are changed.
        given: The user's callbacks.
        shows_bar: Whether a progress bar is shown, if the user does not say.
    """
    if config.enable_progress_bar is None and not config.barebones:
        own_bar = any(isinstance(each, ProgressBar) for each in given)
        config.enable_progress_bar = own_bar or shows_bar
    if config.max_epochs is None and config.max_steps == -1 and config.max_time is None:
        config.max_epochs = MAX_EPOCHS
    if config.default_root_dir is not None:
        config.default_root_dir = str(Path(config.default_root_dir).expanduser())
    plugins = as_list(config.plugins)
    if not any(isinstance(each, CheckpointIO) for each in plugins):  # or the user has another way
        config.plugins = [AtomicCheckpointIO(), *plugins]


def in_terminal() -> bool:
    """Tell whether the output is read in a terminal; in a file, a progress bar is noise."""
    return sys.stdout is not None and sys.stdout.isatty()


def as_list(given: Any) -> list[Any]:
    """Return what the Trainer takes alone, in a list or not at all, as a list."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def quiet_lightning() -> None:
    """Silence what Lightning says on every run and does not concern the user."""
    # hardware found, seeds set, advertisements: Console prints what matters
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.distributed").setLevel(logging.WARNING)
    # what --find_lr says in its own words
    checkpoints = "lightning.pytorch.trainer.connectors.checkpoint_connector"
    logging.getLogger(checkpoints).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.tuner.lr_finder").setLevel(logging.CRITICAL)
    # asked for
    warnings.filterwarnings("ignore", message=".*but `Trainer.barebones=True.` is configured")
    # the run's own are there, beside which a ModelCheckpoint of the user writes
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # FNNLitModule's logging interval may span epochs
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than")
    # Lightning 2.6.6 calls what torch 2.14 has deprecated
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    # none of the pictures could be read, which `predict` says in its own words
    warnings.filterwarnings(
        "ignore", message="Total length of `InMemoryDataLoader` across ranks is zero"
    )
