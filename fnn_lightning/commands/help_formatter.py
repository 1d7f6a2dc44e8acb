"""The layout of long help: `--help_all`, and `--help` of the subcommands without a Trainer.

Lightning's descriptions are Sphinx markup and jsonargparse's types Python. Users get plain text.
"""

import re
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import DefaultHelpFormatter, Namespace

from fnn_lightning.commands.hints import CLASSES, classes_to_name
from fnn_lightning.runs.settings import MAX_EPOCHS

TITLES = {
    "trainer": "Lightning's Trainer",
    "model": "The network, and how it is trained",
    "data": "The data",
    "data.augmentation": "Augmentation of the training images, drawn anew in every epoch",
    "optimizer": "The optimiser",
    "lr_scheduler": "The schedule of the learning rate",
    "checkpoint": "Checkpoints: `last.ckpt`, and `best.ckpt` if a metric is monitored",
    "early_stopping": "Early stopping, if `patience` is given",
    "tensorboard": "Pictures in TensorBoard",
    "ema": "Exponential moving average of the weights, for validation, test and checkpoints",
}
# where Lightning's own words are about other defaults, or say nothing to a user of a command line
HELP = {
    "help": "Show this help, and exit.",
    "config": "YAML file, or a name that `configs` lists. Of several, the last wins.",
    "print_config": "Print all settings as YAML, and exit. `=skip_default` leaves out defaults.",
    "trainer.accelerator": "Hardware to train on.",
    "trainer.strategy": "How several devices share the work: auto, ddp, …",
    "trainer.devices": "Number of devices, or a list of their numbers; -1: all.",
    "trainer.num_nodes": "Number of machines.",
    "trainer.precision": "Floating-point numbers of the network; mixed ones in training alone.",
    "trainer.logger": "Logger, or a list of them, beside the run's own for TensorBoard. `false` "
    "writes nothing at all.",
    "trainer.callbacks": "Callback, or a list of them, beside the run's own.",
    "trainer.fast_dev_run": "Run so many batches of each split and write nothing, to find errors; "
    "`true` is one.",
    "trainer.max_epochs": "Stop after this many epochs; -1: never. The default holds unless "
    "max_steps or max_time is given.",
    "trainer.max_steps": "Stop after this many optimiser steps; -1: never.",
    "trainer.min_epochs": "Train for at least this many epochs.",
    "trainer.min_steps": "Train for at least this many optimiser steps.",
    "trainer.max_time": "Stop after this time, as DD:HH:MM:SS.",
    "trainer.limit_train_batches": "Number of training batches in an epoch, or a share of them.",
    "trainer.limit_val_batches": "Number of validation batches, or a share of them.",
    "trainer.limit_test_batches": "Number of test batches, or a share of them.",
    "trainer.limit_predict_batches": "Number of batches to predict, or a share of them.",
    "trainer.overfit_batches": "Number of training batches, or a share of them, to train and "
    "validate on, to see whether the net can learn them by heart.",
    "trainer.val_check_interval": "Validate after this share of an epoch (1.0), number of steps "
    "(500), or time (00:00:10:00).",
    "trainer.check_val_every_n_epoch": "Validate after every so many epochs; null: "
    "val_check_interval counts the steps of all epochs.",
    "trainer.num_sanity_val_steps": "Number of validation batches to try before training; -1: all.",
    "trainer.log_every_n_steps": "Log after every so many optimiser steps.",
    "trainer.enable_checkpointing": "Whether `fit` writes checkpoints.",
    "trainer.enable_progress_bar": "Whether to show a progress bar; by default in a terminal only.",
    "trainer.enable_model_summary": "Whether to print Lightning's table of the layers.",
    "trainer.accumulate_grad_batches": "Number of batches whose gradients make one step.",
    "trainer.gradient_clip_val": "Value at which to clip gradients.",
    "trainer.gradient_clip_algorithm": "Whether to clip the `norm` of all gradients or each "
    "`value`.",
    "trainer.deterministic": "Whether to use only algorithms of PyTorch that give the same result "
    "every time; `warn` says where there is none.",
    "trainer.benchmark": "Whether cuDNN tries which of its algorithms is the fastest.",
    "trainer.inference_mode": "Whether evaluation runs in `torch.inference_mode`, not `no_grad`.",
    "trainer.use_distributed_sampler": "Whether Lightning divides dataloaders among ranks. Those "
    "of this project do so themselves.",
    "trainer.profiler": "Measure the parts of a step: `simple`, `advanced`, or a profiler.",
    "trainer.detect_anomaly": "Whether autograd looks for NaN, which is slow.",
    "trainer.barebones": "Whether to train without all that costs time: logs, checkpoints, "
    "progress bar. Nothing is written.",
    "trainer.plugins": "Plugins of Lightning, such as one for mixed precision or a cluster.",
    "trainer.sync_batchnorm": "Whether batch normalisation takes the images of all ranks.",
    "trainer.reload_dataloaders_every_n_epochs": "Make the dataloaders anew after so many epochs.",
    "trainer.default_root_dir": "Folder that holds `lightning_logs`; by default the current one.",
    "trainer.enable_autolog_hparams": "Whether to log the settings when a run starts.",
    "trainer.model_registry": "Name under which Lightning's model registry keeps the model.",
    "tensorboard.enabled": "Whether to show what the net has learned, and where it is wrong.",
    "ema.decay": "Decay per step, from 0 to below 1, such as 0.999; 0: no average.",
    "optimizer": "Class of `torch.optim`. Its arguments follow as --optimizer.NAME.",
    "lr_scheduler": "Class of `torch.optim.lr_scheduler`. Its arguments follow as "
    "--lr_scheduler.NAME.",
}
# what the Trainer, or this project for it, makes of null
DEFAULTS = {
    "trainer.precision": "32-true",
    "trainer.max_epochs": str(MAX_EPOCHS),
    "trainer.limit_train_batches": "1.0",
    "trainer.limit_val_batches": "1.0",
    "trainer.limit_test_batches": "1.0",
    "trainer.limit_predict_batches": "1.0",
    "trainer.val_check_interval": "1.0",
    "trainer.log_every_n_steps": "50",
    "trainer.enable_checkpointing": "true",
    "trainer.gradient_clip_algorithm": "norm",
}


LINKED = ("[applied on parse]", "[applied on instantiate]")  # how jsonargparse shows a link


class HelpFormatter(DefaultHelpFormatter):
    """Formats options with their types and true defaults, in plain text that fits 80 columns.

    argparse and jsonargparse offer no other way than to override what they name with an underscore.
    """

    def add_argument(self, action: Action) -> None:
        # neither links between settings, nor a config file for each section
        if action.metavar not in (*LINKED, "CONFIG"):
            super().add_argument(action)

    def _get_help_string(self, action: Action) -> str:
        parent, _, last = action.dest.rpartition(".")
        if last == "help" and parent:
            return "Show the arguments of a class, and exit."
        text = HELP.get(action.dest) or plain_text(action.help or "")
        default = default_text(action)
        in_metavar = str(action.metavar or "").startswith("{") and not is_long(action.metavar)
        notes = ["" if in_metavar else type_text(getattr(action, "_typehint", None))]
        if default:
            notes.append(f"default: {default}")
        elif action.required and action.option_strings:
            notes.append("required")
        shown = "; ".join(note for note in notes if note)
        text += f" ({shown})" if shown else ""
        if action.dest in CLASSES:
            text += f" Classes: {', '.join(classes_to_name(action.dest))}."
        return text.replace("%", "%%") if "%(" in text else text

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        # `--data.images+`, which appends to a list, is for the few who know of it
        names = ", ".join(name for name in action.option_strings if not name.endswith("+"))
        if action.nargs == 0:
            return names
        return (
            f"{names} {self._format_args(action, self._get_default_metavar_for_optional(action))}"
        )

    def _format_args(self, action: Action, default_metavar: str) -> str:
        shown = super()._format_args(action, default_metavar)
        if "CLASS_PATH_OR_NAME" in shown:
            return "CLASS"
        return default_metavar if is_long(shown) else shown


class WideHelpFormatter(HelpFormatter):
    """Puts every description below its option, where names are too long for two columns."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        kwargs.setdefault("max_help_position", 8)
        super().__init__(prog, **kwargs)  # type: ignore[no-untyped-call]


def is_long(metavar: Any) -> bool:
    """Tell whether the choices of an option would not fit beside it."""
    return len(str(metavar)) > 40


def plain_text(text: str) -> str:
    """Take Sphinx markup and the sentence about the default, which is shown, out of a description.

    Example:
        >>> plain_text("Uses :class:`~torch.nn.ReLU`. Default: ``None``.")
        'Uses ReLU.'
    """
    text = re.sub(r"\s*Default: `*[^`\s]*`*\.?$", "", " ".join(text.split()))
    text = re.sub(r":\w+:`~(?:\w+\.)*(\w+)`", r"\1", text)
    return re.sub(r":\w+:`([^`]+)`", r"\1", text).replace("``", "`")


def type_text(hint: Any) -> str:
    """Write what a type accepts, as far as that is numbers, switches and choices.

    Example:
        >>> type_text(int | None), type_text(Literal["epoch", "step"]), type_text(list[int] | str)
        ('int', 'epoch | step', 'list of int')
    """
    return " | ".join(dict.fromkeys(accepted_by(hint)))


def accepted_by(hint: Any) -> Iterator[str]:
    """Yield what `type_text` joins, for each type of a union."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        for each in arguments:
            yield from accepted_by(each)
    elif origin is Literal:
        yield from map(str, arguments)
    elif hint is bool:
        yield from ("true", "false")
    elif hint in (int, float):
        yield hint.__name__
    elif origin in (list, Sequence):
        yield from (f"list of {each}" for each in accepted_by(arguments[0]))


def default_text(action: Action) -> str:
    """Write the default of an option as it would be given; nothing if there is none."""
    default = action.default
    if default is None:
        return DEFAULTS.get(action.dest, "")
    if default is SUPPRESS or not action.option_strings:
        return ""
    if isinstance(default, Namespace):
        default = default.as_dict()
    if isinstance(default, dict) and "class_path" in default:
        arguments = default.get("init_args") or {}
        name = str(default["class_path"]).rpartition(".")[2]
        return ", ".join([name, *(f"{key} {value}" for key, value in arguments.items())])
    if isinstance(default, bool):
        return str(default).lower()
    return str(list(default) if isinstance(default, tuple) else default)
