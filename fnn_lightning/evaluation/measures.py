"""What the predictions on a split come to: accuracy, scores of each class, and confusions."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from fnn_lightning.errors import DivergenceError
from fnn_lightning.evaluation.predictions import Prediction, Predictions
from fnn_lightning.evaluation.stats import wilson_interval

CALIBRATION_BINS = 15  # as in Guo et al. 2017 (arXiv:1706.04599)
SCORES = {
    "precision": multiclass_precision,
    "recall": multiclass_recall,
    "f1": multiclass_f1_score,
}


class Confusion(NamedTuple):
    """How often one class is taken for another; both are indices into the names."""

    label: int
    """The true class."""
    predicted: int
    """The predicted one."""
    times: int
    """Number of images."""
    images: int
    """Number of images of the true class."""


def check_finite(predictions: Prediction | Predictions) -> None:
    """Refuse predictions of several images with probabilities that are not finite.

    Raises:
        DivergenceError: If there are any.
    """
    affected = int((~predictions.probabilities.isfinite().all(dim=1)).sum())
    if affected:
        raise DivergenceError(
            f"Expected finite outputs of the network, but got infinity or NaN for {affected:,} of "
            f"{len(predictions.probabilities):,} images: its training has diverged"
        )


def measure(predictions: Predictions) -> dict[str, Any]:
    """Compute the results of a split, as plain data for JSON; ratios are from 0 to 1.

    The precision of a class that is never predicted is None, the recall of a class without images
    too, and F1 where both hold. `macro` has the means over the classes, to which a None adds 0;
    classes that are neither there nor predicted are left out of them. `balanced_accuracy` is the
    mean recall of the classes that have images. With a `temperature`, the calibration error is
    given without it as well; both are None if there is none.

    Example:
        >>> images = torch.zeros(4, 28, 28, dtype=torch.uint8)
        >>> probabilities = torch.eye(10)[[7, 2, 1, 0]]
        >>> labels = torch.tensor([7, 2, 1, 6])
        >>> results = measure(Predictions(images, torch.arange(4), labels, probabilities))
        >>> results["accuracy"], results["classes"][0]
        (0.75, {'class': '0', 'images': 0, 'precision': 0.0, 'recall': None, 'f1': 0.0})
    """
    classes, labels = predictions.classes, predictions.labels
    names = predictions.class_names
    correct, total = int(predictions.is_correct.sum()), len(labels)
    predicted = classes.bincount(minlength=len(names)).tolist()
    images = labels.bincount(minlength=len(names)).tolist()
    scores = {
        name: score(classes, labels, len(names), average=None).tolist()
        for name, score in SCORES.items()
    }
    counts = {
        "precision": predicted,
        "recall": images,
        "f1": [a + b for a, b in zip(predicted, images, strict=True)],
    }
    before = predictions.uncalibrated
    recalls = [recall for recall, count in zip(scores["recall"], images, strict=True) if count]
    return {
        "accuracy": correct / total,
        "correct": correct,
        "total": total,
        "interval_95": list(wilson_interval(correct, total)),
        "expected_calibration_error": calibration_error(predictions.probabilities, labels),
        "temperature": predictions.temperature,
        "expected_calibration_error_without_temperature": (
            None if before is None else calibration_error(before, labels)
        ),
        "balanced_accuracy": sum(recalls) / len(recalls),
        "macro": {
            name: float(score(classes, labels, len(names), average="macro"))
            for name, score in SCORES.items()
        },
        "classes": [
            {
                "class": name,
                "images": images[k],
                **{score: scores[score][k] if counts[score][k] else None for score in SCORES},
            }
            for k, name in enumerate(names)
        ],
    }


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Compute the average gap between confidence and accuracy over `CALIBRATION_BINS` bins.

    Args:
        probabilities: Of shape `(N, classes)`.
        labels: True classes, `int64` of shape `(N,)`.
    """
    error: Tensor = multiclass_calibration_error(
        probabilities, labels, probabilities.shape[1], CALIBRATION_BINS, norm="l1"
    )
    return float(error)


def confusions(matrix: list[list[int]]) -> list[Confusion]:
    """List the pairs of classes that are confused, the most frequent first.

    Args:
        matrix: `Predictions.confusion` as lists.

    Example:
        >>> confusions([[5, 1, 0], [0, 7, 2], [0, 0, 9]])[0]
        Confusion(label=1, predicted=2, times=2, images=9)
    """
    found = [
        Confusion(label, predicted, count, images)
        for label, (row, images) in enumerate(zip(matrix, map(sum, matrix), strict=True))
        for predicted, count in enumerate(row)
        if count and predicted != label
    ]
    return sorted(found, key=lambda each: -each.times)


def reliability(predictions: Predictions) -> list[tuple[float, float, int]]:
    """Compare confidence with accuracy, as a reliability diagram does.

    Returns:
        Mean confidence, accuracy and number of predictions in each of `CALIBRATION_BINS` equal
        bins of confidence from 0 to 1; empty bins are left out.
    """
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    bin_of_each = torch.bucketize(predictions.confidence, edges)
    members = [bin_of_each == k for k in range(CALIBRATION_BINS)]
    return [
        (
            predictions.confidence[member].double().mean().item(),
            predictions.is_correct[member].double().mean().item(),
            int(member.sum()),
        )
        for member in members
        if member.any()
    ]
