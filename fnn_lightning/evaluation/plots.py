"""Figures and image grids that show what a network learned."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.utils import make_grid

from fnn_lightning.evaluation.class_names import short_name
from fnn_lightning.evaluation.predictions import Predictions

if TYPE_CHECKING:  # matplotlib is slow to import, and few commands draw
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGES_PER_ROW = 10
MAX_NUMBERS = 20  # classes up to which a confusion matrix shows its numbers
MAX_NAMES = 50  # and up to which it names them
MAX_COLOURS = 20  # curves whose colours can be told apart
NAME_LENGTH, CAPTION_LENGTH = 14, 10  # characters of a class name on an axis, below an image


def new_figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """Make a figure with one pair of axes that pyplot does not keep open.

    Args:
        width: Width of the figure in inches.
        height: Height of the figure in inches.
    """
    from fnn_lightning.evaluation.figure import InlineFigure

    figure = InlineFigure(figsize=(width, height), dpi=100)
    axes: Axes = figure.subplots()
    return figure, axes


def text_of(name: str, length: int) -> str:
    """Return a class name as a figure can show it, where `$` would begin a formula."""
    return short_name(name, length).replace("$", r"\$")


def confusion_figure(predictions: Predictions) -> "Figure":
    """Draw the confusion matrix: true classes in rows, predicted classes in columns.

    More than 20 classes are drawn without numbers, more than 50 without names.
    """
    names = [text_of(name, NAME_LENGTH) for name in predictions.class_names]
    side = 5.5 if len(names) <= IMAGES_PER_ROW else min(12.0, 3.0 + 0.25 * len(names))
    figure, axes = new_figure(side, side)
    if len(names) > MAX_NAMES:
        axes.imshow(predictions.confusion.numpy(), cmap="Blues")
        axes.set(xlabel="Predicted class", ylabel="True class")
        figure.tight_layout()
        return figure
    with warnings.catch_warnings():
        # torchmetrics 1.9 passes a tensor to matplotlib, which NumPy 2 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        matrix = MulticlassConfusionMatrix(len(names))
        has_numbers = len(names) <= MAX_NUMBERS
        matrix.plot(predictions.confusion, axes, add_text=has_numbers, labels=names, cmap="Blues")
    for number in axes.texts:
        number.set_fontsize(9)
    if max(map(len, names)) > 2:
        axes.tick_params(axis="x", labelrotation=90)
        axes.tick_params(axis="y", labelrotation=0)
    figure.tight_layout()
    return figure


def mistakes_figure(predictions: Predictions, columns: int = 5) -> "Figure":
    """Draw the most confident mistakes, up to `columns` × `columns`, each with its confidence."""
    from fnn_lightning.evaluation.figure import InlineFigure

    mistakes = predictions.most_confident_mistakes(columns**2)
    names = [text_of(name, CAPTION_LENGTH) for name in predictions.class_names]
    in_two_lines = max(map(len, names)) > 2
    # pixels: an image with its margin, the caption below it
    cell, caption_height = 28 + 4, 14 if in_two_lines else 10
    sheet = np.full((columns * (cell + caption_height), columns * cell), 255)
    width = columns * 1.1  # inches
    figure = InlineFigure(figsize=(width, width * (cell + caption_height) / cell), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for number, position in enumerate(mistakes):
        row, column = divmod(number, columns)
        top, left = row * (cell + caption_height) + 2, column * cell + 2
        sheet[top : top + 28, left : left + 28] = predictions.image_as_seen(position).numpy()
        label, predicted = predictions.labels[position], predictions.classes[position]
        separator = "\n" if in_two_lines else ", "
        caption = (
            f"{names[label]} as {names[predicted]}{separator}{predictions.confidence[position]:.1%}"
        )
        middle, size = top + 28 + caption_height / 2, 6 if in_two_lines else 8
        axes.text(left + 14, middle, caption, ha="center", va="center", fontsize=size)
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255)
    if not mistakes:
        axes.text(0.5, 0.5, "no mistakes", ha="center", transform=axes.transAxes)
    return figure


def first_layer_grid(weight: Tensor, max_units: int = 100) -> Tensor:
    """Show the weights of the first layer's units as 28 × 28 images in a grid.

    Args:
        weight: Shape `(units, 784)`.
        max_units: Maximum number of units shown, counted from the first.

    Returns:
        Grey values from 0 to 1, shape `(3, H, W)`. A weight of 0 is 0.5. Each unit has its own
        scale: its largest weight by absolute value is 0 (black) if negative, else 1 (white).
    """
    weight = weight.detach()[:max_units].float().cpu()
    largest = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float).tiny)
    images = (weight / largest / 2 + 0.5).view(-1, 1, 28, 28)
    images = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    grid: Tensor = make_grid(images, nrow=IMAGES_PER_ROW, padding=4, pad_value=1.0)
    return grid


def image_grid(images: Tensor, max_images: int = 100) -> Tensor:
    """Arrange images in a grid.

    Args:
        images: Pixels 0–255, shape `(B, 28, 28)`.
        max_images: Maximum number of images shown, counted from the first.

    Returns:
        Grey values from 0 to 1, shape `(3, H, W)`.

    Example:
        >>> image_grid(torch.zeros(20, 28, 28)).shape  # two rows of ten, with margins of 2 pixels
        torch.Size([3, 62, 302])
    """
    scaled = images[:max_images].unsqueeze(1).float().cpu() / 255
    grid: Tensor = make_grid(scaled, nrow=IMAGES_PER_ROW, padding=2, pad_value=0.8)
    return grid


def loss_figure(losses: Tensor, steps: int) -> "Figure":
    """Draw the training loss of every batch.

    Args:
        losses: Loss of every batch, shape `(batches,)`.
        steps: Number of optimiser steps, smaller than `batches` if gradients were accumulated.
    """
    figure, axes = new_figure(8, 4)
    x = np.arange(1, len(losses) + 1) * (steps / max(1, len(losses)))
    axes.plot(x, losses.numpy(), linewidth=0.6)
    axes.set(xlabel="step", ylabel="training loss of the batch", xlim=(0, max(1, steps)))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    return figure


def lr_figure(lrs: Sequence[float], losses: Sequence[float], chosen: float) -> "Figure":
    """Draw the training loss while the learning rate rose, and mark the rate that was chosen."""
    figure, axes = new_figure(6, 4)
    axes.plot(lrs, losses)
    axes.axvline(chosen, color="tab:red", label=f"chosen: {chosen:.3g}")
    axes.set(xlabel="learning rate", ylabel="training loss, smoothed", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    return figure


def curves_figure(panels: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> "Figure":
    """Draw named curves over the number of optimiser steps, in panels side by side.

    Args:
        panels: For the label of each panel's y-axis its curves, each of points (step, value);
            panels without a curve are left out.
    """
    from fnn_lightning.evaluation.figure import InlineFigure

    panels = {ylabel: curves for ylabel, curves in panels.items() if curves}
    figure = InlineFigure(figsize=(5 * len(panels), 3.3), dpi=100)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (ylabel, curves) in zip(all_axes, panels.items(), strict=True):
        for name, curve in curves.items():
            steps, values = zip(*curve, strict=True)
            axes.plot(steps, values, label=name, marker="." if len(curve) < 50 else None)
        axes.set(xlabel="step", ylabel=ylabel)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    return figure


def class_curves_figure(
    curves: Mapping[int, Sequence[tuple[int, float]]], class_names: Sequence[str]
) -> "Figure":
    """Draw the accuracy of each class over the number of optimiser steps, in up to 20 colours.

    Args:
        curves: For each class that has images, points (step, accuracy).
        class_names: Names of all classes.
    """
    from matplotlib import colormaps

    colours: Any = colormaps["tab10" if len(class_names) <= 10 else "tab20"]
    figure, axes = new_figure(5.5, 4)
    for k, curve in curves.items():
        steps, values = zip(*curve, strict=True)
        name = text_of(class_names[k], NAME_LENGTH)
        name = f" {name}" if name.startswith("_") else name  # which Matplotlib would not list
        # by number, since a class may have no images
        axes.plot(steps, values, label=name, color=colours(k % colours.N), marker=".")
    axes.set(xlabel="step", ylabel="accuracy of the class")
    axes.grid(alpha=0.3)
    axes.legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return figure


def rasterize(figure: "Figure") -> Tensor:
    """Return the pixels of a figure: values from 0 to 1, shape `(3, H, W)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.from_numpy(np.array(canvas.buffer_rgba()))
    return pixels[..., :3].permute(2, 0, 1) / 255
