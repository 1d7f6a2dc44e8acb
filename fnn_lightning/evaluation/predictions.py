"""The predictions on a split: gathered while the Trainer evaluates it, for pictures and reports."""

from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from torch import Tensor

from fnn_lightning.data.dataloader import InMemoryDataLoader, all_gather_batch


class Predictions(NamedTuple):
    """What a network makes of the `N` images of a split."""

    pool: Tensor
    """Raw pixels of the data set that they are among, `uint8` of shape `(M, 28, 28)`."""
    indices: Tensor
    """Where in it they are, `int64` of shape `(N,)`."""
    labels: Tensor
    """The truth, `int64` of shape `(N,)`."""
    probabilities: Tensor
    """Of each digit, `float32` of shape `(N, 10)`; rows add up to 1."""

    @property
    def digits(self) -> Tensor:
        """The most probable digits, `int64` of shape `(N,)`."""
        return self.probabilities.argmax(dim=1)

    @property
    def confidence(self) -> Tensor:
        """The probabilities of these digits, `float32` of shape `(N,)`."""
        return self.probabilities.amax(dim=1)

    def image(self, position: int) -> Tensor:
        """Return the raw pixels of one image, `uint8` of shape `(28, 28)`."""
        return self.pool[self.indices[position]]

    def most_confident_mistakes(self, count: int) -> list[int]:
        """Find the wrong predictions that were held for most probable.

        Returns:
            Positions in the split, the surest mistake first, `count` of them or as many as there
            are.
        """
        wrong = (self.digits != self.labels).nonzero().flatten()
        order = self.confidence[wrong].argsort(descending=True, stable=True)
        positions: list[int] = wrong[order[:count]].tolist()
        return positions


class PredictionCollector(callbacks.Callback):
    """Gathers the predictions on the validation or test images while the Trainer evaluates them.

    A callback derived from it finds them in `predictions` when validation or testing ends, the
    same on all processes. None are gathered of batches that another dataloader serves.
    """

    def __init__(self) -> None:
        self._logits: list[Tensor] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logits.clear()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logits.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._gather(outputs, trainer.val_dataloaders, batch_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx == 0:  # the training images can follow
            self._gather(outputs, test_loader(trainer), batch_idx)

    def _gather(self, outputs: Any, source: Any, batch_idx: int) -> None:
        if isinstance(source, InMemoryDataLoader):
            self._logits.append(all_gather_batch(outputs["logits"], source, batch_idx))

    def predictions(self, source: Any) -> Predictions | None:
        """Put together what was gathered of a split.

        Args:
            source: What served the split.
        """
        if not self._logits:
            return None
        logits = torch.cat(self._logits).float().cpu()
        served = source.indices[: len(logits)]
        labels = source.labels.index_select(0, served)
        return Predictions(source.images, served, labels, logits.softmax(dim=1))


def test_loader(trainer: Trainer) -> Any:
    """Return what serves the test images."""
    sources = trainer.test_dataloaders
    return sources[0] if isinstance(sources, list) else sources
