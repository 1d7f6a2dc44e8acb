"""Learning rates over a run: warm-up, and schedules as long as the run itself."""

import math
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR

from fnn_lightning.errors import InputError

# what schedules of torch.optim call their length
LENGTHS = {
    "OneCycleLR": "total_steps",
    "CosineAnnealingLR": "T_max",
    "LinearLR": "total_iters",
    "PolynomialLR": "total_iters",
}


class RunLength(NamedTuple):
    """How long a run is."""

    steps: int
    """Number of optimiser steps in all."""
    steps_an_epoch: int
    """Number of optimiser steps in an epoch."""

    @property
    def epochs(self) -> int:
        """Number of epochs begun."""
        return -(-self.steps // self.steps_an_epoch)


def run_length(module: LightningModule) -> RunLength:
    """Tell how long the run is that is about to begin.

    Raises:
        InputError: If neither a number of epochs nor one of steps ends it.
    """
    try:
        trainer: Any = module.trainer
    except RuntimeError:  # not attached to one
        trainer = None
    if (
        trainer is None
        or trainer.fast_dev_run
        or 0 in (trainer.max_steps, trainer.limit_train_batches)
    ):
        return RunLength(10**9, 10**6)  # it is only to be seen whether the arguments fit
    fit_loop = trainer.fit_loop
    fit_loop.setup_data()
    steps = trainer.estimated_stepping_batches
    # It has loaded the data too early: in a resumed run their position is not there yet. Lightning
    # has no public way to let it load them again; a test resumes in the middle of an epoch.
    fit_loop._combined_loader = None
    if math.isinf(steps):
        raise InputError(
            "Expected --trainer.max_epochs or --trainer.max_steps, from which the schedule of the "
            "learning rate takes its length, but got neither"
        )
    return RunLength(steps, -(-trainer.num_training_batches // trainer.accumulate_grad_batches))


def length_to_fill(config: dict[str, Any] | None) -> str | None:
    """Return the argument of a schedule that is to be the run's length, if one is.

    It is if it is null or 0, or left out and without a default of PyTorch's.

    Args:
        config: A class of `torch.optim.lr_scheduler` and its arguments.
    """
    if config is None:
        return None
    arguments = config.get("init_args") or {}
    name = LENGTHS.get(config["class_path"].rpartition(".")[2])
    by_epochs = arguments.get("epochs") and arguments.get("steps_per_epoch")  # OneCycleLR's own way
    if name is None or by_epochs or (name == "total_iters" and name not in arguments):
        return None
    return None if arguments.get(name) else name


def warmup_steps(warmup: float, length: RunLength) -> int:
    """Return the number of steps of a warm-up.

    Args:
        warmup: Number of steps if it is 1 or more, otherwise a fraction of the run.
        length: That of the run.

    Raises:
        InputError: If nothing of the run is left after it.
    """
    steps = int(warmup) if warmup >= 1 else round(warmup * length.steps)
    if steps >= length.steps:
        raise InputError(
            f"Expected `warmup` to be shorter than the run of {length.steps:,} steps, "
            f"but got {warmup:g}"
        )
    return steps


def warm_up(optimizer: Optimizer, steps: int) -> LinearLR:
    """Let the learning rate of step k be k / (steps + 1) of what it is after the warm-up."""
    return LinearLR(optimizer, start_factor=1 / (steps + 1), total_iters=steps)
