"""Trains on adversarial examples beside the images (Goodfellow et al. 2015, arXiv:1412.6572)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fnn_lightning.errors import InputError
from fnn_lightning.training.batch_norm import batch_statistics_only


class Adversarial:
    """Adds to the loss of a batch that of its adversarial examples.

    Each image is moved by a small distance in the direction in which its loss rises fastest. A net
    that is right there too is smooth around the images, wherever the pixels lie: it is the rare
    kind of augmentation that need not know which pixels are neighbours.

    Source: Goodfellow et al. 2015, arXiv:1412.6572, with the Euclidean norm of Miyato et al. 2016,
    arXiv:1507.00677.

    Args:
        radius: Euclidean distance between an image and its adversarial example, on the [0, 1] scale
            of the pixels.

    Raises:
        InputError: If it is negative.
    """

    def __init__(self, radius: float) -> None:
        if not 0 <= radius < float("inf"):
            raise InputError(f"Expected `adversarial` to be 0 or more, but got {radius}")
        self.radius = radius

    def __bool__(self) -> bool:
        """Whether there are adversarial examples at all."""
        return self.radius > 0
