"""Tells the dataloader how long the run is, so that its augmentation can end before that."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.errors import InputError
from fnn_lightning.training.progress_bar import count_steps, steps_per_epoch


class AugmentationEnd(callbacks.Callback):
    """Lets the augmentation of a run end where its `end` says."""

    acts_every_n_steps = 0

    def __init__(self) -> None:
        self._batches: int | None = None
        self._loaded: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._batches = self._loaded = None  # a Trainer can be used again

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader = trainer.train_dataloader
        if not isinstance(loader, InMemoryDataLoader) or loader.augmentation.end == 1:
            return
        steps = count_steps(trainer)
        if steps is None:
            raise InputError(
                "Expected --trainer.max_epochs or --trainer.max_steps, by which "
                "--data.augmentation.end knows when the run ends, but got neither"
            )
        per_epoch = int(trainer.num_training_batches)
        epochs, rest = divmod(steps, int(steps_per_epoch(trainer)))
        batches = epochs * per_epoch + min(rest * trainer.accumulate_grad_batches, per_epoch)
        if self._loaded not in (None, batches):
            raise InputError(
                "Expected --trainer.max_epochs and --trainer.max_steps to be those with which the "
                "run began, since --data.augmentation.end follows from them: "
                f"{self._loaded:,} batches then, but got {batches:,} now"
            )
        self._batches = batches
        loader.end_augmentation(batches, per_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._batches is None else {"batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict["batches"]
