"""Several optimiser steps for one step of the Trainer: the loop as one would write it by hand.

For a small net the Trainer's work around a step costs more than the step. So `FNNLitModule` takes
the steps between two at which the Trainer has something to do (validate, save, end) in a plain
loop, and moves the Trainer's counts on as if that had taken them. Weights, and everything that
counts steps, come out bit for bit the same. Here is what it has to know about the Trainer for that.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, callbacks
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fnn_lightning.data.dataloader import InMemoryDataLoader

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
    "configure_gradient_clipping",
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
    given: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    scheduled = any(isinstance(each, callbacks.GradientAccumulationScheduler) for each in given)
    if trainer.accumulate_grad_batches != 1 or scheduled:
        return "gradients are accumulated"
    if trainer.gradient_clip_val:
        return "gradients are clipped"
    if type(trainer.precision_plugin) is not Precision:
        return f"the precision is {trainer.precision}"
    if not isinstance(trainer.profiler, PassThroughProfiler):  # type: ignore[attr-defined]
        return "the run is profiled"
    if trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
        return "the data are loaded anew between epochs"
    if not isinstance(source, InMemoryDataLoader):
        return f"the batches come from a {type(source).__name__}"
    optimizer = trainer.optimizers[0]
    if isinstance(optimizer, torch.optim.LBFGS):
        return "LBFGS computes the loss several times a step"
    if not type(optimizer).__module__.startswith("torch.optim."):
        return f"{type(optimizer).__name__} is not an optimiser of torch.optim"
    for config in trainer.lr_scheduler_configs:
        plateau = isinstance(config.scheduler, ReduceLROnPlateau)
        if config.interval == "step" and (plateau or config.frequency != 1):
            return f"{type(config.scheduler).__name__} looks at every step"
    for callback in given:
        if acts_every_n_steps(callback) == 1:
            return f"{type(callback).__name__} watches every batch"
    for name in MODULE_HOOKS:
        if is_own(module, name, base):
            return f"{type(module).__name__} has its own {name}"
    for name in TRANSFER_HOOKS:
        if data and is_own(data, name, LightningDataModule):
            return f"{type(data).__name__} has its own {name}"
    return None


def is_own(instance: Any, name: str, base: type) -> bool:
    """Tell whether a hook is not that of `base`, but its class's or its own."""
    return getattr(getattr(instance, name), "__func__", None) is not getattr(base, name)


def acts_every_n_steps(callback: callbacks.Callback) -> int:
    """Return the number of steps between two at which a callback has something to do; 0 is never.

    A class of callbacks can say so itself, by an attribute `acts_every_n_steps`; one derived from
    it has to say it again.
    """
    if "acts_every_n_steps" in vars(type(callback)):
        every: int = callback.acts_every_n_steps  # type: ignore[attr-defined]
        return every
    if type(callback) in CONTENT_WITH_FEWER_BATCHES:
        return 0
    if type(callback) is callbacks.ModelCheckpoint and (callback.every_n_epochs or 0) > 0:
        return 0
    return int(any(is_own(callback, name, callbacks.Callback) for name in BATCH_HOOKS))


def free_steps(trainer: Trainer) -> int:
    """Return the number of steps before the next one at which the Trainer has something to do."""
    step = trainer.global_step
    progress = trainer.fit_loop.epoch_loop.batch_progress
    batch = progress.current.ready
    by_epoch = trainer.check_val_every_n_epoch is not None
    bar = trainer.progress_bar_callback
    # one of Lightning's with a higher rate draws nothing at the batches between
    refresh_rate = bar.refresh_rate if type(bar) in CONTENT_WITH_FEWER_BATCHES else 1  # type: ignore[union-attr]
    recurring = [
        # Lightning leaves None here if it validates by the clock, and infinity if never
        (trainer.val_check_batch, batch if by_epoch else progress.total.ready),
        (refresh_rate if refresh_rate > 1 else 0, batch),
        *((acts_every_n_steps(callback), step) for callback in trainer.callbacks),  # type: ignore[attr-defined]
    ]
    due = [every - count % every for every, count in recurring if every]
    due += [end - step for end in (trainer.max_steps, trainer.min_steps) if end and end > step]
    return int(min(*due, trainer.num_training_batches - batch)) - 1


def bare_step(optimizer: Optimizer) -> Callable[[], Any]:
    """Return the optimiser's step without PyTorch's wrapping, unless someone has hooked into it.

    The wrapping (a range for the profiler, the hooks, switching off gradients) costs more than the
    update of a small net's weights. The hooks are in private places; a test sets one and waits.
    """
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )
    if any(hooks):
        return optimizer.step
    step = torch.no_grad()(inspect.unwrap(type(optimizer).step))
    return partial(step, optimizer)


def count_steps(trainer: Trainer, steps: int, scheduler_steps: int) -> None:
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
