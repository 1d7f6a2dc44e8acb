"""Brings pictures of any size to 28 × 28 grey pixels: as they are, or MNIST's way."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fnn_lightning.data.datasets import Framing
from fnn_lightning.data.preprocessing import IMAGE_SIZE, load_picture, read_picture, to_mnist
from fnn_lightning.errors import InputError


def frame_picture(picture: Image.Image, framing: Framing) -> Tensor:
    """Bring a picture to 28 × 28 pixels.

    Args:
        picture: Any size and mode, upright.
        framing: `resize`, or `mnist` for ink on paper.

    Returns:
        `uint8` of shape `(28, 28)`.

    Raises:
        InputError: If `resize_picture` or `to_mnist` refuses it.
    """
    return to_mnist(picture) if framing == "mnist" else resize_picture(picture)


def read_framed(path: Path, framing: Framing) -> Tensor:
    """Read a picture file and bring it to 28 × 28 pixels, as `frame_picture` does.

    Raises:
        InputError: If the file is no picture, is damaged or too large, or is refused.
    """
    if framing == "mnist":
        return read_picture(path)
    try:
        return resize_picture(load_picture(path))
    except InputError:
        raise
    except Exception as error:  # such as a mode that Pillow does not convert
        raise InputError(f"it cannot be converted to grey: {error}") from error


def resize_picture(picture: Image.Image) -> Tensor:
    """Stretch a picture to 28 × 28 grey pixels, with antialiasing; what is transparent is black.

    Args:
        picture: Any size and mode, upright. One of 28 × 28 grey pixels stays as it is.

    Returns:
        `uint8` of shape `(28, 28)`.

    Raises:
        InputError: If the range of its pixels is unknown.

    Example:
        >>> picture = Image.new("RGB", (300, 200), "red")
        >>> resize_picture(picture).unique()
        tensor([76], dtype=torch.uint8)
    """
    grey = to_grey_bytes(picture)
    if grey.size != (IMAGE_SIZE, IMAGE_SIZE):
        grey = grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(grey))


def to_grey_bytes(picture: Image.Image) -> Image.Image:
    """Convert a picture to grey levels of one byte, by the luma of ITU-R 601-2."""
    if picture.mode.startswith(("I", "F")):
        levels = np.asarray(picture)
        # older versions of Pillow open a PNG of 16 bits in a mode of 32
        if picture.mode.startswith("F") or levels.min() < 0 or levels.max() > 65_535:
            raise InputError(
                "its pixels have 32 bits, of a range that it does not tell: save it with 8 or 16"
            )
        return Image.fromarray(np.rint(levels / 257).astype(np.uint8))
    if picture.has_transparency_data:
        black = Image.new("RGBA", picture.size, "black")
        picture = Image.alpha_composite(black, picture.convert("RGBA"))
    if picture.mode not in ("L", "1"):
        picture = picture.convert("RGB")
    return picture.convert("L")
