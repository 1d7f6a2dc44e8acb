"""What the predictions on a split come to: accuracy, scores of each digit, and confusions."""

from typing import Any, NamedTuple

import torch
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from fnn_lightning.errors import DivergenceError
from fnn_lightning.evaluation.predictions import Prediction, Predictions
from fnn_lightning.evaluation.stats import wilson_interval
from fnn_lightning.network import NUM_CLASSES

CALIBRATION_BINS = 15  # as in Guo et al. 2017 (arXiv:1706.04599)
SCORES = {
    "precision": multiclass_precision,
    "recall": multiclass_recall,
    "f1": multiclass_f1_score,
}


class Confusion(NamedTuple):
    """How often one digit is read as another."""

    label: int
    """The true digit."""
    digit: int
    """The predicted one."""
    times: int
    """Number of images."""
    images: int
    """Number of images of the true digit."""


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

    The precision of a digit that is never predicted is None, the recall of a digit without images
    too, and F1 where both hold. `macro` has the means over the digits, to which a None adds 0;
    digits that are neither there nor predicted are left out of them.

    Example:
        >>> images = torch.zeros(4, 28, 28, dtype=torch.uint8)
        >>> probabilities = torch.eye(10)[[7, 2, 1, 0]]
        >>> labels = torch.tensor([7, 2, 1, 6])
        >>> results = measure(Predictions(images, torch.arange(4), labels, probabilities))
        >>> results["accuracy"], results["classes"][0]
        (0.75, {'digit': 0, 'images': 0, 'precision': 0.0, 'recall': None, 'f1': 0.0})
    """
    digits, labels = predictions.digits, predictions.labels
    correct, total = int(predictions.is_correct.sum()), len(labels)
    predicted = digits.bincount(minlength=NUM_CLASSES).tolist()
    images = labels.bincount(minlength=NUM_CLASSES).tolist()
    scores = {
        name: score(digits, labels, NUM_CLASSES, average=None).tolist()
        for name, score in SCORES.items()
    }
    counts = {
        "precision": predicted,
        "recall": images,
        "f1": [a + b for a, b in zip(predicted, images, strict=True)],
    }
    calibration_error = multiclass_calibration_error(
        predictions.probabilities, labels, NUM_CLASSES, CALIBRATION_BINS, norm="l1"
    )
    return {
        "accuracy": correct / total,
        "correct": correct,
        "total": total,
        "interval_95": list(wilson_interval(correct, total)),
        "expected_calibration_error": float(calibration_error),
        "macro": {
            name: float(score(digits, labels, NUM_CLASSES, average="macro"))
            for name, score in SCORES.items()
        },
        "classes": [
            {
                "digit": digit,
                "images": images[digit],
                **{name: scores[name][digit] if counts[name][digit] else None for name in SCORES},
            }
            for digit in range(NUM_CLASSES)
        ],
    }


def confusions(matrix: list[list[int]]) -> list[Confusion]:
    """List the pairs of digits that are confused, the most frequent first.

    Args:
        matrix: `Predictions.confusion` as lists.

    Example:
        >>> confusions([[5, 1, 0], [0, 7, 2], [0, 0, 9]])[0]
        Confusion(label=1, digit=2, times=2, images=9)
    """
    found = [
        Confusion(label, digit, count, sum(row))
        for label, row in enumerate(matrix)
        for digit, count in enumerate(row)
        if count and digit != label
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
