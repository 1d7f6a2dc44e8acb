"""Checkpoints and early stopping."""

import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.datamodule import MNISTDataModule, validates_on_test_set
from fnn_lightning.errors import InputError
from fnn_lightning.runs.loggers import folder_of_run
from fnn_lightning.runs.signals import Stopped, StopSignals
from fnn_lightning.training.multi_step import training_is_done, validation_is_due

Metric = Literal["val/acc", "val/loss", "val/balanced_acc", "val/f1"]
Mode = Literal["min", "max"]


def default_mode(metric: str) -> Mode:
    """Return whether the lowest or the highest value of a metric is best, by its name."""
    return "min" if metric.endswith("loss") else "max"


class RunCheckpoint(callbacks.Checkpoint):
    """Keeps `last.ckpt`, the step saved last, and `best.ckpt`, if a metric is monitored.

    Both are in `checkpoints/` of the run's folder. `last.ckpt` is written after every validation,
    at the end of every epoch and at the end of training, whatever the monitored metric did;
    Lightning's `ModelCheckpoint` writes it only together with a new best one (its issue 5030).
    From either, training resumes bit for bit as if it had never been interrupted.

    When training on an `MNISTDataModule` ends, both get what is fitted to their weights: see
    `complete_checkpoints`.

    A signal to stop (Ctrl-C, SIGTERM) is obeyed after the step, once `last.ckpt` is written. With
    `writes` set to false it is obeyed too, but nothing is written.

    Args:
        monitor: Name of a logged metric. The checkpoint with its best value is kept as
            `best.ckpt`.
        mode: Whether the lowest or the highest value is best. By default the lowest of a metric
            whose name ends in `loss`, and the highest of any other.
        every_n_steps: Write `last.ckpt` after every so many optimiser steps as well.
        every_n_minutes: Write `last.ckpt` again after so many minutes at the latest.

    Raises:
        Stopped: In training, when a signal was obeyed.
    """

    def __init__(
        self,
        monitor: Metric | None = None,
        mode: Mode | None = None,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise InputError(f"Expected `every_n_steps` to be 1 or more, but got {every_n_steps}")
        if every_n_minutes is not None and not every_n_minutes > 0:
            raise InputError(
                f"Expected `every_n_minutes` to be positive, but got {every_n_minutes}"
            )
        self.monitor = monitor
        self.mode = mode or default_mode(monitor or "")
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.writes = True
        self.best_score: float | None = None
        self.best_model_path = ""
        self.last_model_path = ""
        self._trainer: Trainer | None = None
        self._module: LightningModule | None = None
        self._fits = self._has_saved = False
        self._signals = StopSignals()
        self._stop = 0
        self._seen_step = self._saved_step = 0
        self._saved_at = 0.0

    @property
    def acts_every_n_steps(self) -> int:
        """Number of optimiser steps between two writes; 0 if steps do not matter."""
        return self.every_n_steps or 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._fits = stage == "fit"
        if not self._fits or (trainer is self._trainer and pl_module is self._module):
            return
        # A Trainer that fits another module has the same logger, but this is another run.
        again = trainer is self._trainer and self._has_saved
        self._trainer, self._module, self._has_saved = trainer, pl_module, False
        self.best_score = None
        self.best_model_path = self.last_model_path = ""
        self.folder = folder_of_run(trainer, self.writes, of_logger=not again) / "checkpoints"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.writes and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._refuse_foreign_checkpoints(trainer)

    def _refuse_foreign_checkpoints(self, trainer: Trainer) -> None:
        """Refuse to replace the checkpoints of another run."""
        found = [each for each in ("last.ckpt", "best.ckpt") if (self.folder / each).exists()]
        resumed = Path(trainer.ckpt_path or "").resolve().parent
        if found and not self._has_saved and resumed != self.folder.resolve():
            raise InputError(
                f"Expected a folder without checkpoints for a new run, but {self.folder} holds "
                f"{found[0]} of another: give the logger another folder, or resume from it with "
                "`ckpt_path`"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop = 0
        self._seen_step = self._next_look = trainer.global_step
        self._saved_at = time.monotonic()
        self._looked = (self._seen_step, self._saved_at)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._signals.listen()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step == self._seen_step:
            return  # gradients are being accumulated, and would not be in the checkpoint
        self._seen_step = step
        late = self._poll_signals(trainer, step)
        due = self.every_n_steps is not None and step % self.every_n_steps == 0
        ends = step == trainer.max_steps or trainer.should_stop
        # Training resumes exactly from here only if nothing else follows in this step;
        # otherwise `last.ckpt` is written when that is done.
        if (due or late or self._stop or ends) and not (
            trainer.is_last_batch or validation_is_due(trainer)
        ):
            self._save_last(trainer)
            self._obey()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # At the end of an epoch `on_train_epoch_end` follows at once, and saves a state from which
        # training resumes with the next epoch.
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.is_last_batch:
            self._save_best(trainer)
            self._save_last(trainer)
            self._obey()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_last_batch:  # otherwise the run ends within an epoch, and this is saved
            self._save_best(trainer)
            self._save_last(trainer)
            if not training_is_done(trainer):
                self._obey()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save_last(trainer)
        self.complete(trainer, pl_module)
        self._signals.release()

    def complete(self, trainer: Trainer, module: Any) -> None:
        """Complete the checkpoints, and give the module the temperature of the last one.

        Those of a module or of dataloaders that are not this package's are left as they are.
        """
        # their imports lead here
        from fnn_lightning.lit_module import FNNLitModule
        from fnn_lightning.training.post_hoc import complete_checkpoints

        data = trainer.datamodule  # type: ignore[attr-defined]
        fits = isinstance(module, FNNLitModule) and isinstance(data, MNISTDataModule)
        if not (self.last_model_path and fits):
            return
        temperature = None
        if trainer.is_global_zero:
            validates = trainer.enable_validation and not validates_on_test_set(data)
            training: Any = data.train_dataloader()  # a derived data module may return any
            held_out: Any = data.val_dataloader() if validates else None
            if isinstance(training, InMemoryDataLoader) and isinstance(
                held_out, InMemoryDataLoader | None
            ):
                temperature = complete_checkpoints(
                    [path for path in (self.best_model_path, self.last_model_path) if path],
                    training,
                    held_out,
                    trainer.limit_val_batches,
                )
        module.temperature = trainer.strategy.broadcast(temperature)

    def state_dict(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor,
            "best_score": self.best_score,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._fits:
            return  # the state of a run that is tested
        last = self.folder / "last.ckpt"
        self.last_model_path = str(last) if last.is_file() else ""
        score = state_dict["best_score"]
        if state_dict["monitor"] == self.monitor and score is not None and math.isfinite(score):
            self.best_score = float(score)
            best = self.folder / "best.ckpt"  # wherever the folder lies now
            self.best_model_path = str(best) if best.is_file() else ""

    def improves(self, trainer: Trainer) -> bool:
        """Return whether the weights just validated are the best so far, and will be kept."""
        metrics = trainer.callback_metrics
        writes = self.writes and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.monitor not in metrics or not writes:
            return False
        sign = 1 if self.mode == "max" else -1
        best = -math.inf if self.best_score is None else sign * self.best_score
        return sign * float(metrics[self.monitor]) > best

    def _save_best(self, trainer: Trainer) -> None:
        if self.improves(trainer):
            self.best_score = float(trainer.callback_metrics[str(self.monitor)])
            self.best_model_path = str(self.folder / "best.ckpt")
            self._save(trainer, "best.ckpt")

    def _save_last(self, trainer: Trainer) -> None:
        if self.writes and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.last_model_path = self._save(trainer, "last.ckpt")
            self._saved_step = trainer.global_step
            self._saved_at = time.monotonic()

    def _poll_signals(self, trainer: Trainer, step: int) -> bool:
        """Look for a signal to stop, and tell whether `every_n_minutes` are over, on any rank.

        Communication can take as long as the step of a small net, so the ranks communicate about
        once a second, all at the same step. The few steps since the last time tell little about
        the next ones, so at most twice as many are waited for.
        """
        now = time.monotonic()
        late = now - self._saved_at > 60 * (self.every_n_minutes or math.inf)
        if trainer.world_size == 1:
            self._stop = self._signals.received
        elif step < self._next_look:
            return False
        else:
            steps = step - self._looked[0]
            seconds = max(now - self._looked[1], 1e-3)  # a coarse clock may show none
            steps_a_second = int(steps / seconds)
            news = torch.tensor(
                [self._signals.received, late, steps_a_second], device=trainer.strategy.root_device
            )
            torch.distributed.all_reduce(news, torch.distributed.ReduceOp.MAX)
            self._stop, late, steps_a_second = news.tolist()
            self._looked = (step, now)
            self._next_look = step + max(1, min(steps_a_second, 2 * steps))
        return bool(late)

    def _obey(self) -> None:
        if self._stop:
            raise Stopped(self._stop, self.last_model_path)

    def _save(self, trainer: Trainer, name: str) -> str:
        path = self.folder / name
        for logger in trainer.loggers:
            logger.save()  # a checkpoint must not be ahead of the curves
        trainer.save_checkpoint(path, weights_only=False)  # the whole state, to resume from
        self._has_saved = True
        return str(path)


class RunEarlyStopping(callbacks.EarlyStopping):
    """Lightning's `EarlyStopping`, off unless it is given a patience.

    Args:
        patience: Stop after so many validations in a row without an improvement; never by
            default.
        monitor: Name of a logged metric.
        mode: Whether lower or higher is better. By default lower for a metric whose name ends in
            `loss`, and higher for any other.
        min_delta: The smallest change that counts as an improvement, in the metric's unit.
    """

    def __init__(
        self,
        patience: int | None = None,
        monitor: Metric = "val/acc",
        mode: Mode | None = None,
        min_delta: float = 0.0,
    ) -> None:
        if patience is not None and patience < 0:
            raise InputError(f"Expected `patience` to be 0 or more, but got {patience}")
        super().__init__(
            monitor,
            min_delta=min_delta,
            patience=patience or 0,
            mode=mode or default_mode(monitor),
            strict=False,  # an epoch may end without a validation
        )
        self.enabled = patience is not None
        self._fits = True
        self._module: LightningModule | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._fits = stage == "fit"
        if self._fits and pl_module is not self._module:  # a Trainer can fit another one
            self._module = pl_module
            self.wait_count, self.stopped_epoch = 0, 0
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            self.best_score = torch.tensor(math.inf if self.mode == "min" else -math.inf)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._fits:
            return  # the state of a run that is tested
        super().load_state_dict({**state_dict, "patience": self.patience})  # may have been raised

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reason = self.stopping_reason
        exhausted = reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
        if exhausted and self.wait_count < self.patience:
            return
        # whether it was about to stop when the checkpoint was saved
        trainer.should_stop = trainer.should_stop or reason is not EarlyStoppingReason.NOT_STOPPED
