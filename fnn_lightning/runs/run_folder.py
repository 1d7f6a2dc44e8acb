"""The folder of a run: made by one run alone, and gone on in after an interruption."""

import json
import logging
import os
import platform
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from fnn_lightning import __version__
from fnn_lightning.runs.checkpoint_io import write_atomic

CONFIG, LAST, METRICS = "config.yaml", Path("checkpoints", "last.ckpt"), "metrics.json"
PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy")


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
            write_atomic(Path(folder) / CONFIG, text.encode())


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


def read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the curves in a run's folder: by name, number of optimiser steps and value."""
    # of runs killed early, that their steps were logged twice; what was lost is left out
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    # rarely needed, and slow to import
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def write_metrics(folder: Path, stage: str, figures: dict[str, Any], beside: bool = True) -> None:
    """Write what `fit` or `test` found into `metrics.json`.

    Args:
        folder: That of the run.
        stage: `fit` or `test`.
        figures: Plain data. Versions and hardware are added.
        beside: Whether what the other stage found there is kept.
    """
    others = read_metrics(folder) if beside else {}
    found = {**others, stage: {**figures, "made_with": environment()}}
    write_atomic(folder / METRICS, json.dumps(found, indent=2).encode() + b"\n")


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a run's `metrics.json`; nothing, if there is none or it is damaged."""
    try:
        found = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def environment() -> dict[str, str]:
    """Return the time, versions and hardware, as far as they bear on a result."""
    packages = {"fnn_lightning": __version__, "Python": platform.python_version()}
    packages |= {name: version(name) for name in PACKAGES}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    hardware = f"{platform.machine()}, {cores} cores, {platform.system()}"
    if torch.cuda.is_available():
        hardware += f", {torch.cuda.get_device_name()}"
    return {
        "time": datetime.now().astimezone().isoformat(" ", "seconds"),
        **packages,
        "hardware": hardware,
    }
