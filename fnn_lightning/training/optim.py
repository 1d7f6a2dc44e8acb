"""Optimiser, learning-rate schedule and warm-up, made from plain settings."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from fnn_lightning.errors import InputError

ClassConfig = dict[str, Any]
"""A class of torch.optim with its arguments: `{"class_path": …, "init_args": {…}}`."""

SGD: ClassConfig = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
MONITORED = ("val/acc", "val/loss", "val/balanced_acc", "val/f1")  # what can be selected by
# what schedules of torch.optim call their length
LENGTH_ARGUMENTS = {
    "OneCycleLR": "total_steps",
    "CosineAnnealingLR": "T_max",
    "LinearLR": "total_iters",
    "PolynomialLR": "total_iters",
}

OWN_LR = ("CyclicLR", "OneCycleLR")  # schedules that do not start from the optimiser's rate


class RunLength(NamedTuple):
    """How long a run is."""

    steps: int
    """Number of optimiser steps."""
    steps_per_epoch: int
    """Number of optimiser steps per epoch."""

    @property
    def epochs(self) -> int:
        """Number of epochs begun.

        >>> RunLength(steps=25, steps_per_epoch=10).epochs
        3
        """
        return -(-self.steps // self.steps_per_epoch)


@dataclass(frozen=True)
class Optim:
    """Which optimiser and which schedule of the learning rate train a network.

    Args:
        optimizer: A class of `torch.optim` and its arguments.
        lr_scheduler: A class of `torch.optim.lr_scheduler` and its arguments, likewise. Among those
            of `ReduceLROnPlateau` is `monitor`, the name of a logged metric. `total_steps` of
            `OneCycleLR`, `T_max` of `CosineAnnealingLR`, and `total_iters` of `LinearLR` and
            `PolynomialLR` become the length of the run, less a warm-up counted in the same unit,
            if they are null or 0, or left out and without a default of PyTorch's.
        lr_interval: Whether the schedule counts epochs or steps.
        warmup: Linear warm-up to the schedule's initial rate: number of steps or, below 1, a
            fraction of the run. A schedule that counts steps starts after it. One that counts
            epochs is left as it is, and the warm-up has to end within the first epoch.

    Raises:
        InputError: If a class is not one of `torch.optim`, or a number is out of its range.
    """

    optimizer: ClassConfig
    lr_scheduler: ClassConfig | None = None
    lr_interval: Literal["epoch", "step"] = "epoch"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        warmup = self.warmup
        if not (0 <= warmup < 1 or (warmup < math.inf and warmup == int(warmup) > 0)):
            raise InputError(
                "Expected `warmup` to be a number of steps, or a fraction of the run from 0 to "
                f"below 1, but got {warmup}"
            )
        lr = self.lr
        if not isinstance(lr, int | float) or not 0 < lr < math.inf:
            raise InputError(f"Expected the learning rate `lr` to be positive, but got {lr}")
        if self.lr_scheduler is not None:
            torch_class(self.lr_scheduler, torch.optim.lr_scheduler, LRScheduler)

    @property
    def lr(self) -> float:
        """The optimiser's learning rate, without a schedule or warm-up."""
        found = torch_class(self.optimizer, torch.optim, Optimizer)
        default = inspect.signature(found).parameters["lr"].default
        lr: float = (self.optimizer.get("init_args") or {}).get("lr", default)
        return lr

    @property
    def replaces_lr(self) -> bool:
        """Whether the schedule replaces the optimiser's learning rate by its own."""
        return self._schedule_name in OWN_LR

    @property
    def _schedule_name(self) -> str:
        name: str = (self.lr_scheduler or {}).get("class_path", "").rpartition(".")[2]
        return name

    def check_uses_lr(self) -> None:
        """Refuse a schedule that replaces the optimiser's learning rate by its own.

        Raises:
            InputError: If this is one.
        """
        if self.replaces_lr:
            raise InputError(
                f"Expected a schedule that starts from the optimiser's learning rate, but got "
                f"{self._schedule_name}, which replaces it by its own: give "
                "--lr_scheduler.max_lr instead"
            )

    def with_lr(self, lr: float) -> "Optim":
        """Return the same with another learning rate.

        Raises:
            InputError: If it would not be used.
        """
        self.check_uses_lr()
        init_args = {**(self.optimizer.get("init_args") or {}), "lr": lr}
        return replace(self, optimizer={**self.optimizer, "init_args": init_args})

    def schedule_lengths(self, run: Callable[[], RunLength]) -> tuple[int, int]:
        """Return the lengths that follow from the length of the run.

        Args:
            run: Tells how long the run is; called only if something follows from it.

        Returns:
            Steps of warm-up, and length of the schedule in its own unit; 0 if its length was given.

        Raises:
            InputError: If the warm-up does not fit into the run.
        """
        fills = length_argument(self.lr_scheduler) is not None
        if not (fills or self.warmup):
            return 0, 0
        length = run()
        warmup = warmup_steps(self.warmup, length)
        in_steps = self.lr_interval == "step"
        if self.lr_scheduler and not in_steps and warmup > length.steps_per_epoch:
            raise InputError(
                "Expected `warmup` to end within the first epoch, of "
                f"{length.steps_per_epoch:,} steps, but got {warmup:,} steps: "
                "give --model.lr_interval step"
            )
        return warmup, (length.steps - warmup if in_steps else length.epochs) if fills else 0

    def build(self, parameters: Iterable[Parameter], lengths: tuple[int, int]) -> Any:
        """Make the optimiser and its schedules, in the form `configure_optimizers` returns.

        Args:
            parameters: What the optimiser updates.
            lengths: What `schedule_lengths` returned.

        Raises:
            InputError: If a class refuses its arguments, or the settings do not go together.
        """
        warmup, length = lengths
        optimizer: Optimizer = make(self.optimizer, torch.optim, Optimizer, parameters)
        schedule = self._schedule(optimizer, length)
        if not warmup:
            return optimizer if schedule is None else ([optimizer], [schedule])
        rising = {"scheduler": linear_warmup(optimizer, warmup), "interval": "step"}
        if schedule is None:
            return [optimizer], [rising]
        if self.lr_interval == "epoch":
            return [optimizer], [schedule, rising]
        if isinstance(schedule["scheduler"], ReduceLROnPlateau):
            raise InputError(
                "Expected `lr_interval` to be epoch with `warmup` and ReduceLROnPlateau, "
                "but got step"
            )
        both = [rising["scheduler"], schedule["scheduler"]]
        in_turn = SequentialLR(optimizer, both, milestones=[warmup])
        return [optimizer], [{**schedule, "scheduler": in_turn}]

    def _schedule(self, optimizer: Optimizer, length: int) -> dict[str, Any] | None:
        """Make the scheduler, if there is one, in the form Lightning takes."""
        if self.lr_scheduler is None:
            return None
        init_args = dict(self.lr_scheduler.get("init_args") or {})
        if name := length_argument(self.lr_scheduler):
            init_args[name] = length
        monitor = init_args.pop("monitor", None)
        class_path = self.lr_scheduler["class_path"]
        if class_path.endswith("ReduceLROnPlateau") and monitor not in MONITORED:
            raise InputError(
                f"Expected `monitor` of ReduceLROnPlateau to be one of {', '.join(MONITORED)}, "
                f"but got {monitor}"
            )
        config = {"class_path": class_path, "init_args": init_args}
        scheduler = make(config, torch.optim.lr_scheduler, LRScheduler, optimizer)
        return {"scheduler": scheduler, "interval": self.lr_interval, "monitor": monitor}


def length_argument(config: ClassConfig | None) -> str | None:
    """Return the argument of a schedule that becomes the run's length, if one does.

    >>> length_argument({"class_path": "CosineAnnealingLR", "init_args": {"T_max": 0}})
    'T_max'
    >>> length_argument({"class_path": "CosineAnnealingLR", "init_args": {"T_max": 5}})
    """
    if config is None:
        return None
    arguments = config.get("init_args") or {}
    name = LENGTH_ARGUMENTS.get(config["class_path"].rpartition(".")[2])
    by_epochs = arguments.get("epochs") and arguments.get("steps_per_epoch")  # OneCycleLR's own way
    if name is None or by_epochs or (name == "total_iters" and name not in arguments):
        return None
    return None if arguments.get(name) else name


def warmup_steps(warmup: float, run: RunLength) -> int:
    """Return the number of steps of a warm-up.

    Args:
        warmup: Number of steps if it is 1 or more, otherwise a fraction of the run.
        run: How long the run is.

    Raises:
        InputError: If nothing of the run is left after it.

    >>> warmup_steps(0.1, RunLength(steps=3000, steps_per_epoch=600))
    300
    """
    steps = int(warmup) if warmup >= 1 else round(warmup * run.steps)
    if steps >= run.steps:
        raise InputError(
            f"Expected `warmup` to be shorter than the run of {run.steps:,} steps, "
            f"but got {warmup:g}"
        )
    return steps


def linear_warmup(optimizer: Optimizer, steps: int) -> LinearLR:
    """Make the learning rate of step k be k / (steps + 1) of what it is after the warm-up."""
    return LinearLR(optimizer, start_factor=1 / (steps + 1), total_iters=steps)


def torch_class(config: ClassConfig, module: ModuleType, base: type) -> Callable[..., Any]:
    """Look up a class of torch.optim by its name; nothing is imported, whatever the name.

    Args:
        config: The class and its arguments.
        module: `torch.optim` or `torch.optim.lr_scheduler`.
        base: What the class is derived from.

    Raises:
        InputError: If there is no such class, or an argument is not plain data.

    >>> torch_class({"class_path": "Adam"}, torch.optim, Optimizer).__name__
    'Adam'
    """
    class_path = config.get("class_path") if isinstance(config, Mapping) else None
    name = str(class_path).rpartition(".")[2]
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, base) and found is not base:
        paths = [name, f"{module.__name__}.{name}", f"{found.__module__}.{name}"]
        # LightningCLI's own name for PyTorch's class with the argument `monitor`
        if name == "ReduceLROnPlateau":
            paths.append(f"lightning.pytorch.cli.{name}")
        if class_path in paths:
            check_plain(config.get("init_args") or {})
            return found
    raise InputError(
        f"Expected `class_path` to name a class of {module.__name__}, but got {config}"
    )


def check_plain(arguments: dict[str, Any]) -> None:
    """Refuse what a checkpoint could not store as plain data, functions above all.

    Raises:
        InputError: If an argument is not a number, a name, or a list of them.
    """
    for name, value in arguments.items():
        parts = value if isinstance(value, list | tuple) else [value]
        if not all(part is None or isinstance(part, bool | int | float | str) for part in parts):
            raise InputError(f"Expected `{name}` to be a number or a name, but got {value!r}")


def make(config: ClassConfig, module: ModuleType, base: type, *args: Any) -> Any:
    """Make an object of a class of torch.optim.

    Raises:
        InputError: If the class refuses its arguments.
    """
    kwargs = config.get("init_args") or {}
    try:
        return torch_class(config, module, base)(*args, **kwargs)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{config['class_path']} cannot be made: {error}") from error
