"""Temperature scaling: probabilities that say how often the network is right."""

import math
from typing import Any

import numpy as np
from torch import Tensor

from fnn_lightning.errors import InputError

TEMPERATURES = (0.05, 20.0)
"""Lowest and highest that are fitted, and read."""
MAX_STEPS = 50  # of Newton's method, which takes about six


def to_probabilities(logits: Tensor, temperature: float | None) -> Tensor:
    """Turn logits into probabilities; the most probable class is the same at any temperature.

    Args:
        logits: Of shape `(N, classes)`.
        temperature: What they are divided by; None for 1.

    Returns:
        Of the shape and dtype of the logits; each row sums to 1.

    Example:
        >>> import math, torch
        >>> to_probabilities(torch.tensor([[0.0, 2.0 * math.log(3)]]), 2.0)
        tensor([[0.2500, 0.7500]])
    """
    if temperature is None:
        return logits.softmax(dim=1)
    # the largest is exactly 0 before the division, whose rounding could make it equal to the next
    return ((logits - logits.amax(dim=1, keepdim=True)) / temperature).softmax(dim=1)


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Fit the temperature under which the labels of held-out images are the most probable.

    Source: Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599.

    Newton's method in float64 on the inverse temperature, in which the negative log-likelihood is
    convex; where a step would leave the interval that holds the minimum, the interval is halved.

    Args:
        logits: Of shape `(N, classes)`, of images that the network was not trained on.
        labels: Their classes, `int64` of shape `(N,)`.

    Returns:
        A temperature within `TEMPERATURES`, to four decimals, so that it does not depend on how a
        machine rounds. None if no image is misclassified: the likelihood then has no maximum, as
        ever lower temperatures make the labels ever more probable. None as well without an image,
        or if a logit is not finite.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[4.0, 0.0]]).expand(4, 2)  # 98 % sure, right in 3 of 4
        >>> fit_temperature(logits, torch.tensor([0, 0, 0, 1]))  # 4 / log(3)
        3.641
    """
    # NumPy, on one thread: so little work takes longer where threads wait for each other
    values = logits.cpu().numpy().astype(np.float64)
    if not len(labels) or not np.isfinite(values).all():
        return None
    values -= values.max(axis=1, keepdims=True)
    squares = np.square(values)
    of_labels = values[np.arange(len(labels)), labels.cpu().numpy()]
    if not (of_labels < 0).any():
        return None
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    inverse = 1.0
    for _ in range(MAX_STEPS):
        probabilities = np.exp(inverse * values)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        mean = np.einsum("nk,nk->n", probabilities, values)
        slope = float((mean - of_labels).sum())
        curvature = float(np.einsum("nk,nk->", probabilities, squares) - np.square(mean).sum())
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        newton = inverse - slope / curvature if curvature > 0 else math.inf
        former, inverse = inverse, newton if low < newton < high else (low + high) / 2
        if abs(inverse - former) < 1e-9 * former:
            break
    return round(1 / inverse, 4)


def stored_temperature(checkpoint: dict[str, Any], path: str) -> float | None:
    """Return the temperature that a checkpoint holds; None if it holds none.

    Args:
        checkpoint: Lightning's dictionary.
        path: What the message calls it.

    Raises:
        InputError: If it is not a number within `TEMPERATURES`.
    """
    temperature = checkpoint.get("temperature")
    low, high = TEMPERATURES
    if temperature is None or (type(temperature) is float and low <= temperature <= high):
        return temperature
    raise InputError(
        f"Expected the temperature in {path} to be a number from {low:g} to {high:g}, but got "
        f"{temperature!r:.50}"
    )
