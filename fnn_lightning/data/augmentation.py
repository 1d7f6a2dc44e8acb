"""Random deformation of training images, a batch at a time."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fnn_lightning.errors import InputError

SIDE = 28  # pixels
SMOOTHNESS = 5.0  # pixels: standard deviation of the Gaussian filter of the elastic field
MODES = 7  # of the elastic field, per direction: they hold 0.999 of its variance
MAX_VALUES = {"rotation": 180.0, "scale": 0.9, "shear": 60.0, "shift": 28.0, "elastic": 28.0}


@dataclass(frozen=True)
class Augmentation:
    """Random affine and elastic deformation of images, in one resampling.

    Simard et al. (2003, "Best practices for convolutional neural networks applied to visual
    document analysis") and Cireşan et al. (2010, arXiv:1003.0358) multiply their training images by
    both. All values are drawn independently for every image. A value of 0 disables its part.

    Args:
        rotation: Maximum rotation in degrees, in either direction.
        scale: Maximum relative change of width and height, drawn independently.
        shear: Maximum slant of vertical strokes in degrees, in either direction.
        shift: Maximum shift in pixels, horizontal and vertical drawn independently.
        elastic: Standard deviation in pixels of the horizontal and vertical displacements. Each is
            a normally distributed field, as smooth as white noise after a Gaussian filter with a
            standard deviation of 5 pixels; the sources used 4 to 6.
        min_strength: Each image's strength is drawn from U(min_strength, 1) and multiplies all the
            values above. Below 1, strongly deformed images are mixed with nearly unchanged ones,
            such as those of the test set.
        end: Share of the run's batches that are deformed. Below 1, the last ones are served as they
            are, so that the run finishes on images like those of the test set (He et al. 2019,
            arXiv:1909.09148).

    Raises:
        InputError: If a value is out of its range.

    Example:
        >>> augmentation = Augmentation(rotation=15, elastic=1.2)
        >>> augmentation.draw(3, seed=(0,)).shape
        torch.Size([3, 2, 52])
    """

    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0
    min_strength: float = 1.0
    end: float = 1.0

    def __post_init__(self) -> None:
        for name, most in MAX_VALUES.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise InputError(f"Expected `{name}` to be from 0 to {most:g}, but got {value}")
        if not 0 <= self.min_strength <= 1:
            raise InputError(
                f"Expected `min_strength` to be from 0 to 1, but got {self.min_strength}"
            )

        if not 0 < self.end <= 1:
            raise InputError(f"Expected `end` to be above 0 and at most 1, but got {self.end}")

    def __bool__(self) -> bool:
        """Whether anything is deformed at all."""
        return any(getattr(self, name) for name in MAX_VALUES)

    def draw(self, count: int, seed: tuple[int, ...]) -> Tensor:
        """Draw the coefficients of a batch's sampling grids.

        They are drawn on the CPU, so that they do not depend on the device.

        Args:
            count: Number of images.
            seed: Together with the values of the augmentation, it determines the result.

        Returns:
            `float32` of shape `(count, 2, 3)`, or `(count, 2, 52)` with an elastic part: for each
            image the coefficients of `x` and of `y`, for `sampling_grid`.
        """
        state = np.random.SeedSequence(seed).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        drawn = 2 * torch.rand(6, count, generator=generator, dtype=torch.float32) - 1
        field = torch.zeros(count, 2, 0)
        if self.elastic:
            field = torch.randn(count, 2, MODES**2, generator=generator, dtype=torch.float32)
        if self.min_strength < 1:
            strength = torch.rand(count, generator=generator, dtype=torch.float32)
            strength = 1 - (1 - self.min_strength) * strength
            drawn, field = drawn * strength, field * strength.view(-1, 1, 1)
        angle, slant = math.radians(self.rotation) * drawn[0], math.radians(self.shear) * drawn[1]
        affine = affine_coefficients(
            angle=angle,
            slant=slant,
            scale=1 + self.scale * drawn[2:4],
            shift=self.shift * drawn[4:6],
        )
        return torch.cat([affine, field * (self.elastic * 2 / SIDE)], dim=2)


def affine_coefficients(angle: Tensor, slant: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return the affine maps from a deformed image back to the original.

    An image is slanted, then scaled, rotated and shifted, about its centre.

    Args:
        angle: Counterclockwise rotation in radians, shape `(B,)`.
        slant: Slant of vertical strokes to the right, in radians, shape `(B,)`.
        scale: Factors of width and height, shape `(2, B)`.
        shift: Pixels to the right and down, shape `(2, B)`.

    Returns:
        Shape `(B, 2, 3)`, as `torch.nn.functional.affine_grid` takes them.
    """
    cos, sin = angle.cos(), angle.sin()
    right, down = shift * (2 / SIDE)
    # undone in the opposite order; `y` points down
    x = torch.stack([cos, -sin, sin * down - cos * right], dim=1) / scale[0].unsqueeze(1)
    y = torch.stack([sin, cos, -sin * right - cos * down], dim=1) / scale[1].unsqueeze(1)
    return torch.stack([x + slant.tan().unsqueeze(1) * y, y], dim=1)


@lru_cache
def basis(device: torch.device) -> Tensor:
    """Return, for every pixel, the basis functions whose coefficients `Augmentation.draw` draws.

    They are `x`, `y`, 1 and the modes of the elastic field, its Karhunen–Loève expansion. White
    noise after a Gaussian filter of standard deviation σ has a correlation of `exp(−d² / 4σ²)`
    between pixels at a distance `d`: a product of a horizontal and a vertical factor. So the modes
    are products of eigenvectors of the correlation along one side, each times the square root of
    its eigenvalue, and their coefficients are independent standard normals. All sampling grids are
    one matrix product; no image needs a filter of its own.

    Returns:
        `float32` of shape `(52, 784)`.
    """
    centres = (2 * torch.arange(SIDE, dtype=torch.float32) + 1) / SIDE - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    affine = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    pixel = torch.arange(SIDE, dtype=torch.float64)
    distance = pixel.unsqueeze(1) - pixel
    values, vectors = torch.linalg.eigh(torch.exp(-((distance / (2 * SMOOTHNESS)) ** 2)))
    modes = vectors[:, -MODES:] * values[-MODES:].sqrt()
    modes = modes * modes[0].sign()  # or the field would depend on which sign LAPACK picks
    elastic = torch.kron(modes, modes).T.float()
    return torch.cat([affine, elastic]).to(device)


def sampling_grid(coefficients: Tensor) -> Tensor:
    """Compute the point that each pixel of an augmented image is taken from.

    Args:
        coefficients: What `Augmentation.draw` returned, shape `(B, 2, K)`.

    Returns:
        `(x, y)`, shape `(B, 28, 28, 2)`, as `torch.nn.functional.grid_sample` takes them: from −1
        at the left and upper edge to 1 at the right and lower edge.
    """
    count, _, functions = coefficients.shape
    grid = coefficients.flatten(0, 1) @ basis(coefficients.device)[:functions]
    return grid.view(count, 2, SIDE, SIDE).permute(0, 2, 3, 1)


def resample(images: Tensor, grid: Tensor) -> Tensor:
    """Take every pixel from its point, interpolated bilinearly; there is no ink beyond the edge.

    Args:
        images: Raw pixels 0–255, of shape `(B, 28, 28)`.
        grid: What `sampling_grid` returned.

    Returns:
        Raw pixels, `float32` of shape `(B, 28, 28)`, with values 0–255.
    """
    pixels = images.to(torch.float32).unsqueeze(1)
    return F.grid_sample(pixels, grid, mode="bilinear", align_corners=False).squeeze(1)
