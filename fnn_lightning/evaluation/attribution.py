"""Which pixels of an image speak for the answer of a network, and which against."""

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from fnn_lightning.evaluation.predictions import evaluation_mode
from fnn_lightning.lit_module import FNNLitModule

FOR, AGAINST = (213, 94, 0), (0, 114, 178)
"""Vermilion and blue of Okabe and Ito (2008), which colour-blind people tell apart."""
STEPS = 50  # from a blank image to the image; the source used 20 to 300
SHADES = 15  # from white to each colour; more would only make the file larger


def attribute(module: FNNLitModule, images: Tensor, classes: Tensor, others: Tensor) -> Tensor:
    """Attribute the lead of one class over another to the pixels, by integrated gradients.

    The lead is the difference of the two logits. A pixel's contribution is what the first layer
    gets of it beyond a blank image, times the gradient of the lead there, as the mean over images
    on the way from the blank image to this one (Sundararajan et al. 2017, arXiv:1703.01365). So
    the contributions add up to the lead, less that of a blank image: exactly without hidden
    layers, where this is gradient times input, and otherwise as nearly as `STEPS` images allow.
    The gradient at the image alone can point elsewhere, in a network that is sure of it.

    Args:
        module: The network; it is put in evaluation mode, and then back.
        images: Raw pixels 0–255 of shape `(N, 28, 28)`.
        classes: The answers, `int64` of shape `(N,)`.
        others: The class that each is compared with, likewise.

    Returns:
        `float32` of shape `(N, 28, 28)`, on the CPU: above 0 where a pixel speaks for the answer,
        below 0 where it speaks for the other class.

    Example:
        >>> module = FNNLitModule(hidden_dims=[])
        >>> images = torch.randint(256, (1, 28, 28))
        >>> three, eight = torch.tensor([3]), torch.tensor([8])
        >>> total = attribute(module, images, three, eight).sum()
        >>> with torch.no_grad():
        ...     logits, bias = module(images)[0], module.network.layers[-1].bias
        ...     torch.testing.assert_close(total + bias[3] - bias[8], logits[3] - logits[8])
    """
    network = module.network
    images = images.to(module.device)
    # a test runs in inference mode, which would keep no graph
    with evaluation_mode(network), torch.inference_mode(False), torch.enable_grad():
        pairs = torch.stack([classes, others], dim=1).to(module.device)
        blank = network.scale(torch.zeros_like(images))
        ink = network.scale(images) - blank
        total = torch.zeros_like(ink)
        for step in range(STEPS):
            inputs = (blank + (step + 0.5) / STEPS * ink).requires_grad_()
            chosen = network.layers(inputs).gather(1, pairs)
            (gradient,) = torch.autograd.grad((chosen[:, 0] - chosen[:, 1]).sum(), inputs)
            total += gradient
    return (total / STEPS * ink).float().view(images.shape).cpu()


def draw_attribution(contributions: Tensor) -> str:
    """Draw the contributions of an image's pixels: `FOR` above 0, `AGAINST` below, white at 0.

    Full colour is the greatest contribution, of either sign.

    Args:
        contributions: Of shape `(28, 28)`.

    Returns:
        A base64-encoded PNG of as many pixels.
    """
    greatest = contributions.abs().max().clamp(min=torch.finfo(contributions.dtype).tiny)
    levels = (SHADES * contributions / greatest).round()
    picture = Image.fromarray((levels + SHADES).to(torch.uint8).numpy(), "P")
    picture.putpalette([value for level in range(-SHADES, SHADES + 1) for value in shade(level)])
    content = io.BytesIO()
    picture.save(content, "png", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def shade(level: int) -> tuple[int, ...]:
    """Return the colour of a level from `-SHADES` to `SHADES`.

    >>> shade(0), shade(SHADES) == FOR
    ((255, 255, 255), True)
    """
    colour = FOR if level > 0 else AGAINST
    return tuple(round(255 - (255 - part) * abs(level) / SHADES) for part in colour)


def css_colour(colour: tuple[int, int, int]) -> str:
    """Write a colour for a style sheet.

    >>> css_colour(FOR)
    '#d55e00'
    """
    return "#" + bytes(colour).hex()
