"""What a run shows in the terminal: a header, a table, and the results of the other stages."""

import math
import os
import sys
import textwrap
import time
from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from tqdm import tqdm

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.data.datasets import DIGITS
from fnn_lightning.datamodule import validates_on_test_set
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.runs.signals import terminate_on_sigterm
from fnn_lightning.training.checkpointing import RunCheckpoint
from fnn_lightning.training.ema import EMA
from fnn_lightning.training.multi_step import why_single_steps
from fnn_lightning.training.progress_bar import count_steps, epoch_of, loss_text, steps_per_epoch
from fnn_lightning.training.threads import Threads

COLUMNS, KEY_WIDTH = 80, 11
COLUMN_WIDTHS = {
    "epoch": 9,
    "step": 9,
    "train loss": 10,
    "train acc": 9,
    "val loss": 8,
    "val acc": 8,
    "time": 8,
}
DIM, GREEN = "2", "32"
MAX_INITIAL_SHARE = 0.1  # of the first weights in an average, before it is worth a line


class Console(callbacks.Callback):
    """Prints a header, a row after every validation, and the results of the other stages.

    Without validation there is a row for every epoch. A `*` marks the row whose weights are the
    best so far, which `best.ckpt` keeps.
    """

    def __init__(self) -> None:
        self._has_header = self._has_head = False
        self._began = 0.0

    acts_every_n_steps = 0  # the first it sees is enough

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_header = self._has_head = False
        self._began = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not when training starts: the module's callbacks, which come after this one, choose then
        self._print_header(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # an epoch that is resumed in its middle has no start
        self._print_header(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a run that resumes at the end of an epoch may validate first
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._print_header(trainer, pl_module)

    def _print_header(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._has_header:
            return
        self._has_header = True
        assert isinstance(pl_module, FNNLitModule)
        for key, text in describe_run(trainer, pl_module).items():
            print_line(trainer, key, text)
        if not trainer.barebones:
            self._print_head(trainer)

    def _print_head(self, trainer: Trainer) -> None:
        self._has_head = True
        head = "  ".join(f"{name:>{width}}" for name, width in COLUMN_WIDTHS.items())
        given = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(each, RunCheckpoint) and each.monitor for each in given):
            head += "  best"
        write(trainer, f"\n{styled(head, DIM)}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, FNNLitModule)
        means = pl_module.train_metrics.means_since_validation()
        if means is None or trainer.barebones:  # which logs nothing
            self._print_counts(trainer, pl_module, "val")
        else:
            values = trainer.callback_metrics
            self._print_row(trainer, means, (float(values["val/loss"]), float(values["val/acc"])))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.enable_validation or trainer.barebones:
            return
        assert isinstance(pl_module, FNNLitModule)
        means = pl_module.train_metrics.means_since_validation()
        if means is not None:  # a `training_step` of the user's own may measure nothing
            self._print_row(trainer, means)

    def _print_row(
        self,
        trainer: Trainer,
        train: tuple[float, float],
        val: tuple[float, float] | None = None,
    ) -> None:
        """Print loss and accuracy of training since the last row, and those of a validation."""
        if not self._has_head:  # of a run that is resumed after its last step
            self._print_head(trainer)
        cells = [
            epoch_of(trainer),
            f"{trainer.global_step:,}",
            *loss_and_acc_cells(train),
            *(loss_and_acc_cells(val) if val else ("", "")),
            clock(time.monotonic() - self._began),
        ]
        row = "  ".join(
            f"{cell:>{width}}" for cell, width in zip(cells, COLUMN_WIDTHS.values(), strict=True)
        )
        # callbacks that write checkpoints come after this one
        is_best = trainer.state.fn == "fit" and any(
            isinstance(each, RunCheckpoint) and each.improves(trainer)
            for each in trainer.callbacks  # type: ignore[attr-defined]
        )
        write(trainer, f"{row}  {styled('*', GREEN)}" if is_best else row)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if reason := why_stopped(trainer):
            print_line(trainer, "stopped", reason)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_counts(trainer, pl_module, "test")

    def _print_counts(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, FNNLitModule)
        for prefix, (correct, total) in pl_module.counts.items():
            if prefix.startswith(stage):
                name = "training set" if prefix.endswith("train_set_") else f"{stage} set"
                dataset = getattr(trainer.datamodule, "dataset", "mnist")  # type: ignore[attr-defined]
                if dataset != "mnist":
                    name += f" of {dataset}"
                if stage == "val" and validates_on_test_set(trainer.datamodule):  # type: ignore[attr-defined]
                    name = "test set, which validation watches since val_size is 0"
                write(
                    trainer,
                    f"{name}: Got {correct:,} / {total:,} correct ({100 * correct / total:.2f} %)",
                )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # Otherwise they are drawn again when Python exits, below what is printed by then.
        progress_bar = trainer.progress_bar_callback
        if isinstance(progress_bar, callbacks.TQDMProgressBar):
            for stage in ("val", "test", "predict", "train"):
                with suppress(TypeError):  # there is none of this stage
                    bar = getattr(progress_bar, f"{stage}_progress_bar")
                    bar.leave = True  # where it stopped, and the terminal's ^C behind it
                    bar.close()


def describe_run(trainer: Trainer, module: FNNLitModule) -> dict[str, str]:
    """Describe a run that is about to train, as the lines of its header.

    Returns:
        What each line says, by its key of at most ten characters.
    """
    parameters = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(each.numel() for each in module.parameters() if each.requires_grad)
    of_them = f", {trained:,} of them trained" if trained != parameters else ""
    lines = {
        "data": describe_data(trainer),
        "network": f"{module.network.summary}, {parameters:,} parameters{of_them}",
        "optimizer": describe_optimizer(trainer, module),
        "length": describe_length(trainer),
        "device": f"{trainer.world_size} × {module.device.type}{threads(trainer)}",
    }
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    lines["device"] += describe_seed(datamodule)
    reason = why_single_steps(trainer, FNNLitModule)
    if reason and module.multi_step:
        lines["steps"] = f"single steps, which take longer in a small network: {reason}"
    if trainer.global_step:
        lines["resumed"] = f"after step {trainer.global_step:,}"
    if trainer.enable_validation and validates_on_test_set(datamodule):
        lines["validation"] = "watches the test set, since val_size is 0; nothing is selected by it"
    elif not trainer.enable_validation:
        lines["validation"] = "none"
    elif module.teachers or not module.training_loss.is_plain:
        smoothing = module.training_loss.label_smoothing
        differs = [f"label smoothing {smoothing:g}"] * (smoothing > 0)
        differs += ["class weights"] * (module.training_loss.class_weights is not None)
        differs += ["teachers"] * bool(module.teachers)
        lines["losses"] = f"train loss has {' and '.join(differs)}, val loss none: not comparable"
    steps = count_steps(trainer)
    for each in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(each, EMA) and steps and (share := each.decay**steps) > MAX_INITIAL_SHARE:
            lines["average"] = (
                f"EMA of decay {each.decay:g}: after {count(steps, 'step')} the first weights "
                f"are {100 * share:.0f} % of it: train longer, or lower --ema.decay"
            )
    return lines


def describe_data(trainer: Trainer) -> str:
    """Say how many images train and validate the network."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    loader: Any = trainer.train_dataloader
    if not isinstance(loader, InMemoryDataLoader):
        batches = trainer.num_training_batches
        number = "" if math.isinf(batches) else f"{batches:,} "
        return f"{number}batches an epoch from a {type(loader).__name__}"
    name = f"{datamodule.dataset}: " if hasattr(datamodule, "dataset") else ""
    text = f"{name}{loader.image_count(int(trainer.num_training_batches)):,} images to train"
    val: Any = trainer.val_dataloaders
    if val is None and datamodule is not None and trainer.enable_validation:  # not yet needed
        val = datamodule.val_dataloader()
    if isinstance(val, InMemoryDataLoader) and not validates_on_test_set(datamodule):
        batches = trainer.num_val_batches[0] if trainer.num_val_batches else len(val)
        text += f", {val.image_count(int(batches)):,} to validate"
    class_names = getattr(datamodule, "class_names", DIGITS)
    if tuple(class_names) != DIGITS:
        text += f", {len(class_names):,} classes"
    text += f", batches of {loader.global_batch_size(0):,}"
    return text + ", augmented" * loader.augments


def describe_seed(datamodule: Any) -> str:
    """Say the seed of a run; nothing if there is none."""
    seed, data_seed = os.environ.get("PL_GLOBAL_SEED"), getattr(datamodule, "seed", None)
    if data_seed is None or seed == str(data_seed):
        return f", seed {seed}" if seed else ""
    return f", seed {seed}, of the data {data_seed}" if seed else f", seed of the data {data_seed}"


def describe_optimizer(trainer: Trainer, module: FNNLitModule) -> str:
    """Say the optimiser, its configured learning rate, warm-up and schedule."""
    optimizer = trainer.optimizers[0]
    group = optimizer.param_groups[0]
    # schedules have replaced `lr` by the rate of the first step
    lr = group.get("max_lr", group.get("initial_lr", group["lr"]))
    text = f"{type(optimizer).__name__}, learning rate {lr:g}"
    if warmup := module.schedule_lengths[0]:
        text += f", {count(warmup, 'step')} of warm-up"
    if schedule := module.optim.lr_scheduler:
        text += f", {schedule['class_path'].rpartition('.')[2]}"
    return text


def describe_length(trainer: Trainer) -> str:
    """Say how many epochs and steps a run has, and what else may end it."""
    per_epoch, steps = steps_per_epoch(trainer), count_steps(trainer)
    if math.isinf(per_epoch):
        text = count(steps, "step") if steps else "any number of steps"
    elif not steps:
        text = f"epochs of {count(int(per_epoch), 'step')}"
    elif steps % per_epoch:
        text = f"{count(steps, 'step')}, {steps / per_epoch:.3g} epochs of {per_epoch:,}"
    else:
        epochs = count(steps // int(per_epoch), "epoch")
        text = f"{epochs} of {count(int(per_epoch), 'step')}, {steps:,} in all"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, callbacks.Timer):
            text += f", at most {clock(callback.time_remaining() or 0)}"
        elif isinstance(callback, callbacks.EarlyStopping):
            text += f", or until {callback.monitor} stops improving"
    return text


def loss_and_acc_cells(loss_and_acc: tuple[float, float]) -> tuple[str, str]:
    """Write a loss and an accuracy as cells of the table.

    >>> loss_and_acc_cells((0.25, 0.5))
    ('0.2500', '50.00 %')
    """
    loss, acc = loss_and_acc
    return loss_text(loss), f"{100 * acc:.2f} %"


def why_stopped(trainer: Trainer) -> str | None:
    """Tell why training ends before its last step; None if it does not, or nothing is known."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, callbacks.EarlyStopping):
            if callback.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
                validations = count(callback.wait_count, "validation")
                return f"early, since {callback.monitor} has not improved for {validations}"
            if callback.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
                return f"early: {callback.stopping_reason_message}"
        if isinstance(callback, callbacks.Timer):
            remaining = callback.time_remaining()
            if remaining is not None and remaining <= 0:
                return "by its time limit"
    return None


def threads(trainer: Trainer) -> str:
    """Say how many threads a run has on the CPU; nothing if that is not known."""
    given = trainer.callbacks  # type: ignore[attr-defined]
    for each in given:
        if isinstance(each, Threads) and each.varies and each.most > 1:
            return f", up to {each.most} threads"
        if isinstance(each, Threads) and each.count:
            return f", {each.count} thread{'s' * (each.count > 1)}"
    return ""


def count(number: int, noun: str) -> str:
    """Write a number of things.

    >>> count(1, "step"), count(1925, "step")
    ('1 step', '1,925 steps')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def clock(seconds: float) -> str:
    """Write the time on a stopwatch.

    >>> clock(7.25), clock(95), clock(3725)
    ('7.2 s', '1:35', '1:02:05')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_line(trainer: Trainer, key: str, text: str) -> None:
    """Print a line of a run's header or result, with the key in a column of its own."""
    write(trainer, wrapped(key, text))


def wrapped(key: str, text: str) -> str:
    """Return such a line, wrapped at 80 columns."""
    width = COLUMNS - KEY_WIDTH
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return heading(key) + f"\n{' ' * KEY_WIDTH}".join(lines)


def heading(key: str) -> str:
    """Return the beginning of a line: what the line says, in a column of its own."""
    return styled(f"{key:<{KEY_WIDTH}}", DIM)


def styled(text: str, style: str) -> str:
    """Style text for a terminal that shows colours, unless NO_COLOR is set (no-color.org)."""
    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return f"\033[{style}m{text}\033[0m" if terminal and not os.environ.get("NO_COLOR") else text


def write(trainer: Trainer, text: str) -> None:
    """Print text on the first rank."""
    if trainer.is_global_zero:
        tqdm.write(text)  # `print` would run into a progress bar


class TerminateOnSigterm(callbacks.Callback):
    """Lets SIGTERM end stages that have nothing to save; the Trainer would finish them first."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            terminate_on_sigterm()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        terminate_on_sigterm()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        terminate_on_sigterm()
