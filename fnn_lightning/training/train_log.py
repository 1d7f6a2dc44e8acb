"""Logs the mean loss and accuracy of training when they are due."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from torch import Tensor
from torch.optim import Optimizer

from fnn_lightning.errors import InputError
from fnn_lightning.training.metrics import TrainMetrics
from fnn_lightning.training.ranks import gather_from_ranks


class TrainLog(callbacks.Callback):
    """Logs `train/loss`, `train/acc` and `lr` every `log_every_n_steps` optimiser steps.

    Loss and accuracy are means over all images since they were last logged; `lr` is the learning
    rate of the last of these steps. The x-axis is the number of optimiser steps done. Checkpoints
    keep what has not been logged yet, so that the lines of a resumed run are those of one that was
    never interrupted.
    """

    acts_every_n_steps = 0

    def __init__(self) -> None:
        self.logged_step = 0
        """Number of optimiser steps at the last line of the log."""
        self.validated_step: int | None = None
        """Number of optimiser steps at the last validation."""
        self._lr = 0.0
        self._means: dict[str, Tensor] = {}
        self._loaded: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning gives `state_dict` no arguments
        self._trainer, self._module = trainer, pl_module
        # empty for another module: a Trainer that is used again keeps its callbacks
        self._metrics: TrainMetrics = getattr(pl_module, "train_metrics", None) or TrainMetrics()
        self._loaded = None  # by an earlier call, such as `test`; this one's comes after `setup`

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.logged_step, self.validated_step = 0, None
        self._means = {}
        self._metrics.reset()
        self._metrics.to(pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._lr = optimizer.param_groups[0]["lr"]  # schedules step before `on_train_batch_end`

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.log_if_due(trainer.global_step, self._lr)
        if self._means:
            pl_module.log_dict(self._means, prog_bar=True, logger=False)
            self._means = {}

    def log_if_due(self, step: int, lr: float) -> None:
        """Log if `log_every_n_steps` says so.

        Args:
            step: Number of optimiser steps done.
            lr: Learning rate of the last of them.
        """
        every = self._trainer.log_every_n_steps  # type: ignore[attr-defined]
        # with gradient accumulation several batches end at the same step
        if every and step % every == 0 and step != self.logged_step:
            self._log(step, lr)

    def _log(self, step: int, lr: float) -> None:
        if not self._metrics.empty:  # as with a training_step that does not measure
            self._means = self._metrics.compute_and_reset()
        values = {**self._means, "lr": torch.tensor(lr)}
        log_values(self._trainer, values, step)
        self.logged_step = step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._metrics.flush()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated_step = trainer.global_step
        self._metrics.end_validation()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.enable_validation:  # the terminal then shows the means of each epoch
            self._metrics.end_validation()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self.logged_step:
            self._log(trainer.global_step, self._lr)

    def finish(self, log: bool) -> None:
        """Finish the log of a run that was interrupted after its last step.

        Args:
            log: Whether the means since the last line of the log are still to be written.
        """
        if self._loaded is not None:
            self._restore()
            if log:
                self.on_train_end(self._trainer, self._module)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from; all ranks have to ask for it at the same step.

        A line of the log that is due is written first.
        """
        losses = self._metrics.losses()  # raises before any file is touched if one is not finite
        trainer = self._trainer
        if not trainer.training and not trainer.validating:
            return {}  # training has ended: there is nothing to continue
        # A callback may save before `on_train_batch_end` or `on_validation_end` comes to this one.
        self.log_if_due(trainer.global_step, self._lr)
        metrics = self._metrics.state_dict(validated=trainer.validating)
        return {
            "ranks": gather_from_ranks(metrics),
            "losses": losses,
            "logged_step": self.logged_step,
            "validated_step": trainer.global_step if trainer.validating else self.validated_step,
            "lr": self._lr,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict  # applied when the metrics are on their device

    def _restore(self) -> None:
        if self._loaded is None:
            return
        state, self._loaded = self._loaded, None
        states, rank = state["ranks"], self._trainer.global_rank
        if not states:
            raise InputError("Expected the metrics of one rank or more in the checkpoint")
        holds_sums = True
        if len(states) == self._trainer.world_size:
            states = [states[rank]]
        else:  # on another number of ranks, the first continues with the sums of all
            holds_sums = rank == 0
        self._metrics.load_state_dict(states, state["losses"], self._module.device, holds_sums)
        self.logged_step, self.validated_step = state["logged_step"], state["validated_step"]
        self._lr = state["lr"]


def log_values(trainer: Trainer, values: dict[str, Tensor], step: int) -> None:
    """Write values to all loggers, with the number of optimiser steps as their x-axis."""
    for logger in trainer.loggers:
        logger.log_metrics({name: value.item() for name, value in values.items()}, step)
