"""Checks of the settings of a run, before anything is made or written."""

import inspect
import re
from dataclasses import fields
from types import ModuleType
from typing import Any

import torch
from jsonargparse import Namespace
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fnn_lightning.data.augmentation import Augmentation
from fnn_lightning.data.datasets import is_path
from fnn_lightning.errors import InputError
from fnn_lightning.runs.checkpoint_io import ema_decay
from fnn_lightning.runs.files import quote
from fnn_lightning.training.checkpointing import default_mode
from fnn_lightning.training.hparams import OF_DATA, flatten
from fnn_lightning.training.optim import MONITORED, SGD, torch_class

TORCH_CLASSES: dict[str, tuple[ModuleType, type]] = {
    "optimizer": (torch.optim, Optimizer),
    "lr_scheduler": (torch.optim.lr_scheduler, LRScheduler),
}
# settings of the Trainer on which the result depends, beside the length of the run
RUN_SETTINGS = (
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
    *("limit_train_batches", "overfit_batches", "precision"),
)
# the texts that settings of the Trainer, the checkpoints and torch.optim's classes can be
WORDS = (
    *("auto", "cpu", "gpu", "cuda", "mps", "tpu", "ddp", "fsdp"),
    *("16-mixed", "bf16-mixed", "16-true", "bf16-true", "32-true", "64-true", "bf16"),
    *MONITORED,
    *("min", "max", "rel", "abs", "norm", "value", "cos", "linear"),
    *("triangular", "triangular2", "exp_range", "cycle", "iterations"),
)
# as the parser writes {"seconds": 1}
DURATION = r"""\{('(weeks|days|hours|minutes|seconds)': [0-9]+(, )?)+\}"""


def check_what_is_monitored(config: Namespace) -> None:
    """Refuse to select by a metric that is not measured, or by the test set."""
    scheduler = (config.lr_scheduler or {}).get("init_args") or {}
    monitors = {
        "--checkpoint.monitor": config.checkpoint.monitor,
        "--early_stopping.patience": config.early_stopping.patience is not None
        and config.early_stopping.monitor,
        "--lr_scheduler.monitor": scheduler.get("monitor"),
    }
    given = config.trainer.callbacks or []
    for callback in given if isinstance(given, list) else [given]:
        name, arguments = callback.class_path.rpartition(".")[2], callback.get("init_args") or {}
        metric = monitors[name] = arguments.get("monitor")
        rises = metric in MONITORED and default_mode(metric) == "max"
        if rises and arguments.get("mode") == "min":
            raise InputError(
                f"Expected `mode` of {name} to be max, since the highest {metric} is best, but got "
                "min, Lightning's default: give --trainer.callbacks.mode max"
            )
    for option, metric in monitors.items():
        if metric and config.data.val_size == 0 and config.data.folds is None:
            raise InputError(
                f"{option} would select by {metric}, but with val_size 0 validation watches the "
                "test set, by which nothing may be selected: give --data.val_size 5000, or drop "
                f"{option}"
            )
        if metric and config.trainer.limit_val_batches == 0:
            raise InputError(f"{option} needs validation, which limit_val_batches 0 switches off")
    writes = config.trainer.enable_checkpointing is not False and config.trainer.logger is not False
    if config.checkpoint.monitor and not writes:
        raise InputError("--checkpoint.monitor needs checkpoints, which are switched off")


def check_barebones(config: Namespace, run_folder: str | None, finds_lr: bool) -> None:
    """Refuse what needs files or metrics, if the Trainer is barebones and writes none."""
    asked = {
        "--run_folder": run_folder,
        "--find_lr": finds_lr or None,
        "--checkpoint.monitor": config.checkpoint.monitor,
        "--checkpoint.every_n_steps": config.checkpoint.every_n_steps,
        "--checkpoint.every_n_minutes": config.checkpoint.every_n_minutes,
        "--early_stopping.patience": config.early_stopping.patience,
        "--lr_scheduler.monitor": ((config.lr_scheduler or {}).get("init_args") or {}).get(
            "monitor"
        ),
    }
    for option, value in asked.items():
        if value is not None and config.trainer.barebones:
            raise InputError(
                f"{option} needs files or metrics, but --trainer.barebones true writes none: "
                "drop either"
            )


def check_ranges(trainer: Namespace) -> None:
    """Check the numbers that the Trainer itself takes as they come."""
    at_least = {
        "accumulate_grad_batches": 1,
        "check_val_every_n_epoch": 1,
        "log_every_n_steps": 0,
        "gradient_clip_val": 0,
    }
    for name, least in at_least.items():
        value = trainer[name]
        if value is not None and value < least:
            raise InputError(f"Expected `trainer.{name}` to be {least} or more, but got {value}")
    interval = trainer.val_check_interval
    is_zero = isinstance(interval, str) and not re.search(r"[^0:]", interval)
    if is_zero or (isinstance(interval, int | float) and interval <= 0):
        raise InputError(
            f"Expected `trainer.val_check_interval` to be positive, but got {interval}"
        )


def check_strategy(strategy: Any) -> None:
    """Refuse strategies that train in processes of which only the weights come back.

    Args:
        strategy: The Trainer's, by its name or as a class with its arguments.
    """
    arguments = strategy.get("init_args") if isinstance(strategy, Namespace) else None
    method = (arguments or {}).get("start_method", "popen")
    name = strategy if isinstance(strategy, str) else f"start_method {method}"
    if re.match(r"ddp_(spawn|fork|notebook)", name) or method != "popen":
        raise InputError(
            f"Expected --trainer.strategy ddp, but got {name}, whose checkpoints and results do "
            "not come back to the command line: ddp starts as many processes"
        )


def check_resumes(
    config: Namespace, checkpoint: dict[str, Any], path: str, stored_config: dict[str, Any]
) -> None:
    """Refuse to resume with other data, another seed, network or optimiser than the run began with.

    Args:
        config: The settings of `fit`.
        checkpoint: What `read_checkpoint` returned.
        path: Its file, for the message.
        stored_config: The config.yaml of its run, as far as there is one.

    Raises:
        InputError: If a setting that defines the run has changed, or the run is to be shorter than
            it is already.
    """
    model = dict(checkpoint["hyper_parameters"])
    data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    before: dict[str, Any] = {"ema.decay": ema_decay(checkpoint)}
    now: dict[str, Any] = {"ema.decay": config.ema.decay}
    model = {name: value for name, value in model.items() if name not in OF_DATA}
    data.pop("data_dir", None)  # of a machine, not of a run
    if data:  # of an earlier version too, which had no such settings
        later = ("folds", "fold", "train_size", "class_weights", "framing")
        data = {**dict.fromkeys(later), **data}
    adversarial = {"adversarial_radius": 0.0, "adversarial_steps": 1}
    model = {"freeze": 0, **adversarial, "matmul_precision": None, **model}
    if "augmentation" in data:  # which had no `end` then
        data["augmentation"] = {"end": 1.0, **dict(data["augmentation"])}
    if is_path(str(data.get("dataset"))) and is_path(config.data.dataset):
        del data["dataset"]  # likewise
    if "seed" in data:
        before["seed_everything"], now["seed_everything"] = data.pop("seed"), config.seed_everything
    for name in ("optimizer", "lr_scheduler"):
        default = SGD if name == "optimizer" else None
        stored, given = model.pop(name, None) or default, plain(config[name])
        if stored:
            check_stored_class(name, stored)
        before |= class_settings(name, stored)
        now |= class_settings(name, given)
    for section, settings in (("model", model), ("data", data)):
        before |= flatten(settings, f"{section}.")
        now |= flatten({name: plain(config[section].get(name)) for name in settings}, f"{section}.")
    for section, names in (("model", ["compile"]), ("trainer", RUN_SETTINGS)):
        settings = stored_config.get(section) or {}
        for name in settings.keys() & set(names):
            before[f"{section}.{name}"] = settings[name]
            now[f"{section}.{name}"] = config[section][name]
    for option in {**before, **now}:
        was, given = before.get(option), now.get(option)
        if was != given:
            raise InputError(
                f"Expected `{option}` to be {shown(was)}, with which the run began, but got "
                f"{shown(given)}: a resumed run keeps its data, seed, network and optimiser. "
                "For a new run, name another --run_folder; to start it from these weights, give "
                f"--init_from {quote(path)}"
            )
    epoch, limit = checkpoint.get("epoch"), config.trainer.max_epochs
    if isinstance(epoch, int) and limit is not None and -1 < limit < epoch:
        raise InputError(
            f"Expected `trainer.max_epochs` to be {epoch + 1} or more, since the checkpoint is of "
            f"epoch {epoch + 1}, but got {limit}"
        )


def class_settings(name: str, config: dict[str, Any] | None) -> dict[str, Any]:
    """Name the class of an optimiser or a schedule, and each of its arguments, defaults included.

    >>> settings = class_settings("optimizer", {"class_path": "torch.optim.SGD"})
    >>> settings["optimizer"], settings["optimizer.momentum"]
    ('SGD', 0)
    """
    if config is None:
        return {name: None}
    parameters = inspect.signature(torch_class(config, *TORCH_CLASSES[name])).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    arguments = {**defaults, **(config.get("init_args") or {})}
    class_name = config["class_path"].rpartition(".")[2]
    return {name: class_name, **flatten(arguments, f"{name}.")}


def shown(value: Any) -> str:
    """Write a setting as a user would."""
    return "null" if value is None else str(value)


def check_stored_class(name: str, config: Any) -> None:
    """Refuse a stored class or argument by which the parser would import code.

    Args:
        name: `optimizer` or `lr_scheduler`.
        config: As a checkpoint stores it.

    Raises:
        InputError: If it is anything but a class of torch.optim and plain arguments.
    """
    try:
        torch_class(config, *TORCH_CLASSES[name])
        sound = set(config) <= {"class_path", "init_args"} and "." in config["class_path"]
        sound = sound and all(map(is_data, (config.get("init_args") or {}).values()))
    except (AttributeError, InputError):  # arguments that are no mapping
        sound = False
    if not sound:
        raise InputError(f"The checkpoint names code, which is not run: {config!r:.200}")


def stored_augmentation(stored: Any) -> dict[str, float]:
    """Return the augmentation that a checkpoint stores.

    Raises:
        InputError: If it is anything but numbers by the names of `Augmentation`.
    """
    names = {field.name for field in fields(Augmentation)}
    numbers = isinstance(stored, dict) and all(type(x) in (int, float) for x in stored.values())
    if not numbers or not stored.keys() <= names:
        raise InputError(
            f"Expected the augmentation in the checkpoint to be numbers, but got {stored!r:.200}"
        )
    return dict(stored)


def is_data(value: Any) -> bool:
    """Tell whether a stored setting is a number or one of the few words that settings can be.

    The parser takes any other text for YAML, the name of a class or that of a file.
    """
    if isinstance(value, list | tuple):
        return all(part is None or isinstance(part, int | float) for part in value)
    if isinstance(value, str):
        return value in WORDS or re.fullmatch(rf"[0-9:,.]+|{DURATION}", value) is not None
    return value is None or isinstance(value, bool | int | float)


def plain(config: Any) -> Any:
    """Turn a namespace of jsonargparse, such as a class and its arguments, into a dictionary."""
    return config.as_dict() if isinstance(config, Namespace) else config
