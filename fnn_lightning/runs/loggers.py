"""What a run logs into its folder with Lightning and TensorBoard, and reading it back."""

import logging
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from fnn_lightning.runs.files import write_atomic
from fnn_lightning.runs.run_folder import CONFIG, RUNS, claim_version

BEHIND = "z_"  # before the names of the groups that TensorBoard is to show last
OWN_TAGS = {
    "lr": f"{BEHIND}train/lr",
    "val/balanced_acc": f"{BEHIND}val/balanced_acc",
    "val/f1": f"{BEHIND}val/f1",
}
MEAN = "mean over the images trained on since the last point, each measured before its step"
BALANCED = "mean over the classes of the share of their images classified correctly."
F1 = "mean over the classes of F1, the harmonic mean of precision and recall."
DESCRIPTIONS = {
    "train/loss": f"Cross-entropy, {MEAN}, with augmentation and dropout.",
    "train/acc": f"Share of images classified correctly, {MEAN}, with augmentation and dropout.",
    "val/loss": "Cross-entropy, mean over the validation images.",
    "val/acc": "Share of the validation images classified correctly.",
    "val/balanced_acc": f"Validation: {BALANCED}",
    "val/f1": f"Validation: {F1}",
    "test/balanced_acc": f"Test: {BALANCED}",
    "test/f1": f"Test: {F1}",
    "test/loss": "Cross-entropy, mean over the test images. A single number, of `test`.",
    "test/acc": "Share of the test images classified correctly. A single number, of `test`.",
    "lr": "Learning rate of the last step.",
    "val_acc_of_class": "Share of the validation images of this class classified correctly.",
    "test_acc_of_class": "Share of the test images of this class classified correctly.",
}
"""What TensorBoard says of a name, or of a group of names, when asked."""


def tag_of(name: str) -> str:
    """Return the tag under which TensorBoard shows what is logged by a name.

    TensorBoard sorts groups, which are the parts of tags before the first `/`, and opens on the
    first two. Those are to be `train` and `val`, with loss and accuracy; all others come behind.

    >>> tag_of("val/acc"), tag_of("test/acc"), tag_of("lr")
    ('val/acc', 'z_test/acc', 'z_train/lr')
    """
    if name in OWN_TAGS:
        return OWN_TAGS[name]
    return name if name.startswith(("train/", "val/")) else BEHIND + name


def name_of(tag: str) -> str:
    """Return the name that `tag_of` makes a tag of; other loggers' tags are names already."""
    names = {own: name for name, own in OWN_TAGS.items()}
    return names.get(tag, tag.removeprefix(BEHIND))


class BoardLogger(TensorBoardLogger):
    """Logs curves under the tags of `tag_of`, each with a description."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._described: set[str] = set()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        numbers = {name: value for name, value in metrics.items() if not isinstance(value, Mapping)}
        new = {name: numbers[name] for name in numbers.keys() - self._described}
        for name, value in new.items():
            # TensorBoard takes a tag's description from its first value.
            event_writer(self.experiment).add_summary(described_scalar(name, float(value)), step)
        self._described |= new.keys()
        others = {tag_of(name): value for name, value in metrics.items() if name not in new}
        super().log_metrics(others, step)


def described_scalar(name: str, value: float) -> Any:
    """Make a `Summary` of a value with the name and the description of its tag.

    PyTorch's `SummaryWriter.add_scalar` takes no description.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary  # slow to import

    description = DESCRIPTIONS.get(name) or DESCRIPTIONS.get(name.partition("/")[0], "")
    metadata = tag_metadata(name, description, "scalars")
    return Summary(value=[Summary.Value(tag=tag_of(name), simple_value=value, metadata=metadata)])


def tag_metadata(name: str, description: str, kind: Literal["scalars", "images"]) -> Any:
    """Make the `SummaryMetadata` that gives a tag a name to display and a description."""
    from tensorboard.compat.proto.summary_pb2 import SummaryMetadata  # slow to import

    data_class = {"scalars": "DATA_CLASS_SCALAR", "images": "DATA_CLASS_BLOB_SEQUENCE"}[kind]
    return SummaryMetadata(
        display_name=name,
        summary_description=description,
        # without these two, TensorBoard's data server ignores the others
        plugin_data=SummaryMetadata.PluginData(plugin_name=kind),
        data_class=data_class,
    )


class RunLogger(BoardLogger):
    """Logs to a new folder `lightning_logs/version_N`, which no other run has.

    Lightning's logger picks N first and makes the folder later, so two runs that start at the same
    moment may share it. Here the folder is claimed when there is something to log.

    Args:
        save_dir: The folder above `lightning_logs`.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__(Path(save_dir).expanduser(), RUNS, default_hp_metric=False)
        self._own_version: int | None = None

    @property
    def has_folder(self) -> bool:
        """Whether there was something to log, and the folder is there."""
        return self._own_version is not None

    @property
    def version(self) -> int | str:
        return super().version if self._own_version is None else self._own_version

    @property
    def experiment(self) -> Any:
        self._claim_folder()
        return super().experiment

    @rank_zero_only
    def _claim_folder(self) -> None:  # the Trainer tells the other ranks
        if self._own_version is None:
            folder = claim_version(Path(self.root_dir))
            self._own_version = int(folder.name.removeprefix("version_"))


def folder_of_run(trainer: Trainer, claim: bool, of_logger: bool = True) -> Path:
    """Return the folder that the run's results go to, one that no other run has.

    It is the first logger's if that has a folder for each run. Others, such as those of Weights &
    Biases and MLflow, share one; then it is a new `lightning_logs/version_N`.

    Args:
        trainer: About to fit, on all ranks.
        claim: Whether to make the folder. If not, nothing is going to be written.
        of_logger: Whether the logger's folder may be taken. Not for a second run of a Trainer.
    """
    logger = trainer.logger
    if not claim or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return Path(trainer.default_root_dir)
    if of_logger and isinstance(logger, TensorBoardLogger | CSVLogger):
        return Path(str(trainer.log_dir))  # the same on all ranks
    folder = ""
    if trainer.is_global_zero:
        folder = str(claim_version(Path(trainer.default_root_dir) / RUNS))
    return Path(trainer.strategy.broadcast(folder))


class SaveConfig(SaveConfigCallback):
    """Writes `config.yaml` into the run's folder when training begins, completely or not at all.

    TensorBoard shows it too, under Text.

    Not earlier: a refused resume leaves the file of the run as it was. Resuming reads it.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass  # Lightning's own would write it here

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # a broadcast: all ranks have to take part
        if folder and trainer.is_global_zero:
            text = self.parser.dump(without_enums(self.config), skip_none=False)
            write_atomic(Path(folder) / CONFIG, text.encode())
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    fenced = f"```yaml\n{text}```"
                    logger.experiment.add_text("run_config", fenced, trainer.global_step)


def without_enums(config: Any) -> Any:
    """Copy a config with the values of its enums, which are defaults that YAML cannot write."""
    if isinstance(config, Namespace):
        plain = {name: without_enums(value) for name, value in vars(config).items()}
        return Namespace(**plain)  # type: ignore[no-untyped-call]
    if isinstance(config, list):
        return [without_enums(each) for each in config]
    return config.value if isinstance(config, Enum) else config


def resuming_logger(run: Path) -> BoardLogger:
    """Return a logger that continues in the folder of a run."""
    return BoardLogger(run.parent, "", run.name, default_hp_metric=False)


def event_writer(experiment: Any) -> Any:
    """Return what writes the events of a TensorBoardLogger's `experiment`.

    The public `file_writer` is None once the logger was closed, as by an earlier fit of the same
    Trainer; tests fit twice.
    """
    return experiment._get_file_writer()


class DropLostSteps(Callback):
    """Lets TensorBoard drop what a run logged after the step that it resumes from.

    It does so when training begins, so that a refused resume hides nothing. It has to come before
    the callbacks that log.

    Args:
        logger: The run's own.
        step: Number of optimiser steps at which the run resumes.
    """

    def __init__(self, logger: TensorBoardLogger, step: int) -> None:
        self.logger = logger
        self.step = step

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.logger not in trainer.loggers:  # as with `fast_dev_run`
            return
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # slow to import

        first_lost = self.step + 1 if self.step else 0
        restart = Event(step=first_lost, session_log=SessionLog(status=SessionLog.START))
        # The logger's own `purge_step` would be written when the Trainer is set up.
        event_writer(self.logger.experiment).add_event(restart)


def read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the scalars logged in a run's folder.

    Returns:
        For each name its points: number of optimiser steps, value.
    """
    # TensorBoard warns when a killed run logged steps twice; it drops those that were lost
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    # rarely needed, and slow to import
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {
        name_of(tag): [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
