"""Finds a learning rate before training (Smith 2017, arXiv:1506.01186), as Lightning does it."""

import math
from itertools import pairwise
from typing import Any, NamedTuple

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner.tuning import Tuner

from fnn_lightning.errors import DivergenceError, InputError
from fnn_lightning.training.multi_step import at_least_epochs

MIN_LR, MAX_LR = 1e-6, 10.0
STEPS = 100
LEAST_FALL = 0.95  # of the loss at the beginning
BETA = 0.98  # by which Lightning's finder averages the loss
FINDERS = (BatchSizeFinder, LearningRateFinder)


class LRSearch(NamedTuple):
    """A learning rate, and what it was chosen by."""

    lr: float
    """A tenth of the rate at which the loss was lowest."""
    lrs: list[float]
    """The learning rate of each step of the search."""
    losses: list[float]
    """The training loss at each of these steps, smoothed."""


def find_lr(trainer: Trainer, module: LightningModule, datamodule: LightningDataModule) -> LRSearch:
    """Find a learning rate for a new run: a tenth of that at which the loss is lowest.

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
        found = None
    else:
        lrs, losses = finder.results["lr"], finder.results["loss"]
        found = tenth_of_best(lrs, smooth(raw_losses(losses)))
    if found is None:
        raise InputError(
            f"Expected the loss to fall clearly at some learning rate from {MIN_LR:g} to "
            f"{MAX_LR:g}, but {STEPS} steps found none: give --optimizer.lr instead of --find_lr"
        )
    return found


def raw_losses(averages: list[float]) -> list[float]:
    """Recover the losses from the averages that Lightning's finder keeps.

    It corrects their bias by a step too few, so that they rise at the beginning, whatever the loss
    does.

    >>> raw_losses([0.5 * (1 - 0.98) / (1 - 0.98**2)])
    [0.5]
    """
    sums = [0.0] + [each * (1 - BETA ** (k + 2)) for k, each in enumerate(averages)]
    return [(now - BETA * before) / (1 - BETA) for before, now in pairwise(sums)]


def smooth(losses: list[float], beta: float = 0.9) -> list[float]:
    """Average losses exponentially, without bias.

    >>> smooth([2.0, 2.0])
    [2.0, 2.0]
    """
    averages, average = [], 0.0
    for k, loss in enumerate(losses, start=1):
        average = beta * average + (1 - beta) * loss
        averages.append(average / (1 - beta**k))
    return averages


def tenth_of_best(lrs: list[float], losses: list[float]) -> LRSearch | None:
    """Choose a tenth of the rate at which the loss was lowest, just before it rises.

    Returns:
        None if the loss never falls clearly, as on weights that are trained: then its lowest place
        says nothing.

    >>> search = tenth_of_best([1e-3, 1e-2, 1e-1, 1.0], [2.3, 2.2, 1.0, 4.0])
    >>> search.lr
    0.01
    """
    finite = [k for k, loss in enumerate(losses) if math.isfinite(loss)]
    best = min(finite, key=losses.__getitem__, default=0)
    if not finite or losses[best] > LEAST_FALL * losses[finite[0]]:
        return None
    return LRSearch(lrs[best] / 10, lrs, losses)


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
