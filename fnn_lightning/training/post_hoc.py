"""Fits to trained weights what their checkpoints hold beside them: temperature and novelty."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fnn_lightning.batch_norm import one_thread
from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.calibration import fit_temperature
from fnn_lightning.evaluation.novelty import fit_detector
from fnn_lightning.runs.checkpoint_io import write_checkpoint
from fnn_lightning.runs.load import TrainedNetwork, load_trained

KEYS = ("temperature", "novelty")  # of a checkpoint


def complete_checkpoints(
    paths: Sequence[str],
    training: InMemoryDataLoader,
    held_out: InMemoryDataLoader | None,
    limit: int | float,
) -> float | None:
    """Add to each checkpoint what is fitted to its weights: a temperature, a novelty detector.

    Each checkpoint has weights of its own, and so a temperature of its own. All is fitted to what
    `load` makes of the file, which need not be what is in memory. Nothing else in the file changes:
    training resumes from it as before. What a checkpoint has already is left as it is.

    Args:
        paths: The checkpoints; those that `load` cannot read are left as they are.
        training: Serves the training images.
        held_out: Serves the validation images, held out from training; None if there are none.
            Without them there is no temperature.
        limit: The Trainer's, of validation: a number of batches, or a fraction of them.

    Returns:
        The temperature of the last checkpoint; None if it has none.

    Raises:
        OSError: If a file cannot be written.
    """
    found: dict[int, dict[str, Any]] = {}  # by the step, which tells the weights of a run
    temperature = None
    for path in paths:
        try:
            with torch.random.fork_rng(devices=[]):  # new weights are drawn, then replaced
                trained = load_trained(path)
        except InputError:  # of a derived module, or written by a plugin of the user's
            continue
        checkpoint = trained.checkpoint
        if not checkpoint.keys() >= {*KEYS}:
            step = checkpoint["global_step"]
            if step not in found:
                with one_thread():
                    found[step] = fit_post_hoc(trained, training, held_out, limit)
            if missing := {k: v for k, v in found[step].items() if k not in checkpoint}:
                checkpoint = {**checkpoint, **missing}
                write_checkpoint(checkpoint, Path(path))
        temperature = checkpoint.get("temperature")
    return temperature


def fit_post_hoc(
    trained: TrainedNetwork,
    training: InMemoryDataLoader,
    held_out: InMemoryDataLoader | None,
    limit: int | float,
) -> dict[str, Any]:
    """Fit what can be fitted, and return it under the keys of a checkpoint."""
    trained.module.to(training.device)
    fitted: dict[str, Any] = {}
    if held_out is not None:
        indices = held_out.indices_within(limit)
        logits = trained.logits(held_out.images[indices])
        fitted["temperature"] = fit_temperature(logits, held_out.labels[indices].cpu())
    detector = fit_detector(trained.module, training, held_out)
    fitted["novelty"] = detector and detector.state_dict()
    return {name: value for name, value in fitted.items() if value is not None}
