"""How the training of a run went: its curves, and the loss of every batch."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fnn_lightning.errors import InputError
from fnn_lightning.evaluation import plots
from fnn_lightning.runs.checkpoint_io import read_checkpoint, read_losses
from fnn_lightning.runs.load import find_checkpoint, no_run_error, run_at
from fnn_lightning.runs.loggers import read_curves

if TYPE_CHECKING:  # slow to import
    from matplotlib.figure import Figure


def plot_curves(run: str | Path) -> "Figure":
    """Draw loss and accuracy of a run over its optimiser steps, in training and validation.

    Args:
        run: The folder of the run, or a checkpoint in it.

    Returns:
        A figure of Matplotlib's, which a notebook shows.

    Raises:
        InputError: If the folder holds no curves.

    Example: `plot_curves("lightning_logs/version_0").savefig("curves.png")`
    """
    path = Path(run).expanduser()
    folder = run_at(path)
    logged = read_curves(folder) if folder.is_dir() else {}
    panels = {
        ylabel: {tag: logged[tag] for tag in (f"train/{name}", f"val/{name}") if logged.get(tag)}
        for name, ylabel in (("loss", "loss"), ("acc", "accuracy"))
    }
    if not any(panels.values()):
        raise no_run_error("the folder of a run with its curves", path, "curves")
    return plots.curves_figure(panels)


def losses(run: str | Path) -> Tensor:
    """Return the training loss of every batch of a run.

    Args:
        run: The folder of the run, whose `last.ckpt` is read, or a checkpoint.

    Returns:
        `float32` of shape `(batches,)`, up to the step of the checkpoint.

    Raises:
        InputError: If there is no checkpoint, or it holds no losses.

    Example: `losses("lightning_logs/version_0").min()`
    """
    path = find_checkpoint(run, resume=True)
    values = read_losses(read_checkpoint(str(path)))
    if values is None:
        raise InputError(f"Expected a checkpoint that holds the losses of its run, but got {path}")
    return values
