"""The pictures that show what a network learned, as matplotlib figures."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchvision.utils import make_grid

from fnn_lightning.evaluation.predictions import Predictions
from fnn_lightning.network import NUM_CLASSES

if TYPE_CHECKING:  # takes a while, and few runs of the program draw
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]
"""Points of a curve: number of optimiser steps, value."""

BINS = 15  # of confidence; as many as Guo et al. 2017 (arXiv:1706.04599) use


def new_figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """Make a figure with one pair of axes, outside of pyplot's list of open figures.

    Args:
        width: Of the figure, in inches.
        height: Likewise.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100)
    axes: Axes = figure.subplots()
    return figure, axes


def confusion_figure(predictions: Predictions) -> "Figure":
    """Draw how often each digit was taken for which; the diagonal is right."""
    figure, axes = new_figure(5.5, 5.5)
    confusion = multiclass_confusion_matrix(predictions.digits, predictions.labels, NUM_CLASSES)
    with warnings.catch_warnings():
        # torchmetrics 1.9 hands matplotlib a tensor, which NumPy 2 no longer likes
        warnings.simplefilter("ignore", DeprecationWarning)
        MulticlassConfusionMatrix(NUM_CLASSES).plot(val=confusion, ax=axes, cmap="Blues")
    for number in axes.texts:
        number.set_fontsize(9)
    figure.tight_layout()
    return figure


def mistakes_figure(predictions: Predictions, columns: int = 5) -> "Figure":
    """Draw the surest mistakes, `columns` × `columns` of them, each with its probability."""
    from matplotlib.figure import Figure

    worst = predictions.most_confident_mistakes(columns**2)
    cell, text = 28 + 4, 10  # pixels: an image with its margin, the line below it
    sheet = np.zeros((columns * (cell + text), columns * cell))
    figure = Figure(figsize=(columns * 1.1, columns * 1.1 * (cell + text) / cell), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    digits, confidence = predictions.digits.tolist(), predictions.confidence.tolist()
    for place, position in enumerate(worst):
        top, left = place // columns * (cell + text) + 2, place % columns * cell + 2
        sheet[top : top + 28, left : left + 28] = predictions.image(position).numpy()
        words = f"{predictions.labels[position]} as {digits[position]}, {confidence[position]:.1%}"
        axes.text(left + 14, top + 28 + text / 2, words, ha="center", va="center", fontsize=8)
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=255)
    if not worst:
        axes.text(0.5, 0.5, "no mistakes", ha="center", transform=axes.transAxes)
    return figure


def first_layer_grid(weight: Tensor, most: int = 100) -> Tensor:
    """Arrange the weights of the first layer's units as pictures of 28 × 28, in a grid.

    Args:
        weight: Shape `(units, 784)`.
        most: As many units are shown at most, the first ones.

    Returns:
        Grey values from 0 to 1, shape `(3, H, W)`: 0.5 is a weight of 0, and of each unit the
        weight farthest from 0 is black, if negative, or white.
    """
    weight = weight.detach()[:most].float().cpu()
    farthest = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float).tiny)
    pictures = (weight / farthest / 2 + 0.5).view(-1, 1, 28, 28)
    pictures = pictures.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    grid: Tensor = make_grid(pictures, nrow=10, padding=4, pad_value=1.0)
    return grid


def image_grid(images: Tensor, most: int = 100) -> Tensor:
    """Arrange images in a grid, dark ink on white.

    Args:
        images: Raw pixels 0–255, shape `(B, 28, 28)`.
        most: As many are shown at most, the first ones.

    Returns:
        Grey values from 0 to 1, shape `(3, H, W)`.
    """
    pictures = 1 - images[:most].unsqueeze(1).float().cpu() / 255
    grid: Tensor = make_grid(pictures, nrow=10, padding=2, pad_value=0.8)
    return grid


def loss_figure(losses: Tensor, steps: int) -> "Figure":
    """Draw the training loss of every batch, which is every step unless gradients accumulate.

    Args:
        losses: Loss of every batch, shape `(batches,)`.
        steps: Number of optimiser steps that took.
    """
    figure, axes = new_figure(8, 4)
    step = np.arange(1, len(losses) + 1) * (steps / max(1, len(losses)))
    axes.plot(step, losses.numpy(), linewidth=0.6)
    axes.set(xlabel="step", ylabel="training loss of the batch", xlim=(0, max(1, steps)))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    return figure


def curves_figure(curves: Mapping[str, Curve], ylabel: str) -> "Figure":
    """Draw curves over the number of optimiser steps, each with its name."""
    figure, axes = new_figure(5, 3.3)
    for name, points in curves.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=name, marker="." if len(points) < 50 else None)
    axes.set(xlabel="step", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    return figure


def reliability(predictions: Predictions) -> list[tuple[float, float, int]]:
    """Compare how sure the network is with how often it is right.

    Returns:
        For each of `BINS` equal ranges of confidence from 0 to 1 that holds predictions: their
        mean confidence, the share of them that is right, and their number.
    """
    edges = torch.linspace(0, 1, BINS + 1)[1:-1]
    number = torch.bucketize(predictions.confidence, edges)
    right = (predictions.digits == predictions.labels).double()
    return [
        (
            predictions.confidence[number == k].double().mean().item(),
            right[number == k].mean().item(),
            int((number == k).sum()),
        )
        for k in range(BINS)
        if (number == k).any()
    ]


def reliability_figure(predictions: Predictions) -> "Figure":
    """Draw the share that is right over the confidence, and how many predictions there are."""
    figure, axes = new_figure(5, 4)
    confidence, right, count = zip(*reliability(predictions), strict=True)
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="as sure as right")
    axes.plot(confidence, right, marker="o", label="this network")
    below = axes.twinx()
    below.bar(confidence, count, width=0.8 / BINS, alpha=0.2, color="tab:blue", log=True)
    below.set_ylabel("images (bars)")
    axes.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(loc="upper left")
    figure.tight_layout()
    return figure
