"""Finds a learning rate before training (Smith 2017, arXiv:1506.01186), as Lightning does it."""

from typing import Any, NamedTuple

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner.tuning import Tuner

from fnn_lightning.errors import DivergenceError, InputError
from fnn_lightning.training.multi_step import at_least_epochs

MIN_LR, MAX_LR = 1e-6, 10.0
STEPS = 100
FINDERS = (BatchSizeFinder, LearningRateFinder)


class LRSearch(NamedTuple):
    """A learning rate, and what it was chosen by."""

    lr: float
    """Where the loss fell most steeply."""
    lrs: list[float]
    """The learning rate of each step of the search."""
    losses: list[float]
    """The training loss at each of these steps, smoothed."""


def find_lr(trainer: Trainer, module: LightningModule, datamodule: LightningDataModule) -> LRSearch:
    """Find the learning rate at which the loss of a new run falls most steeply.

    The rate rises exponentially over `STEPS` optimiser steps, without a schedule, until the loss
    is four times its best. Then weights, random numbers and counts are what they were.

    Args:
        trainer: That of the run, which has not trained yet.
        module: What will be trained.
        datamodule: What it will be trained on.

    Raises:
        InputError: If the loss does not tell.
    """
    finder: Any = None
    try:
        with at_least_epochs(trainer, STEPS):  # an epoch can be as short as one step
            finder = Tuner(trainer).lr_find(
                module,
                datamodule=datamodule,
                min_lr=MIN_LR,
                max_lr=MAX_LR,
                num_training=STEPS,
                update_attr=False,
            )
    except DivergenceError:
        suggestion = None
    else:
        suggestion = finder and finder.suggestion()
    if suggestion is None:
        raise InputError(
            f"Expected the loss to fall at some learning rate from {MIN_LR:g} to {MAX_LR:g}, but "
            f"{STEPS} steps found none: give --optimizer.lr instead of --find_lr"
        )
    return LRSearch(suggestion, finder.results["lr"], finder.results["loss"])


def check_finders(trainer: Trainer) -> None:
    """Refuse Lightning's finders in a run that is about to resume.

    They save the state of training and restore it, but act before a checkpoint has brought it.

    Raises:
        InputError: If one is among the Trainer's callbacks.
    """
    for each in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(each, FINDERS):
            raise InputError(
                f"Expected {type(each).__name__} in a new run only, but got a checkpoint to resume "
                "from, whose learning rate and batch size the run keeps"
            )
