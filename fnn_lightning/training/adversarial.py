"""Trains on adversarial examples beside the images (Goodfellow et al. 2015, arXiv:1412.6572)."""

import math

import torch
from torch import Tensor

from fnn_lightning.errors import InputError

WHITE = 255  # the greatest raw pixel


class AdversarialExamples:
    """Moves each image a small distance, in the direction in which its loss rises fastest.

    A network that is right there too is smooth around its images. Unlike a deformation, that takes
    no knowledge of which pixels are neighbours.

    Source: Goodfellow et al. 2015, "Explaining and harnessing adversarial examples",
    arXiv:1412.6572, with the Euclidean norm of Miyato et al. 2016, arXiv:1507.00677.

    Args:
        radius: Euclidean distance between an image and its adversarial example, on the [0, 1] scale
            of the pixels; 0 makes none.

    Raises:
        InputError: If it is negative or not finite.
    """

    def __init__(self, radius: float) -> None:
        if not 0 <= radius < math.inf:
            raise InputError(
                f"Expected `adversarial_radius` to be a finite number from 0, but got {radius}"
            )
        self.radius = radius

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self.radius > 0

    def of(self, images: Tensor, loss: Tensor) -> Tensor:
        """Compute the adversarial example of each image.

        Args:
            images: Raw pixels, floating point, of shape `(B, …)`, which require a gradient.
            loss: Computed from them, of shape `()`. Its graph is kept.

        Returns:
            Raw pixels of the same shape and dtype, not bounded to 0–255. An image whose loss has no
            gradient stays as it is.

        Example:
            >>> images = torch.zeros(2, 3, requires_grad=True)
            >>> AdversarialExamples(1.0).of(images, (images * torch.tensor([3.0, 0.0, -4.0])).sum())
            tensor([[ 153.,    0., -204.],
                    [ 153.,    0., -204.]])
        """
        (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
        tiny = torch.finfo(gradient.dtype).tiny
        rows = gradient.flatten(1)
        # scaled first: of an image whose loss is close to 0, the squares would be 0
        rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(tiny)
        directions = rows / rows.norm(dim=1, keepdim=True).clamp_min(tiny)
        examples: Tensor = images.detach() + WHITE * self.radius * directions.view_as(images)
        return examples
