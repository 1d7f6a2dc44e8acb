"""Out-of-fold predictions: of each training image, by the networks that did not train on it."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.prediction_writer import columns
from fnn_lightning.evaluation.predictions import Predictions
from fnn_lightning.runs.load import load_trained


def predict_out_of_fold(checkpoints: Sequence[Path]) -> Predictions:
    """Let each network of a cross-validation predict the fold that it did not train on.

    Args:
        checkpoints: Of the networks of all folds; of several seeds, those of all folds of each.

    Returns:
        The predictions of all training images, in the order of the data set, with probabilities
        averaged over the seeds. All that a network has seen of them is one number: its temperature.

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
    return Predictions(
        images,
        torch.arange(len(labels)),
        labels,
        mean,
        class_names,
        data.framing,
        files=data.train_files(),
    )


def out_of_fold_csv(predictions: Predictions) -> bytes:
    """List index in the training set, true class, predicted class and all probabilities as CSV.

    Example:
        >>> images = torch.zeros(1, 28, 28, dtype=torch.uint8)
        >>> probabilities = torch.tensor([[0.25, 0.75]])
        >>> indices = labels = torch.tensor([0])
        >>> one = Predictions(images, indices, labels, probabilities, ["cat", "dog"])
        >>> print(out_of_fold_csv(one).decode(), end="")
        index,label,class,p_cat,p_dog
        0,cat,dog,0.250000,0.750000
    """
    names = predictions.class_names
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "label", *columns(names)])
    labels = (names[k] for k in predictions.labels.tolist())
    classes = (names[k] for k in predictions.classes.tolist())
    rows = predictions.probabilities.tolist()
    for index, (label, predicted, row) in enumerate(zip(labels, classes, rows, strict=True)):
        writer.writerow([index, label, predicted, *(f"{p:.6f}" for p in row)])
    return text.getvalue().encode(errors="surrogateescape")  # a folder's name can be any bytes
