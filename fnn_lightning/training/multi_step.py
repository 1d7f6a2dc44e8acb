"""Several optimiser steps for one step of the Trainer; the only code that touches its loops.

For a small net the Trainer's work around a step costs more than the step. So the callback
`MultiStep` trains on the batches between two at which the Trainer has something to do (validate,
save, end an epoch) in a plain loop, and then moves the Trainer's counts forward. Weights, logs and
checkpoints are bit for bit those of single steps.

Lightning has no public interface for that, nor for some of what an exact resume needs. Whatever
touches the insides of its loops is in this file, below `MultiStep`; each function names the tests
that fail when Lightning changes.
"""

import inspect
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, callbacks
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.compile import to_uncompiled
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.errors import InputError
from fnn_lightning.training.ema import EMA
from fnn_lightning.training.manual_backward import (
    ManualBackward,
    has_hooks,
    supports_manual_backward,
)
from fnn_lightning.training.optim import RunLength
from fnn_lightning.training.threads import Threads
from fnn_lightning.training.train_log import TrainLog
from fnn_lightning.training.varying_threads import steps_are_known

MAX_SECONDS = 0.1  # in the loop, before the Trainer can check clocks, signals and the bar
GATHERED = 5  # batches of a plain net are gathered and scaled at once; more do not fit into a cache

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
CAN_MISS_BATCHES = (
    callbacks.RichProgressBar,
    callbacks.TQDMProgressBar,
    callbacks.Timer,
)


class MultiStep(callbacks.Callback):
    """Trains on several batches at each step of the Trainer, as long as nothing else is due.

    Args:
        train_log: What logs the training, and is told of every step.
        threads: What sets the number of threads, and is told how long steps took.
        base: The module class whose steps the plain loop takes. Its attribute `multi_step` says
            whether it does.
    """

    acts_every_n_steps = 0

    def __init__(self, train_log: TrainLog, threads: Threads, base: type[LightningModule]) -> None:
        self.train_log = train_log
        self.threads = threads
        self.base = base
        self.single_steps_reason: str | None = None
        """Why the Trainer takes every step itself; None if it need not."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reason = self.single_steps_reason = why_single_steps(trainer, self.base)
        rank_zero_info(
            f"Single steps: {reason}"
            if reason
            else "MultiStep takes several optimiser steps for one of the Trainer's"
        )
        skip_gpu_check()
        # with `multi_step` off as well: a run has the same checkpoints with it and without it
        known = self._is_known(pl_module, trainer.optimizers[0])
        if known and (reason is None or not pl_module.multi_step):
            self.threads.vary(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a callback may have changed something
        self.single_steps_reason = why_single_steps(trainer, self.base)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.single_steps_reason is None and (count := free_batches(trainer)):
            self._take_steps(trainer, pl_module, count)

    def _take_steps(self, trainer: Trainer, module: Any, count: int) -> None:
        """Train on the next batches of the epoch."""
        loader: Any = trainer.train_dataloader
        optimizer, device = trainer.optimizers[0], module.device
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        configs = trainer.lr_scheduler_configs
        schedulers = [config.scheduler for config in configs if config.interval == "step"]
        update = bare_step(optimizer)
        manual = ManualBackward(module.network) if self._is_plain(module) else None
        varies = self._is_known(module, optimizer)
        batches = (
            loader.take(count, GATHERED, module.network.scale) if manual else loader.take(count)
        )
        began = time.monotonic()
        first = step = trainer.global_step
        if varies:
            self.threads.use_fastest()
        try:
            for images, labels in batches:
                images, labels = images.to(device), labels.to(device)
                if manual is not None:
                    module.train_metrics.update(manual(images, labels))
                else:
                    loss = module.training_step((images, labels), loader.position - 1)
                    for parameter in parameters:
                        parameter.grad = None
                    loss.backward()
                update()
                step += 1
                self.train_log.log_if_due(step, optimizer.param_groups[0]["lr"])
                for scheduler in schedulers:
                    scheduler.step()
                if time.monotonic() - began > MAX_SECONDS:
                    break
        finally:
            if varies:
                self.threads.took(time.monotonic() - began, step - first)
            count_steps(trainer, step - first, (step - first) * len(schedulers))

    def _is_known(self, module: Any, optimizer: Optimizer) -> bool:
        """Tell whether nothing of a user's may compute in a step, so that its bits are known."""
        return bool(
            type(module) is self.base
            and not has_hooks(module)
            and steps_are_known(module.network)
            and all(getattr(hook, "__func__", None) is EMA.update for hook in step_hooks(optimizer))
        )

    def _is_plain(self, module: Any) -> bool:
        """Tell whether a step is the plain cross-entropy that `ManualBackward` differentiates."""
        loss: Any = getattr(module, "training_loss", None)  # another module has none
        return bool(
            type(module) is self.base
            and loss.is_plain
            and module.hard_examples is None
            and not (module.teachers or module.adversarial_examples)
            and not has_hooks(module)
            and supports_manual_backward(module.network)
        )


def why_single_steps(trainer: Trainer, base: type[LightningModule]) -> str | None:
    """Tell why the Trainer has to take every step itself; None if it need not.

    Args:
        trainer: About to train a `base`, or a class derived from it.
        base: The module class whose steps the plain loop takes.
    """
    module: Any = trainer.lightning_module
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    loader = trainer.train_dataloader
    if not isinstance(module, base):
        return f"{type(module).__name__} is no {base.__name__}"
    if not module.multi_step:
        return "multi_step is off"
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
        return "the dataloader is reloaded between epochs"
    if not isinstance(loader, InMemoryDataLoader):
        return f"the batches come from a {type(loader).__name__}"
    optimizer = trainer.optimizers[0]
    if isinstance(optimizer, torch.optim.LBFGS):
        return "LBFGS computes the loss several times a step"
    if not f"{type(optimizer).__module__}.".startswith("torch.optim."):
        return f"{type(optimizer).__name__} is no optimiser of torch.optim"
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
    """Tell whether the class or the instance overrides a hook of `base`."""
    return getattr(getattr(instance, name), "__func__", None) is not getattr(base, name)


def acts_every_n_steps(callback: callbacks.Callback) -> int:
    """Return N if a callback must see every N-th optimiser step; 0 if it can miss any number.

    A class of callbacks declares it by the attribute `acts_every_n_steps`. A class derived from it
    has to declare it again.
    """
    if "acts_every_n_steps" in vars(type(callback)):
        every: int = callback.acts_every_n_steps  # type: ignore[attr-defined]
        return every
    if type(callback) in CAN_MISS_BATCHES:
        return 0
    if type(callback) is callbacks.ModelCheckpoint and (callback.every_n_epochs or 0) > 0:
        return 0
    return int(any(is_own(callback, name, callbacks.Callback) for name in BATCH_HOOKS))


def free_batches(trainer: Trainer) -> int:
    """Return how many batches can be trained on before the Trainer is needed again.

    It is needed for the batch after which something is due: a validation, a callback, the end of
    the epoch or of training. `test_multi_step.py` compares whole runs with those of single steps.
    """
    fit_loop: Any = trainer.fit_loop
    stops = trainer.should_stop and fit_loop._can_stop_early
    if stops or validation_is_due(trainer):
        return 0
    epoch_loop = fit_loop.epoch_loop
    step, batch = trainer.global_step, epoch_loop.batch_progress.current.ready
    all_batches = epoch_loop.batch_progress.total.ready
    counts_epochs = trainer.check_val_every_n_epoch is not None
    bar = trainer.progress_bar_callback
    # one of Lightning's with a higher rate draws nothing at the batches between
    refresh_rate = bar.refresh_rate if type(bar) in CAN_MISS_BATCHES else 1  # type: ignore[union-attr]
    recurring = [
        # None if the Trainer validates by the clock, which `MAX_SECONDS` lets it look at in time;
        # infinity if it never does
        (trainer.val_check_batch, batch if counts_epochs else all_batches),
        (refresh_rate if refresh_rate > 1 else 0, batch),
        *((acts_every_n_steps(each), step) for each in trainer.callbacks),  # type: ignore[attr-defined]
    ]
    due = [-count % every for every, count in recurring if every]
    due.append(trainer.num_training_batches - batch)
    if trainer.max_steps >= step:  # -1 is no limit
        due.append(trainer.max_steps - step)
    if trainer.min_steps and trainer.min_steps > step:
        due.append(trainer.min_steps - step)
    return max(0, int(min(due)) - 1)


def bare_step(optimizer: Optimizer) -> Callable[[], Any]:
    """Return the optimiser's step without PyTorch's wrapping, unless it has hooks.

    The wrapping (a range for the profiler, the hooks, switching off gradients) costs more than the
    update of a small net's weights.
    """
    if step_hooks(optimizer):
        return optimizer.step
    step = descend if is_plain_sgd(optimizer) else inspect.unwrap(type(optimizer).step)
    return partial(torch.no_grad()(step), optimizer)


def is_plain_sgd(optimizer: Optimizer) -> bool:
    """Tell whether `descend` does all that an optimiser does in a step."""
    others = ("momentum", "weight_decay", "maximize", "differentiable", "fused")
    return type(optimizer) is torch.optim.SGD and all(
        type(group["lr"]) is float and not any(group[name] for name in others)
        for group in optimizer.param_groups
    )


def descend(optimizer: Optimizer) -> None:
    """Take a step of plain SGD, in one call instead of one for each parameter.

    PyTorch's own way to that, `foreach=True`, takes longer than its loop for a net this small.
    """
    for group in optimizer.param_groups:
        parameters = [each for each in group["params"] if each.grad is not None]
        if parameters:  # the whole group may be frozen
            gradients = [each.grad for each in parameters]
            torch._foreach_add_(parameters, gradients, alpha=-group["lr"])


def step_hooks(optimizer: Optimizer) -> list[Callable[..., Any]]:
    """Return what is called before or after the optimiser's step.

    PyTorch has no public way to ask: `test_hooks_of_the_optimizer_are_called` sets each kind.
    """
    kinds = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )
    return [hook for kind in kinds for hook in kind.values()]


def skip_gpu_check() -> None:
    """Where there is no GPU, let PyTorch's optimisers find that out in no time.

    Adam and its like ask at every step. Lightning has PyTorch ask NVIDIA's library, by this
    variable, and to look in vain for the library takes 0.3 ms. Without it, PyTorch asks CUDA's
    runtime, which it has just done here.
    """
    if not torch.cuda.is_available():
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


def count_steps(trainer: Trainer, steps: int, scheduler_steps: int) -> None:
    """Move the Trainer's counts forward.

    Lightning has no public way to say that a batch was trained on. `test_multi_step.py` compares
    the checkpoints, which hold all the counts, with those of single steps.
    """
    fit_loop: Any = trainer.fit_loop
    epoch_loop = fit_loop.epoch_loop
    optimizer = epoch_loop.automatic_optimization.optim_progress.optimizer
    for progress in (epoch_loop.batch_progress, optimizer.step, optimizer.zero_grad):
        progress.increment_by(steps)
    epoch_loop.scheduler_progress.increment_by(scheduler_steps)
    epoch_loop._batches_that_stepped += steps  # the x-axis of what `self.log` writes
    fit_loop._data_fetcher.fetched += steps  # by which it knows an epoch's last batch


def validation_is_due(trainer: Trainer) -> bool:
    """Tell whether the Trainer validates after the batch that has just ended.

    Lightning asks itself this only after the callbacks, by a private method. `test_resume.py`,
    which resumes from every step, fails without it.
    """
    fit_loop: Any = trainer.fit_loop
    return bool(fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher))


def check_clock(trainer: Trainer) -> None:
    """Refuse to validate by the clock on several ranks.

    Each rank looks at its own clock, and Lightning does not compare them: one would validate while
    another waits for it in a step. The interval is in a private attribute, which a test in
    `test_multi_step.py` needs.

    Raises:
        InputError: If there are several ranks.
    """
    seconds = trainer._val_check_time_interval  # type: ignore[attr-defined]
    if seconds is not None and trainer.world_size > 1:
        raise InputError(
            "Expected a number of batches as --trainer.val_check_interval on several ranks, whose "
            f"clocks differ, but got {seconds:g} seconds on {trainer.world_size} ranks"
        )


def training_is_done(trainer: Trainer) -> bool:
    """Tell whether training ends now: its limits are reached, or something has stopped it."""
    return trainer.fit_loop.done


def run_length(module: LightningModule) -> RunLength:
    """Tell how long the run is that is about to begin.

    Raises:
        InputError: If neither a number of epochs nor one of steps ends the run.
    """
    try:
        trainer: Any = module.trainer
    except RuntimeError:  # not attached to one: the arguments are only being checked
        trainer = None
    if (
        trainer is None
        or trainer.fast_dev_run
        or 0 in (trainer.max_steps, trainer.limit_train_batches)
    ):
        return RunLength(10**9, 10**6)  # long enough for any schedule
    fit_loop = trainer.fit_loop
    fit_loop.setup_data()
    steps = trainer.estimated_stepping_batches
    # This loaded the data before a checkpoint's position in the epoch was there. Lightning has no
    # public way to load them again; a test in `test_resume.py` resumes in the middle of an epoch.
    fit_loop._combined_loader = None
    if math.isinf(steps):
        raise InputError(
            "Expected --trainer.max_epochs or --trainer.max_steps, from which the schedule of the "
            "learning rate takes its length, but got neither"
        )
    return RunLength(steps, -(-trainer.num_training_batches // trainer.accumulate_grad_batches))


def ends_an_epoch(checkpoint: dict[str, Any]) -> bool:
    """Tell whether a checkpoint was saved when an epoch had ended, so that the next one follows."""
    epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return bool(epoch["processed"] == epoch["ready"])


def set_max_steps(trainer: Trainer, max_steps: int) -> None:
    """Change the number of steps after which training ends; -1 is no limit.

    Tests in `test_resume.py` with `max_steps` fail without it: from the end of an epoch, Lightning
    begins the next one only while training is not limited by steps.
    """
    trainer.fit_loop.epoch_loop.max_steps = max_steps


def check_module_not_compiled(module: LightningModule) -> None:
    """Refuse to train with steps that were compiled, with the metrics in them.

    They would be compiled again and again, as their counts change, up to PyTorch's limit. Lightning
    has no public way to ask; a test passes `torch.compile(module)` to a Trainer.

    Raises:
        InputError: If they were.
    """
    if module._compiler_ctx is not None:
        to_uncompiled(module)
        raise InputError(
            "Expected the network to be compiled alone, but got torch.compile of the module around "
            "it: give --model.compile true (in Python FNNLitModule(compile=True))"
        )


@contextmanager
def at_least_epochs(trainer: Trainer, epochs: int) -> Iterator[None]:
    """Raise the number of epochs that ends training, if it is lower, and then restore it.

    Lightning's finders obey it; a test in `test_lr_finder.py` searches in a run of one short epoch.
    """
    before = trainer.fit_loop.max_epochs
    if before is not None and 0 <= before < epochs:
        trainer.fit_loop.max_epochs = epochs
    try:
        yield
    finally:
        trainer.fit_loop.max_epochs = before


def epoch_is_ending(trainer: Trainer) -> bool:
    """Tell whether the epoch's batches are done, but its end has not been counted yet."""
    fit_loop: Any = trainer.fit_loop
    epoch = fit_loop.epoch_progress.current
    return bool(epoch.processed > epoch.completed and not fit_loop.restarting)


def resumed_within_epoch(trainer: Trainer) -> bool:
    """Tell whether the epoch that is ending was resumed in its middle.

    Lightning then leaves out ReduceLROnPlateau; `test_resume.py` has such a schedule.
    """
    return trainer.fit_loop.restarting and trainer.is_last_batch


def step_plateau_schedulers(trainer: Trainer, metric: Any) -> None:
    """Step the ReduceLROnPlateau schedulers, and count that as the Trainer does."""
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau:  # and not the warm-up
            config.scheduler.step(metric)
    trainer.fit_loop.epoch_loop.scheduler_progress.increment_by(1)
