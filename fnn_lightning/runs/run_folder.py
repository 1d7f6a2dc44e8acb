"""The folder of a run: its files, its number `version_N` and its results, `metrics.json`.

Importing this file must stay quick: no torch, no Lightning.
"""

import json
import platform
import re
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fnn_lightning import __version__
from fnn_lightning.runs.cores import available_cores
from fnn_lightning.runs.files import write_atomic

RUNS = "lightning_logs"  # the folder of all runs
CONFIG, METRICS = "config.yaml", "metrics.json"
LAST, BEST = Path("checkpoints", "last.ckpt"), Path("checkpoints", "best.ckpt")
PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy")


def run_folder(ckpt_path: str) -> Path | None:
    """Return the folder of the run that a checkpoint belongs to, None if it belongs to none."""
    folder = Path(ckpt_path).absolute().parent
    run = folder.parent
    return run if folder.name == LAST.parent.name and (run / CONFIG).is_file() else None


def claim_version(parent: Path) -> Path:
    """Make a new folder `version_N` in a folder, with N one above the highest there.

    Two runs that start at the same moment get different folders: making one is atomic.
    """
    names = (re.fullmatch(r"version_(\d+)", path.name) for path in parent.glob("version_*"))
    number = 1 + max((int(name[1]) for name in names if name), default=-1)
    while True:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # another run was faster
            number += 1


def runs_in(parent: Path) -> list[Path]:
    """Return the runs in a folder, that with the newest last checkpoint first."""
    saved = [path for path in parent.glob(f"*/{LAST.as_posix()}") if path.is_file()]
    return [path.parents[1] for path in sorted(saved, key=_modified, reverse=True)]


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def newest_run(parent: Path) -> Path | None:
    """Return the run whose last checkpoint is the newest in a folder; None if there is none.

    Only `version_N` counts: other names were given by the user, who can give them again.
    """
    return next((run for run in runs_in(parent) if run.name.startswith("version_")), None)


def write_metrics(
    folder: Path, stage: str, figures: dict[str, Any], keep_other_stage: bool = True
) -> None:
    """Write the results of `fit` or `test` to `metrics.json`.

    Args:
        folder: Folder of the run.
        stage: `fit` or `test`.
        figures: Plain data. Versions and hardware are added.
        keep_other_stage: Whether to keep the results of the other stage that are there.
    """
    metrics = read_metrics(folder) if keep_other_stage else {}
    metrics = {**metrics, stage: {**figures, "made_with": environment()}}
    write_atomic(folder / METRICS, json.dumps(metrics, indent=2).encode() + b"\n")


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a run's `metrics.json`; empty if it is missing or damaged."""
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError):
        return {}
    return metrics if isinstance(metrics, dict) else {}


def fit_completed(metrics: dict[str, Any]) -> bool:
    """Tell whether a run's metrics hold all that `fit` writes when it completes.

    Example:
        >>> fit_completed({"fit": {"best": None, "checkpoint": "checkpoints/last.ckpt"}})
        False
    """
    fit = metrics.get("fit")
    return isinstance(fit, dict) and {"best", "checkpoint", "seconds"} <= fit.keys()


def val_result(metrics: dict[str, Any]) -> tuple[str, float | None]:
    """Return the validation metric that a completed run is judged by: its name and value.

    Example:
        >>> best = {"monitor": "val/loss", "score": 0.25}
        >>> val_result({"fit": {"best": best, "val/acc": 0.9}})
        ('best val/loss', 0.25)
        >>> val_result({"fit": {"best": None, "val/acc": 0.9}})
        ('val/acc', 0.9)
    """
    best = metrics["fit"]["best"]
    if best:
        return f"best {best['monitor']}", best["score"]
    return "val/acc", metrics["fit"].get("val/acc")


def final_test_accuracy(metrics: dict[str, Any]) -> float | None:
    """Return the test accuracy of a completed run, from 0 to 1.

    Returns:
        None unless the last `test` was of the checkpoint that `fit` names as its result.
    """
    test = metrics.get("test", {})
    is_result = test.get("checkpoint") == metrics["fit"]["checkpoint"]
    return float(test["accuracy"]) if is_result else None


def environment() -> dict[str, str]:
    """Return the time, versions and hardware that a result may depend on."""
    import torch  # slow to import, and only this function needs it

    packages = {"fnn_lightning": __version__, "Python": platform.python_version()}
    packages |= {name: version(name) for name in PACKAGES}
    hardware = f"{platform.machine()}, {available_cores()} cores, {platform.system()}"
    if torch.cuda.is_available():
        hardware += f", {torch.cuda.get_device_name()}"
    return {
        "time": datetime.now().astimezone().isoformat(" ", "seconds"),
        **packages,
        "hardware": hardware,
    }
