"""Where the time of a step of this project goes; `speed.py --profile` prints it."""

import contextlib
import io
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loop_timer import LoopTimer
from timing import spread
from torch.profiler import ProfilerActivity, profile

from fnn_lightning import FNNLitModule
from fnn_lightning.commands.lightning_cli import FNNCLI
from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.network import FNN
from fnn_lightning.training import multi_step
from fnn_lightning.training.checkpointing import RunCheckpoint
from fnn_lightning.training.manual_backward import ManualBackward
from fnn_lightning.training.metrics import TrainMetrics
from fnn_lightning.training.progress_bar import RunProgressBar
from fnn_lightning.training.train_log import TrainLog

EPOCHS = 5
"""At most so many are trained, as a whole run may take many minutes."""

LIMITED = ("mnist", "fast99", "record")
"""Configs whose share outside matrix products has a limit."""

ROUNDS = 3
"""How often that share is measured."""

MATRIX_PRODUCTS = {
    f"aten::{name}" for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_")
}


class SecondEpoch(LoopTimer):
    """Times the steps of the second epoch, without the start of a run, validation and checkpoints.

    They are all augmented, if any are.
    """

    acts_every_n_steps = 0

    def on_train_start(self, *_: Any) -> None:
        pass

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == 1:
            super().on_train_start(trainer, *args)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        # the Trainer takes the last step of an epoch itself
        if trainer.current_epoch == 1 and trainer.is_last_batch:
            super().on_train_end(trainer, *args)

    def on_train_end(self, *_: Any) -> None:
        pass


class MatrixProducts(SecondEpoch):
    """Adds up the seconds of the matrix products of these steps, by PyTorch's profiler."""

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == 1:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.start()
        super().on_train_epoch_start(trainer, *args)

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            self.profiler.stop()
            self.products = sum(
                each.self_cpu_time_total / 1e6
                for each in self.profiler.key_averages()
                if each.key in MATRIX_PRODUCTS
            )


class Clock:
    """Adds up seconds by what they were spent on; of nested calls the outermost counts."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.busy = False

    def timed(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self.busy:
                return function(*args, **kwargs)
            self.start()
            try:
                return function(*args, **kwargs)
            finally:
                self.stop(what)

        return wrapper

    def start(self) -> None:
        """Begin something."""
        self.busy, self.began = True, time.perf_counter()

    def stop(self, what: str) -> None:
        """End it, and say what it was."""
        self.seconds[what] += time.perf_counter() - self.began
        self.busy = False

    def wrap(self, owner: Any, name: str, what: str) -> None:
        """Wrap a method of a class or a function of a module."""
        setattr(owner, name, self.timed(what, getattr(owner, name)))


def train(config: Path, data_dir: str, epochs: int, timer: type[LoopTimer]) -> tuple[Any, int]:
    """Train by a config without a word, and return the timer and the number of steps."""
    command = ["fit", "--config", str(config), "--data.data_dir", data_dir]
    command += ["--trainer.max_epochs", str(epochs), "--trainer.enable_progress_bar", "true"]
    command += ["--trainer.callbacks", f"{timer.__module__}.{timer.__name__}"]
    command += ["--data.augmentation.end", "1"]  # as in most epochs of a longer run
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        trainer: Any = FNNCLI([*command, "--trainer.default_root_dir", folder]).trainer
    return next(each for each in trainer.callbacks if type(each) is timer), trainer.global_step


def show_matrix_products(config: Path, data_dir: str) -> None:
    """Train two epochs several times, and print the share of a step outside matrix products.

    Seconds of the products and of the epoch are those of the same run, as the machine's speed
    varies. So what the profiler itself costs counts as outside; an epoch without it tells how much
    that is.
    """
    shares, overheads = [], []
    for _ in range(ROUNDS):
        profiled, _ = train(config, data_dir, 2, MatrixProducts)
        bare, _ = train(config, data_dir, 2, SecondEpoch)
        shares.append(1 - profiled.products / profiled.seconds)
        overheads.append(profiled.seconds / bare.seconds)
    print("\n| | median (least–greatest) | at most | aim |")
    print("| --- | --- | --- | --- |")
    what = f"`{config.name}`: share of a step outside matrix products"
    print(f"| {what} | {spread(shares)} | 0.30 | 0.20 |")
    print(f"| seconds with the profiler / without it | {spread(overheads)} | | |")


def show_profile(config: Path, data_dir: str) -> None:
    """Train by a config, and print where the time went."""
    clock = Clock()
    bare_step = multi_step.bare_step
    vars(multi_step)["bare_step"] = lambda optimizer: clock.timed("optimiser", bare_step(optimizer))
    clock.wrap(InMemoryDataLoader, "_gather", "data")
    clock.wrap(FNN, "scale", "data")
    clock.wrap(FNNLitModule, "_step", "forward")
    clock.wrap(ManualBackward, "__call__", "forward and backward")
    clock.wrap(torch.Tensor, "backward", "backward")
    clock.wrap(TrainMetrics, "update", "metrics and logging")
    clock.wrap(TrainLog, "_log", "metrics and logging")
    clock.wrap(FNNLitModule, "log_dict", "metrics and logging")
    clock.wrap(RunCheckpoint, "_save", "checkpoints")
    clock.wrap(RunProgressBar, "on_train_batch_end", "progress bar")
    on_validation_start, on_validation_end = (
        TrainLog.on_validation_start,
        TrainLog.on_validation_end,
    )

    def start_evaluation(self: Any, *args: Any) -> None:
        on_validation_start(self, *args)
        clock.start()

    def end_evaluation(self: Any, *args: Any) -> None:
        clock.stop("evaluations")
        on_validation_end(self, *args)

    TrainLog.on_validation_start = start_evaluation  # type: ignore[assignment, method-assign]
    TrainLog.on_validation_end = end_evaluation  # type: ignore[assignment, method-assign]

    train(config, data_dir, 1, LoopTimer)  # warms up
    clock.seconds.clear()
    timer, steps = train(config, data_dir, EPOCHS, LoopTimer)
    total = timer.seconds
    clock.seconds["framework, and all else"] = total - sum(clock.seconds.values())
    print(f"{steps:,} steps in {total:.2f} s\n")
    print("| part | µs a step | share |")
    print("| --- | --- | --- |")
    for what, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"| {what} | {1e6 * seconds / steps:.0f} | {100 * seconds / total:.0f} % |")
    if config.stem in LIMITED:
        show_matrix_products(config, data_dir)
