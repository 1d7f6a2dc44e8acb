"""The progress bar of a run."""

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from fnn_lightning.runs.progress import leave_room

REDRAW_SECONDS = 0.1
BAR = "{percentage:3.0f} %|{bar}| {desc}, {remaining} left{postfix}"
WITHOUT_END = "{desc}, step {n_fmt}, {elapsed}{postfix}"  # of a run that only its time ends


class RunProgressBar(callbacks.TQDMProgressBar):
    """Lightning's progress bar, but one for the whole run, with the time that is left.

    It counts optimiser steps, is drawn at most ten times a second, leaves no line behind, and
    leaves room at the end of its line for what the terminal shows of Ctrl-C.
    """

    acts_every_n_steps = 0

    def __init__(self) -> None:
        super().__init__()
        self._drawn = 0.0

    def init_validation_tqdm(self) -> Tqdm:
        return leave_room(super().init_validation_tqdm())

    def init_test_tqdm(self) -> Tqdm:
        return leave_room(super().init_test_tqdm())

    def init_predict_tqdm(self) -> Tqdm:
        return leave_room(super().init_predict_tqdm())

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        steps = count_steps(trainer)
        bar = Tqdm(
            desc=f"epoch {epoch_of(trainer)}",
            total=steps,
            initial=trainer.global_step,  # a resumed run has some behind it
            disable=self.is_disabled,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0,  # the time left follows from the mean of all steps
            bar_format=BAR if steps else WITHOUT_END,
        )
        self.train_progress_bar = leave_room(bar)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self._draw(trainer, f"epoch {epoch_of(trainer)}")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if time.monotonic() - self._drawn > REDRAW_SECONDS:
            self._draw(trainer, f"epoch {epoch_of(trainer)}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, f"epoch {epoch_of(trainer)}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            super().on_validation_start(trainer, pl_module)
        elif not trainer.sanity_checking:
            self._draw(trainer, "validating")

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.state.fn != "fit":
            super().on_validation_batch_start(trainer, *args)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.state.fn != "fit":
            super().on_validation_batch_end(trainer, *args)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            super().on_validation_end(trainer, pl_module)

    def _draw(self, trainer: Trainer, description: str) -> None:
        bar = self.train_progress_bar
        if bar.disable:
            return
        bar.n = trainer.global_step
        bar.set_description_str(description, refresh=False)
        metrics = trainer.progress_bar_metrics
        shown = [f"loss {loss_text(metrics['train/loss'])}"] if "train/loss" in metrics else []
        if "train/acc" in metrics:
            shown.append(f"acc {100 * metrics['train/acc']:.2f} %")
        bar.set_postfix_str(", ".join(shown))  # and draws
        self._drawn = time.monotonic()


def loss_text(loss: Any) -> str:
    """Write a loss in at most eight characters.

    >>> loss_text(0.25), loss_text(22048195745856178094080)
    ('0.2500', '2.2e+22')
    """
    text = f"{loss:.4f}"
    return text if len(text) <= 8 else f"{loss:.3g}"


def epoch_of(trainer: Trainer) -> str:
    """Return the epoch of the last step, and the number of all if that is known: `3/7`."""
    steps, per_epoch = count_steps(trainer), steps_per_epoch(trainer)
    if math.isinf(per_epoch):  # as with an IterableDataset
        return f"{trainer.current_epoch + 1}"
    # not `current_epoch`, which is one more once the run has ended
    in_all = f"/{math.ceil(steps / per_epoch):,}" if steps else ""
    return f"{math.ceil(max(trainer.global_step, 1) / per_epoch):,}{in_all}"


def count_steps(trainer: Trainer) -> int | None:
    """Return the number of optimiser steps of a run; None if nothing but time ends it."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if 0 < steps < math.inf else None


def steps_per_epoch(trainer: Trainer) -> float:
    """Return the number of optimiser steps of an epoch; infinite if it never ends."""
    batches = trainer.num_training_batches
    if math.isinf(batches):
        return math.inf
    return max(1, -(-batches // trainer.accumulate_grad_batches))
