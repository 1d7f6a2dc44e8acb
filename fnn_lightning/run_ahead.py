"""Several optimiser steps for one step of the Trainer: the loop as one would write it by hand.

For a small net the Trainer's work around a step costs more than the step. So the steps between two
at which the Trainer has something to do (log, validate, save, end) are taken in a plain loop, and
the Trainer's counts are then moved on as if it had taken them. Weights, and everything that counts
steps, come out bit for bit the same.
"""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, callbacks
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from fnn_lightning.batches import Batch, BatchSource

MAX_STEPS = 100  # as many logits are kept until they reach torchmetrics
MAX_SECONDS = 0.1  # this often the Trainer looks at its clocks and signals, and moves its bar

BATCH_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
MODULE_HOOKS = (
    *BATCH_HOOKS,
    *TRANSFER_HOOKS,
    "training_step",
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "lr_scheduler_step",
)
CONTENT_WITH_FEWER_BATCHES = (
    callbacks.RichProgressBar,
    callbacks.TQDMProgressBar,
    callbacks.Timer,
)


def obstacle(trainer: Trainer, base: type[LightningModule]) -> str | None:
    """Tell why the Trainer has to take every step itself, if it has to.

    Args:
        trainer: About to train a `base`, or a class derived from it.
        base: The module class for whose steps the plain loop stands.
    """
    module: Any = trainer.lightning_module
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    source = trainer.train_dataloader
    if type(trainer.strategy) is not SingleDeviceStrategy:
        return f"the strategy is {type(trainer.strategy).__name__}"
    if trainer.accumulate_grad_batches != 1:
        return "gradients are accumulated"
    if trainer.gradient_clip_val:  # type: ignore[attr-defined]
        return "gradients are clipped"
    if trainer.precision != "32-true":
        return f"the precision is {trainer.precision}"
    if not isinstance(trainer.profiler, PassThroughProfiler):  # type: ignore[attr-defined]
        return "the run is profiled"
    if trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
        return "the data are loaded anew between epochs"
    if not isinstance(source, BatchSource):
        return f"the batches come from a {type(source).__name__}"
    if isinstance(trainer.optimizers[0], torch.optim.LBFGS):
        return "LBFGS computes the loss several times a step"
    for config in trainer.lr_scheduler_configs:
        plateau = isinstance(config.scheduler, ReduceLROnPlateau)
        if config.interval == "step" and (plateau or config.frequency != 1):
            return f"{type(config.scheduler).__name__} follows what each step has logged"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if acts_every_n_steps(callback) == 1:
            return f"{type(callback).__name__} watches every batch"
    for name in MODULE_HOOKS:
        if getattr(type(module), name) is not getattr(base, name):
            return f"{type(module).__name__} has its own {name}"
    for name in TRANSFER_HOOKS:
        if data and getattr(type(data), name) is not getattr(LightningDataModule, name):
            return f"{type(data).__name__} has its own {name}"
    return None


def acts_every_n_steps(callback: callbacks.Callback) -> int:
    """Return the number of steps between two at which a callback has something to do; 0 is never.

    A callback can say so itself, by an attribute `acts_every_n_steps`.
    """
    every: int | None = getattr(callback, "acts_every_n_steps", None)
    if every is not None:
        return every
    if type(callback) in CONTENT_WITH_FEWER_BATCHES:
        return 0
    if type(callback) is callbacks.ModelCheckpoint and (callback.every_n_epochs or 0) > 0:
        return 0
    hooks = (getattr(type(callback), name) is getattr(callbacks.Callback, name) for name in BATCH_HOOKS)
    return 0 if all(hooks) else 1


def free_steps(trainer: Trainer) -> int:
    """Return the number of steps before the next one at which the Trainer has something to do."""
    step = trainer.global_step
    progress = trainer.fit_loop.epoch_loop.batch_progress
    batch = progress.current.ready
    by_epoch = trainer.check_val_every_n_epoch is not None  # type: ignore[attr-defined]
    recurring = [
        (trainer.log_every_n_steps, step),  # type: ignore[attr-defined]
        # Lightning leaves None here if it validates by the clock, and infinity if never
        (trainer.val_check_batch, batch if by_epoch else progress.total.ready),  # type: ignore[attr-defined]
        *((acts_every_n_steps(callback), step) for callback in trainer.callbacks),  # type: ignore[attr-defined]
    ]
    due = [every - count % every for every, count in recurring if every]
    due += [end - step for end in (trainer.max_steps, trainer.min_steps) if end and end > step]
    return int(min(*due, trainer.num_training_batches - batch, MAX_STEPS)) - 1


def run_ahead(
    trainer: Trainer, compute_loss: Callable[[Batch, int], Tensor], batches: Iterator[Batch]
) -> None:
    """Take the steps that are free, and move the Trainer's counts on.

    Args:
        trainer: Between two steps of its own.
        compute_loss: Given a batch and the number of its optimiser step, counted from 1.
        batches: The rest of the epoch; what is taken from it the Trainer does not see.
    """
    optimizer = trainer.optimizers[0]
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    configs = trainer.lr_scheduler_configs
    schedulers = [config.scheduler for config in configs if config.interval == "step"]
    device = trainer.strategy.root_device
    deadline = time.monotonic() + MAX_SECONDS
    first, taken = trainer.global_step + 1, 0
    try:
        for images, labels in islice(batches, free_steps(trainer)):
            loss = compute_loss((images.to(device), labels.to(device)), first + taken)
            for parameter in parameters:
                parameter.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
            taken += 1
            if time.monotonic() > deadline:
                break
    finally:
        _count(trainer, taken, taken * len(schedulers))


def _count(trainer: Trainer, steps: int, scheduler_steps: int) -> None:
    """Move on what the Trainer counts in a step.

    Lightning has no public way to say that a batch was dealt with. What is missed here is caught by
    the tests, which compare the whole checkpoint with that of single steps.
    """
    fit_loop: Any = trainer.fit_loop
    epoch_loop = fit_loop.epoch_loop
    optimizer = epoch_loop.automatic_optimization.optim_progress.optimizer
    for progress in (epoch_loop.batch_progress, optimizer.step, optimizer.zero_grad):
        progress.increment_by(steps)
    epoch_loop.scheduler_progress.increment_by(scheduler_steps)
    epoch_loop._batches_that_stepped += steps  # the x-axis of what `self.log` writes
    fit_loop._data_fetcher.fetched += steps  # by which it knows an epoch's last batch
