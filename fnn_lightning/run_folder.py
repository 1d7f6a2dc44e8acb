"""The folder of a run: made by one run alone, and gone on in after an interruption."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from fnn_lightning.checkpoint import write_whole

CONFIG, LAST, METRICS = "config.yaml", Path("checkpoints", "last.ckpt"), "metrics.json"


class RunLogger(TensorBoardLogger):
    """Logs to `lightning_logs/version_N`, with the first N that no other run has.

    Lightning's logger only looks which N is free, and two runs started at the same moment may take
    the same; here the folder is made in the same act, when there is something to log.

    Args:
        save_dir: The folder above `lightning_logs`.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__(save_dir, "lightning_logs", default_hp_metric=False)
        self._own_version: int | None = None

    @property
    def version(self) -> int | str:
        return super().version if self._own_version is None else self._own_version

    @property
    def experiment(self) -> Any:
        self._make_folder()
        return super().experiment

    @rank_zero_only
    def _make_folder(self) -> None:  # the other processes learn of it from the first one
        version = int(self.version)
        while self._own_version is None:
            try:
                Path(self.root_dir, f"version_{version}").mkdir(parents=True)
                self._own_version = version
            except FileExistsError:
                version += 1


class SaveConfig(SaveConfigCallback):
    """Writes `config.yaml` into the run's folder, whole or not at all: resuming relies on it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = trainer.log_dir  # the first process tells the others
        if stage == "fit" and folder and trainer.is_global_zero:
            text = self.parser.dump(self.config, skip_none=False)
            write_whole(Path(folder) / CONFIG, text.encode())


def resuming_logger(run: Path, step: int | None) -> TensorBoardLogger:
    """Log to the folder of a run.

    Args:
        run: The folder.
        step: Number of optimiser steps after which the run goes on. TensorBoard forgets what was
            logged after it. None adds to what is there, without forgetting anything.
    """
    kwargs: dict[str, Any] = {}
    if step is not None and any(run.glob("events*")):
        kwargs["purge_step"] = step + 1 if step else 0
    return TensorBoardLogger(run.parent, "", run.name, default_hp_metric=False, **kwargs)


def run_folder(ckpt_path: str) -> Path | None:
    """Return the folder of the run that a checkpoint lies in, if it lies in one."""
    folder = Path(ckpt_path).absolute().parent
    run = folder.parent
    return run if folder.name == LAST.parent.name and (run / CONFIG).is_file() else None


def logged_at(run: Path, step: int) -> set[str]:
    """Return the names of the curves in a run's folder that have a point at a step."""
    # rarely needed, and slow to import
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {
        tag
        for tag in events.Tags()["scalars"]
        if any(event.step == step for event in events.Scalars(tag))
    }


def write_metrics(folder: Path, stage: str, figures: dict[str, Any]) -> None:
    """Write what `fit` or `test` found into `metrics.json`, beside what the other one did.

    Args:
        folder: That of the run.
        stage: `fit`, which begins the file anew, or `test`.
        figures: Plain data.
    """
    file = folder / METRICS
    found: dict[str, Any] = {}
    if stage != "fit" and file.exists():
        try:
            found = dict(json.loads(file.read_text(encoding="utf-8")))
        except (TypeError, ValueError):  # damaged, or not ours: it is made anew from a checkpoint
            found = {}
    write_whole(file, json.dumps({**found, stage: figures}, indent=2).encode() + b"\n")
