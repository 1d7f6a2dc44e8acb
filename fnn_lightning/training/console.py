"""What a run shows in the terminal."""

import time
from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import nn
from tqdm import tqdm

from fnn_lightning.datamodule import validates_on_test_set
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.runs.signals import terminate_on_sigterm
from fnn_lightning.training.multi_step import why_single_steps
from fnn_lightning.training.threads import Threads


class RunProgressBar(callbacks.TQDMProgressBar):
    """Lightning's progress bar, drawn at most ten times a second and without the run's number.

    It leaves room at the end of the line for what the terminal shows of Ctrl-C.
    """

    acts_every_n_steps = 0

    def __init__(self) -> None:
        super().__init__()
        self._drawn = 0.0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if time.monotonic() - self._drawn > 0.1 or trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args)
            self._drawn = time.monotonic()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def init_train_tqdm(self) -> Tqdm:
        return leave_room(super().init_train_tqdm())

    def init_validation_tqdm(self) -> Tqdm:
        return leave_room(super().init_validation_tqdm())

    def init_test_tqdm(self) -> Tqdm:
        return leave_room(super().init_test_tqdm())

    def init_predict_tqdm(self) -> Tqdm:
        return leave_room(super().init_predict_tqdm())


def leave_room(bar: Tqdm) -> Tqdm:
    """Make a bar narrower than the terminal, so that `^C^C` after it fits into its line."""
    shape = bar.dynamic_ncols

    def narrower(file: Any) -> tuple[int | None, int | None]:
        columns, rows = shape(file)
        return (max(columns - 4, 1) if columns else columns), rows

    if shape:  # None without a terminal
        bar.dynamic_ncols = narrower
    return bar


class Console(callbacks.Callback):
    """Prints a header, a line after every validation, and the results of the other stages."""

    def __init__(self) -> None:
        self._has_header = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_header = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not when training starts: the module's callbacks, which come after this one, choose then
        if not self._has_header:
            self._print_header(trainer, pl_module)
            self._has_header = True

    def _print_header(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FNNLitModule)
        linear = [layer for layer in pl_module.network.layers if isinstance(layer, nn.Linear)]
        widths = [linear[0].in_features, *(layer.out_features for layer in linear)]
        activation = f" {pl_module.hparams['activation']}" if len(linear) > 1 else ""
        parameters = sum(parameter.numel() for parameter in pl_module.parameters())
        optimizer = type(trainer.optimizers[0]).__name__
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self._print(
            trainer,
            f"network    {'–'.join(map(str, widths))}{activation}, {parameters:,} parameters\n"
            f"optimizer  {optimizer}, learning rate {lr:g}\n"
            f"device     {trainer.world_size} × {pl_module.device.type}{threads(trainer)}, "
            f"{trainer.num_training_batches:,} batches an epoch\n"
            f"steps      {self._steps(trainer)}",
        )
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.enable_validation:
            self._print(trainer, "validation none")
        elif validates_on_test_set(datamodule):
            self._print(
                trainer,
                "validation watches the test set, since val_size is 0; nothing is selected by it",
            )

    @staticmethod
    def _steps(trainer: Trainer) -> str:
        reason = why_single_steps(trainer, FNNLitModule)
        return f"single steps: {reason}" if reason else "multi-step loop"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FNNLitModule)
        trained = pl_module.train_metrics.since_validation.update_called
        if not trained or trainer.barebones:  # which logs nothing
            self._print_counts(trainer, pl_module, "val")
        elif not trainer.sanity_checking:
            values = trainer.callback_metrics
            self._print(
                trainer,
                f"step {trainer.global_step:>6,}   "
                f"train loss {pl_module.train_metrics.since_validation.compute():.4f}   "
                f"val loss {values['val/loss']:.4f}   val acc {100 * values['val/acc']:.2f} %",
            )

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_counts(trainer, pl_module, "test")

    def _print_counts(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, FNNLitModule)
        for prefix, (correct, total) in pl_module.counts.items():
            if prefix.startswith(stage):
                name = "training set" if prefix.endswith("train_set_") else f"{stage} set"
                if stage == "val" and validates_on_test_set(trainer.datamodule):  # type: ignore[attr-defined]
                    name = "test set, which validation watches since val_size is 0"
                self._print(
                    trainer,
                    f"{name}: Got {correct:,} / {total:,} correct ({100 * correct / total:.2f} %)",
                )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # Otherwise they are drawn again when Python exits, below what is printed by then.
        bar = trainer.progress_bar_callback
        if isinstance(bar, callbacks.TQDMProgressBar):
            for stage in ("val", "test", "predict", "train"):
                with suppress(TypeError):  # there is none of this stage
                    getattr(bar, f"{stage}_progress_bar").close()

    @staticmethod
    def _print(trainer: Trainer, text: str) -> None:
        if trainer.is_global_zero:
            tqdm.write(text)  # `print` would run into a progress bar


def threads(trainer: Trainer) -> str:
    """Say how many threads a run has on the CPU; nothing if that is not known."""
    given = trainer.callbacks  # type: ignore[attr-defined]
    for each in given:
        if isinstance(each, Threads) and each.varies and each.most > 1:
            return f", up to {each.most} threads"
        if isinstance(each, Threads) and each.count:
            return f", {each.count} thread{'s' * (each.count > 1)}"
    return ""


class TerminateOnSigterm(callbacks.Callback):
    """Lets SIGTERM end stages that have nothing to save; the Trainer would finish them first."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            terminate_on_sigterm()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        terminate_on_sigterm()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        terminate_on_sigterm()
