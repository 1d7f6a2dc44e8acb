"""Gives the checkpoints of a run the temperatures of their weights, when training ends."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.calibration import fit_temperature
from fnn_lightning.runs.checkpoint_io import write_checkpoint
from fnn_lightning.runs.load import load_trained


def calibrate_checkpoints(
    paths: Sequence[str], dataloader: InMemoryDataLoader, limit: int | float
) -> float | None:
    """Fit the temperature of each checkpoint, and add it to the file.

    Each checkpoint has weights of its own, and so a temperature of its own. It is fitted on what
    `load` makes of the file, which need not be what is in memory. Nothing else in the file changes:
    training resumes from it as before. One that has its temperature already is left as it is.

    Args:
        paths: The checkpoints; those that `load` cannot read are left as they are.
        dataloader: Serves the validation images, held out from training.
        limit: The Trainer's: a number of batches, or a fraction of them.

    Returns:
        The temperature of the last checkpoint; None if it has none.

    Raises:
        OSError: If a file cannot be written.
    """
    found: dict[int, float | None] = {}  # by the step, which tells the weights of a run
    temperature = None
    for path in paths:
        try:
            with torch.random.fork_rng(devices=[]):  # new weights are drawn, then replaced
                trained = load_trained(path)
        except InputError:  # of a derived module, or written by a plugin of the user's
            return None
        step = trained.checkpoint["global_step"]
        temperature = trained.module.temperature
        if temperature is None:
            if step not in found:
                indices = dataloader.indices_within(limit)
                trained.module.to(dataloader.device)
                logits = trained.logits(dataloader.images[indices])
                found[step] = fit_temperature(logits, dataloader.labels[indices].cpu())
            temperature = found[step]
            if temperature is not None:
                write_checkpoint({**trained.checkpoint, "temperature": temperature}, Path(path))
    return temperature
