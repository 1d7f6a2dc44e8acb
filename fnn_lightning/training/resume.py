"""Keeps what Lightning's checkpoints leave out, so that a resumed run is exact."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, callbacks

from fnn_lightning.errors import InputError
from fnn_lightning.training.lr_finder import check_finders
from fnn_lightning.training.multi_step import (
    ends_an_epoch,
    epoch_is_ending,
    resumed_within_epoch,
    set_max_steps,
    step_plateau_schedulers,
)
from fnn_lightning.training.ranks import gather_from_ranks


class Resume(callbacks.Callback):
    """Keeps, in every checkpoint, what Lightning's own part of it leaves out.

    That is the state of each rank's random numbers, the metric that ReduceLROnPlateau is about to
    see, and the length of schedules that follow from the length of the run.
    """

    def __init__(self) -> None:
        self.has_begun = False
        """Whether training has begun: everything a checkpoint brings is in its place."""
        self._loaded: dict[str, Any] | None = None
        self._max_steps: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning gives `state_dict` no arguments
        self._trainer, self._module = trainer, pl_module
        # by an earlier call, such as `test`; this one's comes after `setup`
        self._loaded = self._max_steps = None
        if stage == "fit":
            self.has_begun = False
            self._former_optimizers = trainer.optimizers

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        fitting = trainer.state.fn == "fit"
        if fitting and self.has_begun:
            raise InputError(
                "Expected a learning rate to be searched for before training begins, but got a "
                "finder that does so in its middle: search in a run of its own"
            )
        # optimisers are made after a run's checkpoint is loaded, and before a finder loads its own
        if fitting and trainer.optimizers is self._former_optimizers:
            check_finders(trainer)
        if fitting and ends_an_epoch(checkpoint) and checkpoint["global_step"] < trainer.max_steps:
            self._max_steps = trainer.max_steps

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_schedule()
        if self._max_steps is not None:
            # Not earlier: schedules take their length from it. See `set_max_steps`.
            set_max_steps(trainer, -1)

    def _check_schedule(self) -> None:
        """Refuse to resume with a schedule that would have become longer or shorter."""
        lengths = self._lengths()
        before = (self._loaded or {}).get("schedule_lengths", lengths)
        if lengths != before:
            raise InputError(
                "Expected --trainer.max_epochs and --trainer.max_steps to be those with which the "
                "run began, since the schedule of the learning rate follows from them: "
                f"{before[0]:,} steps of warm-up and a length of {before[1]:,} then, "
                f"but got {lengths[0]:,} and {lengths[1]:,} now"
            )

    def _lengths(self) -> list[int]:
        return list(getattr(self._module, "schedule_lengths", ()))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._max_steps is not None:
            set_max_steps(trainer, self._max_steps)
            self._max_steps = None
        states = self._restore()
        rank = trainer.global_rank
        if rank >= states:  # otherwise a layer of yours would draw what it draws on another rank
            seed = np.random.SeedSequence((torch.initial_seed(), rank, trainer.global_step))
            torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
        self.has_begun = True

    def _restore(self) -> int:
        """Continue from what was loaded, and return the number of ranks it was saved on."""
        if self._loaded is None:
            return 1
        state, self._loaded = self._loaded, None
        if state["plateau"] is not None:
            step_plateau_schedulers(self._trainer, float(state["plateau"]))
        ranks = state["random_states"]
        own = ranks[self._trainer.global_rank % len(ranks)]
        torch.set_rng_state(own["cpu"])
        if self._module.device.type == "cuda" and "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"], self._module.device)
        return len(ranks)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if resumed_within_epoch(trainer):
            for config in trainer.lr_scheduler_configs:
                if config.reduce_on_plateau:
                    metric = trainer.callback_metrics.get(str(config.monitor))
                    if metric is None:
                        raise InputError(
                            "Expected a checkpoint saved before or after a validation, but got one "
                            "saved while it ended: ReduceLROnPlateau cannot resume from it"
                        )
                    step_plateau_schedulers(trainer, metric)

    def state_dict(self) -> dict[str, Any]:
        trainer, device = self._trainer, self._module.device
        if not trainer.training and not trainer.validating:
            return {}  # training has ended: there is nothing to continue
        own = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(device)
        return {
            "random_states": gather_from_ranks(own),
            "plateau": self._plateau_metric(),
            "schedule_lengths": self._lengths(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict  # applied when the schedules are there

    def _plateau_metric(self) -> float | None:
        """Return the metric that ReduceLROnPlateau is about to see at the end of an epoch.

        Lightning shows it only after the callbacks have saved.
        """
        for config in self._trainer.lr_scheduler_configs:
            if config.reduce_on_plateau and epoch_is_ending(self._trainer):
                metric = self._trainer.callback_metrics.get(str(config.monitor))
                if metric is None:
                    raise InputError(
                        "Expected a validation before the first epoch ends, since "
                        f"ReduceLROnPlateau looks at {config.monitor} after every epoch, but got "
                        "none: lower --trainer.check_val_every_n_epoch or "
                        "--trainer.val_check_interval"
                    )
                return float(metric)
        return None
