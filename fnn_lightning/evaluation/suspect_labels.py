"""Suspect labels: training images whose label is probably wrong, as a gallery and as CSV."""

import csv
import io
from dataclasses import dataclass
from typing import Any

from fnn_lightning.errors import one_line
from fnn_lightning.evaluation.class_names import short_name
from fnn_lightning.evaluation.html_template import html_template
from fnn_lightning.evaluation.page import as_png
from fnn_lightning.evaluation.predictions import Predictions, seen

MAX_SHOWN = 500  # in the gallery; the CSV has all


@dataclass(frozen=True)
class Suspect:
    """A training image that the networks take for another class than its label says."""

    index: int
    """Its position in the training set."""
    label: int
    """The given class, an index into the names."""
    predicted: int
    """The most probable class, likewise."""
    of_label: float
    """Probability of the given class."""
    of_predicted: float
    """Probability of the most probable class."""


def suspect_labels(predictions: Predictions) -> list[Suspect]:
    """Rank the training images whose label is probably wrong, the most suspect first.

    They are those that networks which did not train on them take for another class, ranked by the
    probability of the label, the lowest first: "self-confidence" of Northcutt et al. 2021,
    "Confident learning", arXiv:1911.00068. On MNIST it puts more of the labels that were changed
    among the first than the margin to the other class does, which is close to 1 for many alike.

    Args:
        predictions: Of all training images, out of fold.

    Example:
        >>> import torch
        >>> images = torch.zeros(3, 28, 28, dtype=torch.uint8)
        >>> probabilities = torch.tensor([[0.3, 0.7], [0.1, 0.9], [0.2, 0.8]])
        >>> labels = torch.tensor([0, 0, 1])
        >>> predictions = Predictions(images, torch.arange(3), labels, probabilities)
        >>> [each.index for each in suspect_labels(predictions)]
        [1, 0]
    """
    of_labels = predictions.probabilities.gather(1, predictions.labels[:, None]).squeeze(1)
    found = [
        Suspect(*each)
        for each in zip(
            predictions.indices.tolist(),
            predictions.labels.tolist(),
            predictions.classes.tolist(),
            of_labels.tolist(),
            predictions.confidence.tolist(),
            strict=True,
        )
        if each[1] != each[2]
    ]
    return sorted(found, key=lambda each: (each.of_label, -each.of_predicted, each.index))


def suspects_csv(predictions: Predictions, suspects: list[Suspect]) -> bytes:
    """List suspect labels as CSV, the most suspect first.

    Args:
        predictions: What they were found in.
        suspects: As `suspect_labels` returns them.

    Example:
        >>> import torch
        >>> images = torch.zeros(1, 28, 28, dtype=torch.uint8)
        >>> probabilities = torch.tensor([[0.25, 0.75]])
        >>> names, files = ["cat", "dog"], ["cat/7.png"]
        >>> zero = torch.tensor([0])
        >>> one = Predictions(images, zero, zero, probabilities, names, files=files)
        >>> print(suspects_csv(one, suspect_labels(one)).decode(), end="")
        index,file,label,class,p_label,p_class
        0,cat/7.png,cat,dog,0.25,0.75
    """
    names, files = predictions.class_names, predictions.files
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    file = ["file"] if files else []
    writer.writerow(["index", *file, "label", "class", "p_label", "p_class"])
    for each in suspects:
        shares = (f"{p:.6g}" for p in (each.of_label, each.of_predicted))  # they can be tiny
        file = [files[each.index]] if files else []
        writer.writerow([each.index, *file, names[each.label], names[each.predicted], *shares])
    return text.getvalue().encode(errors="surrogateescape")  # a folder's name can be any bytes


def make_gallery(predictions: Predictions, suspects: list[Suspect]) -> str:
    """Fill in the template `suspect_labels.html` with the pictures of the most suspect labels.

    Args:
        predictions: What they were found in.
        suspects: As `suspect_labels` returns them.
    """
    return html_template("suspect_labels.html").render(
        total=len(predictions.labels),
        found=len(suspects),
        suspects=[describe(predictions, each) for each in suspects[:MAX_SHOWN]],
    )


def describe(predictions: Predictions, suspect: Suspect) -> dict[str, Any]:
    """Describe a suspect label for the page, the image included."""
    names, files = predictions.class_names, predictions.files
    return {
        "index": suspect.index,
        "file": one_line(files[suspect.index]) if files else None,
        "label": short_name(names[suspect.label]),
        "predicted": short_name(names[suspect.predicted]),
        "of_label": suspect.of_label,
        "of_predicted": suspect.of_predicted,
        "png": as_png(seen(predictions.images[suspect.index], predictions.framing)),
    }
