"""Where the time of a step of this project goes; `speed.py --profile` prints it."""

import contextlib
import io
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from loop_timer import LoopTimer

from fnn_lightning import lit_module
from fnn_lightning.commands.lightning_cli import FNNCLI
from fnn_lightning.data import dataloader as batches
from fnn_lightning.training import checkpointing as callbacks
from fnn_lightning.training import console
from fnn_lightning.training import manual_backward as backpropagation
from fnn_lightning.training import metrics as train_metrics
from fnn_lightning.training import multi_step as run_ahead


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


def show_profile(config: Path, data_dir: str) -> None:
    """Train by a config, and print a table."""
    clock = Clock()
    module = lit_module.FNNLitModule
    serve, bare_step = batches.InMemoryDataLoader._serve, run_ahead.bare_step

    def timed_serve(self: Any) -> Iterator[Any]:
        fetch = clock.timed("data", serve(self).__next__)
        while True:
            try:
                batch = fetch()
            except StopIteration:
                return
            yield batch

    batches.InMemoryDataLoader._serve = timed_serve  # type: ignore[method-assign]
    vars(lit_module)["bare_step"] = lambda optimizer: clock.timed("optimiser", bare_step(optimizer))
    clock.wrap(module, "_step", "forward")
    clock.wrap(backpropagation.ManualBackward, "__call__", "forward and backward")
    clock.wrap(torch.Tensor, "backward", "backward")
    clock.wrap(train_metrics.TrainMetrics, "update", "metrics and logging")
    for name in ("_log_training", "log_dict"):
        clock.wrap(module, name, "metrics and logging")
    clock.wrap(callbacks.Checkpoint, "_save", "checkpoints")
    clock.wrap(console.ProgressBar, "on_train_batch_end", "progress bar")
    on_validation_start, on_validation_end = module.on_validation_start, module.on_validation_end

    def start_evaluation(self: Any) -> None:
        on_validation_start(self)
        clock.start()

    def end_evaluation(self: Any) -> None:
        clock.stop("evaluations")
        on_validation_end(self)

    module.on_validation_start = start_evaluation  # type: ignore[method-assign]
    module.on_validation_end = end_evaluation  # type: ignore[method-assign]

    command = ["fit", "--config", str(config), "--data.data_dir", data_dir]
    command += ["--trainer.enable_progress_bar", "true", "--trainer.callbacks"]
    command += ["benchmarks.loop_timer.LoopTimer", "--trainer.default_root_dir"]
    for _ in range(2):  # the first run warms up
        clock.seconds.clear()
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            trainer: Any = FNNCLI([*command, folder]).trainer
    timers = [each for each in trainer.callbacks if type(each).__name__ == LoopTimer.__name__]
    total, steps = timers[0].seconds, trainer.global_step
    clock.seconds["framework, and all else"] = total - sum(clock.seconds.values())
    print(f"{steps:,} steps in {total:.2f} s\n")
    print("| part | µs a step | share |")
    print("| --- | --- | --- |")
    for what, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"| {what} | {1e6 * seconds / steps:.0f} | {100 * seconds / total:.0f} % |")
