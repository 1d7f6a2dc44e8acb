"""Predictions: of a few images, or of a split, collected while the Trainer evaluates it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from fnn_lightning.data.dataloader import InMemoryDataLoader, all_gather_batch
from fnn_lightning.data.datasets import DIGITS, Framing
from fnn_lightning.datamodule import EVAL_BATCH_SIZE
from fnn_lightning.evaluation.calibration import to_probabilities

Kind = TypeVar("Kind", bound="Predictions")


class Prediction(NamedTuple):
    """What `FNNLitModule.predict` returns, for one image or for `N`, on the CPU."""

    classes: Tensor
    """The most probable class, an index into `class_names`: `int64` of shape `()`, or `(N,)`."""
    probabilities: Tensor
    """Of each class, `float32` of shape `(classes,)`, or `(N, classes)`; rows sum to 1."""


def predict_logits(module: LightningModule, images: Tensor) -> Tensor:
    """Compute the logits of the classes, in evaluation mode.

    Args:
        module: Computes logits; may be on another device than the images.
        images: Raw pixels 0–255 of shape `(N, 28, 28)`; `N` may be 0.

    Returns:
        `float32` of shape `(N, classes)`, on the CPU.
    """
    with evaluation_mode(module), torch.inference_mode():
        logits = [
            module(batch.to(module.device)).float().cpu()
            for batch in torch.split(images, EVAL_BATCH_SIZE)  # one, though empty, of no images
        ]
    # outside of inference mode, so that the result is an ordinary tensor
    return torch.cat(logits)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, and then each of its parts back in its earlier mode."""
    training = [each for each in module.modules() if each.training]
    module.eval()
    try:
        yield
    finally:
        for each in training:
            each.training = True


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network predicts for the `N` images of a split.

    Example:
        >>> images = torch.zeros(2, 28, 28, dtype=torch.uint8)
        >>> probabilities = torch.eye(10)[[3, 8]]
        >>> predictions = Predictions(images, torch.arange(2), torch.tensor([3, 5]), probabilities)
        >>> predictions.classes
        tensor([3, 8])
        >>> predictions.most_confident_mistakes(25)
        [1]
    """

    images: Tensor
    """The whole data set, raw pixels, `uint8` of shape `(M, 28, 28)`."""
    indices: Tensor
    """Which of its images the split holds, `int64` of shape `(N,)`."""
    labels: Tensor
    """True classes, indices into `class_names`: `int64` of shape `(N,)`."""
    probabilities: Tensor
    """Of each class, `float32` of shape `(N, classes)`; every row sums to 1."""
    class_names: Sequence[str] = DIGITS
    """Name of each class."""
    framing: Framing = "mnist"
    """How the images were brought to 28 × 28 pixels: see `FNNLitModule`."""
    temperature: float | None = None
    """What the logits were divided by; None if the network has no temperature."""
    uncalibrated: Tensor | None = None
    """With a temperature: what the probabilities are without it."""
    files: Sequence[str] = ()
    """Path of each image of the data set in its folder; none if it has no file of its own."""

    @classmethod
    def of_logits(
        cls: type[Kind],
        images: Tensor,
        indices: Tensor,
        labels: Tensor,
        logits: Tensor,
        module: Any,
    ) -> Kind:
        """Make the predictions of a network from its logits.

        Args:
            images: As in the class.
            indices: As in the class.
            labels: As in the class.
            logits: `float32` of shape `(N, classes)`.
            module: The network's `FNNLitModule`.
        """
        return cls(
            images,
            indices,
            labels,
            to_probabilities(logits, module.temperature),
            module.class_names,
            module.framing,
            module.temperature,
            None if module.temperature is None else logits.softmax(dim=1),
        )

    @cached_property
    def classes(self) -> Tensor:
        """Predicted classes, indices into `class_names`: `int64` of shape `(N,)`."""
        # those without the temperature, beside which rounding can make two of them equal
        given = self.probabilities if self.uncalibrated is None else self.uncalibrated
        return given.argmax(dim=1)

    @cached_property
    def confidence(self) -> Tensor:
        """Probabilities of the predicted classes, `float32` of shape `(N,)`."""
        return self.probabilities.amax(dim=1)

    @cached_property
    def is_correct(self) -> Tensor:
        """Whether each prediction is correct, `bool` of shape `(N,)`."""
        return self.classes == self.labels

    @cached_property
    def confusion(self) -> Tensor:
        """Number of images by true class (row) and predicted class.

        `int64` of shape `(classes, classes)`.
        """
        matrix: Tensor = multiclass_confusion_matrix(
            self.classes, self.labels, len(self.class_names)
        )
        return matrix

    def image(self, position: int) -> Tensor:
        """Return the raw pixels of one image of the split, `uint8` of shape `(28, 28)`."""
        return self.images[self.indices[position]]

    def image_as_seen(self, position: int) -> Tensor:
        """Return one image as people know it, `uint8` of shape `(28, 28)`: MNIST's as ink on white.

        Others are shown as they are, whatever is dark in them.
        """
        return seen(self.image(position), self.framing)

    def most_confident_mistakes(self, max_count: int) -> list[int]:
        """Find the wrong predictions with the highest confidence.

        Returns:
            Up to `max_count` positions in the split, the most confident mistake first.
        """
        mistakes = (~self.is_correct).nonzero().flatten()
        order = self.confidence[mistakes].argsort(descending=True, stable=True)
        positions: list[int] = mistakes[order[:max_count]].tolist()
        return positions


def seen(images: Tensor, framing: Framing) -> Tensor:
    """Turn MNIST's ink, light on dark, into ink on white; leave other images as they are.

    Args:
        images: Pixels 0–255.
        framing: How they were brought to 28 × 28.
    """
    return 255 - images if framing == "mnist" else images


class PredictionCollector(callbacks.Callback):
    """Collects the predictions on the validation or test images while the Trainer evaluates them.

    When validation or testing ends, a subclass gets them from `predictions`, the same on every
    rank. Only batches of an `InMemoryDataLoader` are collected.
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
        self._collect(outputs, trainer.val_dataloaders, batch_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx == 0:  # a second dataloader serves training images
            self._collect(outputs, first_test_dataloader(trainer), batch_idx)

    def _collect(self, outputs: Any, dataloader: Any, batch_idx: int) -> None:
        if isinstance(dataloader, InMemoryDataLoader):
            self._logits.append(all_gather_batch(outputs["logits"], dataloader, batch_idx))

    def predictions(self, dataloader: Any, module: Any) -> Predictions | None:
        """Return the predictions collected so far, or None if there are none.

        Args:
            dataloader: The one that served the images.
            module: The network's.
        """
        if not self._logits:
            return None
        logits = torch.cat(self._logits).float().cpu()
        indices = dataloader.indices.cpu()[: len(logits)]
        labels = dataloader.labels.cpu().index_select(0, indices)
        return Predictions.of_logits(dataloader.images.cpu(), indices, labels, logits, module)


def first_test_dataloader(trainer: Trainer) -> Any:
    """Return the dataloader of the test images; one of training images may follow it."""
    dataloaders = trainer.test_dataloaders
    return dataloaders[0] if isinstance(dataloaders, list) else dataloaders
