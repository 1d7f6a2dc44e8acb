"""The loss that training lowers: cross-entropy with label smoothing and class weights."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from fnn_lightning.errors import InputError
from fnn_lightning.training.metrics import IGNORE_INDEX


class TrainingLoss:
    """Cross-entropy against smoothed targets, each image weighted by its class.

    Args:
        label_smoothing: Share of the target's probability that is spread evenly over all classes.

    Raises:
        InputError: If it is not from 0 to below 1.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise InputError(
                f"Expected `label_smoothing` to be from 0 to below 1, but got {label_smoothing}"
            )
        self.label_smoothing = label_smoothing
        self.class_weights: Tensor | None = None
        """`float32` of shape `(classes,)`, on the network's device; None weights all alike."""

    @property
    def is_plain(self) -> bool:
        """Whether it is the cross-entropy that evaluation measures."""
        return self.label_smoothing == 0 and self.class_weights is None

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the sum of the losses over the number of images, of shape `()`.

        Args:
            logits: Shape `(B, classes)`.
            targets: Labels, `int64` of shape `(B,)`, or probabilities of shape `(B, classes)`.

        With class weights that is not PyTorch's weighted mean, which divides by the sum of the
        weights: this one is the same however a batch is dealt to ranks.

        >>> import torch
        >>> loss = TrainingLoss()
        >>> loss.class_weights = torch.tensor([1.0, 3.0])
        >>> loss.mean(torch.zeros(2, 2), torch.tensor([0, 1])) / torch.tensor(2.0).log()
        tensor(2.)
        """
        if self.class_weights is None:
            return F.cross_entropy(
                logits, targets, ignore_index=IGNORE_INDEX, label_smoothing=self.label_smoothing
            )
        return self.of_images(logits, targets).sum() / len(targets)

    def of_images(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of each image, of shape `(B,)`, from the arguments of `mean`."""
        weights = self.class_weights
        return F.cross_entropy(
            logits,
            targets,
            None if weights is None else weights.to(logits.dtype),
            ignore_index=IGNORE_INDEX,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )


CROSS_ENTROPY = TrainingLoss()
"""What evaluation measures."""


def balanced_weights(labels: Tensor, class_names: Sequence[str]) -> Tensor:
    """Compute the weight of each class by which all classes weigh the same in training.

    The mean weight of the images is 1 (as in scikit-learn's `compute_class_weight`).

    Args:
        labels: Of the training images, `int64` of shape `(N,)`.
        class_names: Name of each class.

    Returns:
        `float32` of shape `(classes,)`: N / (classes × images of the class).

    Raises:
        InputError: If a class has no image.

    Example:
        >>> import torch
        >>> balanced_weights(torch.tensor([0, 0, 0, 1]), ["cat", "dog"])
        tensor([0.6667, 2.0000])
    """
    counts = labels.bincount(minlength=len(class_names))
    if not counts.all():
        raise InputError(
            "Expected training images of every class for balanced `class_weights`, but got none of "
            f"{class_names[int(counts.argmin())]}: give a number for each class"
        )
    return len(labels) / (len(class_names) * counts.float())
