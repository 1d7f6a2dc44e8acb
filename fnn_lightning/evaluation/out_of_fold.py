"""Out-of-fold predictions: of each training image, by the networks that did not train on it."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.predictions import Predictions
from fnn_lightning.runs.load import load_trained


def predict_out_of_fold(checkpoints: Sequence[Path]) -> tuple[Predictions, Sequence[str]]:
    """Let each network of a cross-validation predict the fold that it did not train on.

    Args:
        checkpoints: Of the networks of all folds; of several seeds, those of all folds of each.

    Returns:
        The predictions of all training images, in the order of the data set, with probabilities
        averaged over the seeds; the names of the classes.

    Raises:
        InputError: If a network or the data cannot be read, or the networks are not one for each
            fold and seed.
    """
    predicted: Tensor | None = None
    for path in checkpoints:
        trained = load_trained(path)
        data = trained.data()
        if data.folds is None:
            raise InputError(f"Expected a network that was trained on folds, but got {path}")
        if predicted is None:
            data.prepare_data()
        data.setup("validate")
        source = data.val_dataloader()  # what the network did not train on, by its own settings
        probabilities = trained.probabilities(source.images[source.indices])
        if predicted is None:
            images, labels, class_names = source.images, source.labels, data.class_names
            predicted = torch.zeros(len(labels), dtype=torch.int64)
            total = torch.zeros(len(labels), probabilities.shape[1], dtype=torch.float64)
        if len(labels) != len(source.labels):
            raise InputError(f"Expected the same {len(labels):,} training images in {path}, but "
                             f"got {len(source.labels):,}")  # fmt: skip
        predicted[source.indices] += 1
        total[source.indices] += probabilities
    if predicted is None or predicted.amin() != predicted.amax():
        raise InputError("Expected a network for each fold, but got some more often than others")
    mean = (total / predicted[:, None]).float()
    return Predictions(images, torch.arange(len(labels)), labels, mean), class_names


def out_of_fold_csv(predictions: Predictions, class_names: Sequence[str]) -> str:
    """List index in the training set, true class, predicted class and all probabilities as CSV.

    Example:
        >>> images = torch.zeros(1, 28, 28, dtype=torch.uint8)
        >>> probabilities = torch.tensor([[0.25, 0.75]])
        >>> one = Predictions(images, torch.tensor([0]), torch.tensor([0]), probabilities)
        >>> print(out_of_fold_csv(one, ["cat", "dog"]), end="")
        index,truth,prediction,pcat,pdog
        0,cat,dog,0.250000,0.750000
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "truth", "prediction", *(f"p{name}" for name in class_names)])
    for index, (truth, prediction, probabilities) in enumerate(
        zip(
            predictions.labels.tolist(),
            predictions.digits.tolist(),
            predictions.probabilities.tolist(),
            strict=True,
        )
    ):
        names = class_names[truth], class_names[prediction]
        writer.writerow([index, *names, *(f"{p:.6f}" for p in probabilities)])
    return text.getvalue()
