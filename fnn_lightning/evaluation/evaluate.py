"""Evaluates a model without a Trainer: accuracy, confusion matrix, mistakes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.data.datasets import Framing, check_classes
from fnn_lightning.data.raw_pixels import raw_pixels, to_tensor
from fnn_lightning.datamodule import EVAL_BATCH_SIZE, MNISTDataModule
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation import plots
from fnn_lightning.evaluation.measures import check_finite, measure
from fnn_lightning.evaluation.predictions import Predictions, predict_logits
from fnn_lightning.lit_module import FNNLitModule

if TYPE_CHECKING:  # slow to import
    from matplotlib.figure import Figure

STAGES = {"train": "fit", "val": "validate", "test": "test"}


@dataclass(frozen=True)
class Mistake:
    """One image that was misclassified."""

    index: int
    """Its position in the data that was evaluated, counted from 0."""
    label: int
    """True class, an index into `class_names`."""
    predicted: int
    """Predicted class, likewise."""
    confidence: float
    """Probability of the predicted class."""
    image: Tensor = field(repr=False, compare=False)
    """Raw pixels 0–255 of shape `(28, 28)`."""


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Predictions):
    """What a model predicts for labelled images, and how good that is.

    Example:
        >>> images, labels = torch.zeros(4, 28, 28, dtype=torch.uint8), torch.tensor([7, 2, 1, 6])
        >>> result = Evaluation(images, torch.arange(4), labels, torch.eye(10)[[7, 2, 1, 0]])
        >>> result
        Evaluation: 3 / 4 correct (75.00 %)
        >>> result.accuracy, result.confusion[6, 0].item()
        (0.75, 1)
        >>> result.mistakes(5)
        [Mistake(index=3, label=6, predicted=0, confidence=1.0)]
    """

    def __repr__(self) -> str:
        correct, total = int(self.is_correct.sum()), len(self.labels)
        return f"Evaluation: {correct:,} / {total:,} correct ({self.accuracy:.2%})".replace(
            "%", " %"
        )

    @cached_property
    def accuracy(self) -> float:
        """Share of the images that are classified correctly, from 0 to 1."""
        return float(self.metrics["accuracy"])

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What the report of `fnn test` states, as plain data; see `measure`."""
        return measure(self)

    def mistakes(self, n: int = 10) -> list[Mistake]:
        """Return up to `n` mistakes, the most confident first."""
        if n < 0:
            raise InputError(f"Expected `n` to be 0 or more, but got {n}")
        return [
            Mistake(
                index=position,
                label=int(self.labels[position]),
                predicted=int(self.classes[position]),
                confidence=float(self.confidence[position]),
                image=self.image(position),
            )
            for position in self.most_confident_mistakes(n)
        ]

    def plot_confusion(self) -> "Figure":
        """Draw the confusion matrix: true classes in rows, predicted classes in columns."""
        return plots.confusion_figure(self)

    def plot_mistakes(self, columns: int = 5) -> "Figure":
        """Draw the most confident mistakes, up to `columns` × `columns`."""
        if columns < 1:
            raise InputError(f"Expected `columns` to be 1 or more, but got {columns}")
        return plots.mistakes_figure(self, columns)


def evaluate(
    model: FNNLitModule, data: Any, split: Literal["train", "val", "test"] = "test"
) -> Evaluation:
    """Evaluate a model on labelled images, without a Trainer.

    It computes in evaluation mode, on the model's device, and leaves the model as it was.

    Args:
        model: Such as `load` returns.
        data: An `MNISTDataModule`, which is set up here; a dataloader of batches
            `(images, labels)`; or images and labels, as a pair of arrays or tensors. Images are
            what `FNNLitModule.predict` takes, labels are indices into the model's `class_names`, of
            shape `(N,)`.
        split: Which images of an `MNISTDataModule`.

    Raises:
        DivergenceError: If a probability is not finite.
        InputError: If there is no image, images and labels do not fit each other, a label is no
            class of the model, or the images cannot be used.

    Example:
        >>> images, labels = torch.zeros(3, 28, 28, dtype=torch.uint8), torch.tensor([0, 1, 2])
        >>> evaluate(FNNLitModule(), (images, labels)).confusion.sum()
        tensor(3)
    """
    if not isinstance(model, FNNLitModule):
        raise InputError(
            f"Expected `model` to be an FNNLitModule, but got {model!r:.100}: load one by "
            "fnn_lightning.load(run_or_ckpt)"
        )
    if split not in STAGES:
        raise InputError(f"Expected `split` to be train, val or test, but got {split!r}")
    if isinstance(data, MNISTDataModule):
        data.prepare_data()
        check_classes(model.class_names, data.class_names)
        data.setup(STAGES[split])
        data = data.serve(split, EVAL_BATCH_SIZE)
    if isinstance(data, InMemoryDataLoader):
        images, indices = data.images.cpu(), data.indices.cpu()
        labels = data.labels.cpu()[indices]
    else:
        images, labels = labelled_images(data, len(model.class_names), model.framing)
        indices = torch.arange(len(images))
    logits = predict_logits(model, images[indices])
    evaluation = Evaluation.of_logits(images, indices, labels, logits, model)
    check_finite(evaluation)
    return evaluation


def labelled_images(data: Any, classes: int, framing: Framing) -> tuple[Tensor, Tensor]:
    """Collect images and labels, on the CPU.

    Args:
        data: A pair of images and labels, or an iterable of such pairs.
        classes: Number of classes.
        framing: How pictures are brought to 28 × 28.

    Returns:
        Raw pixels of shape `(N, 28, 28)`, and labels, `int64` of shape `(N,)`.

    Raises:
        InputError: If `data` is something else, or holds no image.
    """
    if is_pair(data) and not is_two_batches(data):
        return labelled_batch(data[0], data[1], classes, framing)
    if not isinstance(data, Iterable) or isinstance(data, str | dict):
        raise InputError(
            f"Expected an MNISTDataModule, a dataloader or (images, labels), but got {data!r:.100}"
        )
    batches = []
    for batch in data:
        if not is_pair(batch):
            raise InputError(f"Expected batches (images, labels), but got {batch!r:.100}")
        batches.append(labelled_batch(batch[0], batch[1], classes, framing))
    if not batches:
        raise InputError("Expected at least one image, but got an empty dataloader")
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def is_pair(data: Any) -> bool:
    """Tell whether data has the form of `(images, labels)`."""
    return isinstance(data, list | tuple) and len(data) == 2


def is_two_batches(pair: Any) -> bool:
    """Tell two batches `(images, labels)` from two images and their two labels.

    >>> image = torch.zeros(28, 28)
    >>> is_two_batches([([image], [3]), ([image], [5])]), is_two_batches(([image, image], [3, 5]))
    (True, False)
    """
    return is_pair(pair[0]) and is_pair(pair[1]) and np.ndim(pair[1][1]) > 0


def labelled_batch(
    images: Any, labels: Any, classes: int, framing: Framing
) -> tuple[Tensor, Tensor]:
    """Check images and their labels, and bring them to the CPU in the form of MNIST."""
    pixels, _ = raw_pixels(images, framing)
    expected = f"Expected {len(pixels):,} labels, integers of shape ({len(pixels)},)"
    try:
        labels = torch.tensor(labels) if isinstance(labels, list | tuple) else to_tensor(labels)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        raise InputError(f"{expected}, but got {labels!r:.100}") from None
    labels = labels.cpu()
    if labels.is_floating_point() or labels.is_complex() or labels.shape != (len(pixels),):
        raise InputError(f"{expected}, but got {labels.dtype} of shape {tuple(labels.shape)}")
    labels = labels.long()
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise InputError(f"Expected labels from 0 to {classes - 1}, but got {least} to {most}")
    return pixels.cpu(), labels
