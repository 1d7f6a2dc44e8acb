"""Converts what `predict` takes, pictures or arrays, to a batch of raw pixels."""

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fnn_lightning.data.datasets import Framing
from fnn_lightning.errors import InputError
from fnn_lightning.training.pixel_scale import wrong_scale

IMAGE_SHAPES = ((28, 28), (784,))
BATCHED_SHAPES = ((28, 28), (784,), (1, 28, 28))  # each after the number of images


def raw_pixels(x: Any, framing: Framing = "mnist") -> tuple[Tensor, bool]:
    """Convert pictures or arrays to raw pixels.

    Args:
        x: A picture (its path or a PIL image), converted as `frame_picture` does; or a NumPy array
            or a tensor of pixels 0–255, ink 255 on 0, of shape `(28, 28)`, `(784,)`, `(N, 28, 28)`,
            `(N, 784)` or `(N, 1, 28, 28)`; or a list of pictures and arrays of one image each.
        framing: How a picture becomes 28 × 28 pixels; an array stays as it is.

    Returns:
        Pixels of shape `(N, 28, 28)`, `uint8` or floating point, and whether `x` is one image
        rather than several.

    Raises:
        InputError: If there is no image, or one cannot be read, has another shape, is on another
            scale, or is not finite.

    Example:
        >>> pixels, single = raw_pixels(np.zeros((28, 28), np.uint8))
        >>> pixels.shape, single
        (torch.Size([1, 28, 28]), True)
    """
    if isinstance(x, list | tuple):
        if not x:
            raise InputError("Expected at least one image, but got an empty list")
        return torch.cat([_one(each, f"item {i}", framing) for i, each in enumerate(x)]), False
    if _is_picture(x):
        return _read(x, "a PIL image", framing), True
    images = to_tensor(x)
    shape = tuple(images.shape)
    if shape not in IMAGE_SHAPES and shape[1:] not in BATCHED_SHAPES:
        raise InputError(
            "Expected images of shape (28, 28), (N, 28, 28), (N, 784) or (N, 1, 28, 28), "
            f"but got {shape}"
        )
    if not images.numel():
        raise InputError(f"Expected at least one image, but got none: shape {shape}")
    return _checked(images), shape in IMAGE_SHAPES


def to_tensor(x: Any) -> Tensor:
    """Convert an array of numbers to a tensor; a tensor stays as it is.

    Raises:
        InputError: If it is something else.
    """
    if isinstance(x, Tensor):
        return x.detach()
    try:
        array = np.asarray(x) if hasattr(x, "__array__") else None
        if array is not None:
            # a copy: PyTorch takes neither foreign byte orders nor arrays that are read-only
            return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError):  # an array of something else than numbers
        pass
    raise InputError(
        f"Expected a picture's path, a PIL image, a NumPy array or a tensor, but got {x!r:.100}"
    )


def _one(x: Any, name: str, framing: Framing) -> Tensor:
    """Convert one item of a list to pixels of shape `(1, 28, 28)`."""
    if _is_picture(x):
        return _read(x, name, framing)
    image = to_tensor(x)
    if tuple(image.shape) not in BATCHED_SHAPES:
        raise InputError(
            f"Expected each item of a list to be one image of shape (28, 28), "
            f"but got {name} of shape {tuple(image.shape)}"
        )
    return _checked(image)


def _checked(images: Tensor) -> Tensor:
    """Check the pixels of images, and give them the shape `(N, 28, 28)`."""
    if images.dtype == torch.bool or images.is_complex():
        raise InputError(f"Expected pixels from 0 to 255, but got {images.dtype}: multiply by 255")
    images = images.reshape(-1, 28, 28)
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        images = images.float()
    if not images.isfinite().all():
        raise InputError("Expected finite pixels from 0 to 255, but got NaN or infinity")
    if message := wrong_scale(images):
        raise InputError(message)
    return images


def _is_picture(x: Any) -> bool:
    return isinstance(x, str | PathLike | Image.Image)


def _read(picture: Any, name: str, framing: Framing) -> Tensor:
    """Convert a picture, named in messages by its path if it has one, to pixels `(1, 28, 28)`."""
    # takes SciPy, which is slow to import
    from fnn_lightning.data.framing import frame_picture, read_framed

    try:
        if isinstance(picture, Image.Image):
            return frame_picture(ImageOps.exif_transpose(picture), framing)[None]
        path = Path(fspath(picture)).expanduser()
        name = str(path)
        if path.is_dir():
            raise InputError("it is a folder: give a list of the pictures in it")
        return read_framed(path, framing)[None]
    except (ArithmeticError, OSError, RuntimeError, TypeError, ValueError) as error:
        of_what = " of a digit" if framing == "mnist" else ""
        raise InputError(f"Expected a picture{of_what}, but got {name}: {error}") from error
