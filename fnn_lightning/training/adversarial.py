"""Trains on adversarial examples beside the images (Goodfellow et al. 2015, arXiv:1412.6572)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fnn_lightning.errors import InputError

WHITE = 255  # the greatest raw pixel


class AdversarialExamples:
    """Moves each image a small distance, in the direction in which its loss rises fastest.

    A network that is right there too is smooth around its images. Unlike a deformation, that takes
    no knowledge of which pixels are neighbours.

    Source: Goodfellow et al. 2015, "Explaining and harnessing adversarial examples",
    arXiv:1412.6572, with the Euclidean norm of Miyato et al. 2016, arXiv:1507.00677, and the
    several steps of Kurakin et al. 2017, arXiv:1607.02533.

    Args:
        radius: Length of the way from an image to its adversarial example, on the [0, 1] scale of
            the pixels: with one step, the Euclidean distance between them. 0 makes none.
        steps: Number of equal parts of that way, at the start of each of which the direction is
            found anew. Each after the first takes another pass, forward and backward.

    Raises:
        InputError: If the radius is negative or not finite, or `steps` is no positive integer.
    """

    def __init__(self, radius: float, steps: int = 1) -> None:
        if not 0 <= radius < math.inf:
            raise InputError(
                f"Expected `adversarial_radius` to be a finite number from 0, but got {radius}"
            )
        if type(steps) is not int or steps < 1:
            raise InputError(
                f"Expected `adversarial_steps` to be an integer of 1 or more, but got {steps!r}"
            )
        self.radius = radius
        self.steps = steps

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self.radius > 0

    def of(self, images: Tensor, loss: Tensor, loss_at: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute the adversarial example of each image.

        Args:
            images: Raw pixels, floating point, of shape `(B, …)`, which require a gradient.
            loss: Computed from them, of shape `()`. Its graph is kept.
            loss_at: Computes the loss of other images of their shape.

        Returns:
            Raw pixels of the same shape and dtype, not bounded to 0–255. An image whose loss has no
            gradient stays as it is.

        Example:
            >>> def loss_at(images: Tensor) -> Tensor:
            ...     return (images * torch.tensor([3.0, 0.0, -4.0])).sum()
            >>> images = torch.zeros(2, 3, requires_grad=True)
            >>> AdversarialExamples(1.0).of(images, loss_at(images), loss_at)
            tensor([[ 153.,    0., -204.],
                    [ 153.,    0., -204.]])
        """
        length = WHITE * self.radius / self.steps
        (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
        examples = images.detach() + length * directions(gradient)
        for _ in range(1, self.steps):
            (gradient,) = torch.autograd.grad(loss_at(examples.requires_grad_()), examples)
            examples = examples.detach() + length * directions(gradient)
        return examples


def directions(gradient: Tensor) -> Tensor:
    """Scale the gradient of each image, of shape `(B, …)`, to a length of 1, or 0 if it is 0."""
    tiny = torch.finfo(gradient.dtype).tiny
    rows = gradient.flatten(1)
    # scaled first: of an image whose loss is close to 0, the squares would be 0
    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(tiny)
    scaled: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(tiny)
    return scaled.view_as(gradient)
