"""Gives the Trainer of a subcommand its callbacks, its logger and its way to write checkpoints."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BatchSizeFinder, Checkpoint, LearningRateFinder, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from fnn_lightning.data.datasets import same_dataset
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.novelty import stored_novelty
from fnn_lightning.evaluation.prediction_writer import PredictionWriter
from fnn_lightning.evaluation.report import PREDICTIONS, REPORT, Report, is_replaceable
from fnn_lightning.runs.loggers import DropLostSteps, RunLogger, resuming_logger
from fnn_lightning.runs.run_folder import METRICS, read_metrics
from fnn_lightning.trainer import as_list, in_terminal, set_defaults
from fnn_lightning.training.console import Console, TerminateOnSigterm
from fnn_lightning.training.ema import EMA
from fnn_lightning.training.progress_bar import RunProgressBar

# what the checkpoints and config.yaml know nothing of, if it comes as a callback
OPTIONS_FOR = {
    EMA: "--ema.decay",
    LearningRateFinder: "--find_lr true",
    BatchSizeFinder: "--data.batch_size",
}


def setup_trainer(
    subcommand: str,
    section: Namespace,
    ckpt_path: str | None,
    checkpoint: dict[str, Any] | None,
    run: Path | None,
) -> None:
    """Complete the Trainer's settings.

    Args:
        subcommand: `fit`, `validate`, `test` or `predict`.
        section: Its settings with the classes in them instantiated; `section.trainer` is changed.
        ckpt_path: The checkpoint to load; None in a new run.
        checkpoint: Its content.
        run: The folder of the run that the checkpoint is in, or that `fit` is to use.

    Raises:
        InputError: If the settings cannot be used.
    """
    config = section.trainer
    given = as_list(config.callbacks)
    own_bar = any(isinstance(each, ProgressBar) for each in given)
    # between the lines of CSV, a progress bar is noise
    set_defaults(config, given, shows_bar=subcommand != "predict" and in_terminal())
    callbacks: list[Callback] = [TerminateOnSigterm(), Console()]
    first: list[Callback] = []
    if config.logger is not False and not config.barebones:
        own = make_logger(subcommand, config.default_root_dir or ".", run)
        loggers = [] if config.logger in (None, True) else config.logger
        # The run's own comes first: by it the Trainer finds the run's folder.
        config.logger = [*own, *as_list(loggers)]
        if subcommand == "fit" and run is not None:
            first = [DropLostSteps(own[0], checkpoint["global_step"] if checkpoint else 0)]
    if config.enable_progress_bar and not own_bar:
        callbacks.append(RunProgressBar())
    if subcommand == "fit":
        # it also obeys signals to stop, whether it writes or not
        writes = config.enable_checkpointing is not False and config.logger
        section.checkpoint.writes = bool(writes)
    if subcommand == "predict":
        novelty = stored_novelty(checkpoint or {}, str(ckpt_path))
        callbacks.append(PredictionWriter(section.output, section.save_inputs, novelty))
    if subcommand == "test" and (folder := report_folder(section, run, checkpoint)):
        assert checkpoint is not None
        callbacks.append(Report(folder, run, Path(str(ckpt_path)), checkpoint))
    # in this order: the pictures are drawn of the EMA, while it is in the network's place
    options = {
        "tensorboard": section.tensorboard.enabled and not config.barebones,
        "ema": subcommand == "fit" and section.ema.decay,
        "early_stopping": subcommand == "fit" and section.early_stopping.enabled,
        "checkpoint": subcommand == "fit" and not config.barebones,
    }
    callbacks += [section[name] for name, wanted in options.items() if wanted]
    if not config.barebones:  # which takes no checkpoint callback, not even one that writes nothing
        # a saved config may bring one of the user's to the other subcommands, where it does nothing
        own_checkpoint = any(isinstance(each, Checkpoint) for each in given)
        config.enable_checkpointing = subcommand == "fit" or own_checkpoint
    for kind, option in OPTIONS_FOR.items():
        if any(isinstance(each, kind) for each in given):
            raise InputError(
                f"Expected {option}, but got {kind.__name__} among --trainer.callbacks"
            )
    config.callbacks = [*first, *given, *callbacks]


def make_logger(subcommand: str, root_dir: str, run: Path | None) -> list[TensorBoardLogger]:
    """Make the run's own logger, as a list that is empty where nothing is to be logged.

    A new `fit` logs to a new folder, and others to the run's. `predict` does not log.

    Args:
        subcommand: `fit`, `validate`, `test` or `predict`.
        root_dir: Folder for new runs.
        run: Folder of the run, if there is one already.
    """
    if subcommand == "fit":
        return [RunLogger(root_dir) if run is None else resuming_logger(run)]
    return [] if run is None or subcommand == "predict" else [resuming_logger(run)]


def report_folder(
    section: Namespace, run: Path | None, checkpoint: dict[str, Any] | None
) -> Path | None:
    """Return the folder to write the report to; None if there is none, or it must stay untouched.

    The run's own report is of the data set that it was trained on.

    Raises:
        InputError: If the user names a file, or a folder where one of another origin would be
            replaced.
    """
    folder = section.report_folder
    if folder is None and section.trainer.logger is not False:
        stored = (checkpoint or {}).get("datamodule_hyper_parameters", {})
        given = section.data.dataset
        folder = run if same_dataset(stored.get("dataset", given), given) else None
    if folder is None or section.trainer.fast_dev_run:
        return None
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise InputError(f"Expected --report_folder to be a folder, but got {folder}: it is a file")
    others = [name for name in (REPORT, PREDICTIONS, METRICS) if (path / name).exists()]
    if path == run:
        others = [] if is_replaceable(path / REPORT) else [REPORT]
    elif read_metrics(path).keys() & {"fit", "test"}:
        others = []
    if others:
        raise InputError(
            f"Expected --report_folder to be new or the folder of a report, but {folder} holds "
            f"{others[0]} of something else: name another folder"
        )
    return path
