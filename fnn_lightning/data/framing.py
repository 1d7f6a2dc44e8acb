"""Brings pictures of any size to 28 × 28 grey pixels: as they are, or MNIST's way."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fnn_lightning.data.datasets import BadFiles, Framing
from fnn_lightning.data.preprocessing import IMAGE_SIZE, load_picture, read_picture, to_mnist
from fnn_lightning.errors import InputError
from fnn_lightning.runs.progress import progress_bar

Item = TypeVar("Item")


class Framed(NamedTuple):
    """Pictures of 28 × 28 pixels, and those that could not be read."""

    images: Tensor
    """`uint8` of shape `(N, 28, 28)`, in the order of the pictures; one that is bad is black."""
    bad: dict[int, str]
    """Why a picture could not be read, by its index."""


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


def frame_all(
    items: Sequence[Item],
    frame: Callable[[Item], Tensor],
    name: Callable[[Item], str],
    bad_files: BadFiles,
    shown: bool,
) -> Framed:
    """Bring many pictures to 28 × 28 pixels, with a progress bar.

    Args:
        items: What the pictures are made of.
        frame: Makes `uint8` of shape `(28, 28)` of an item, or raises an `InputError`.
        name: What messages call an item.
        bad_files: Whether a picture that cannot be read stops it.
        shown: Whether this process may show the bar.

    Raises:
        InputError: If a picture cannot be read, unless such are skipped.
    """
    images = np.zeros((len(items), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    bad: dict[int, str] = {}
    with progress_bar(items, "reading", shown, delay=1) as bar:
        for index, item in enumerate(bar):
            try:
                images[index] = frame(item).numpy()
            except InputError as error:
                if bad_files == "stop":
                    raise InputError(
                        f"Expected pictures, but got {name(item)}: {error}: remove it, or leave "
                        "such pictures out by --data.bad_files skip"
                    ) from error
                bad[index] = str(error)
    return Framed(torch.from_numpy(images), bad)


def frame_array(
    array: NDArray[Any], name: str, framing: Framing, bad_files: BadFiles, shown: bool
) -> Framed:
    """Bring an array of pictures to 28 × 28 pixels.

    Args:
        array: `uint8` of shape `(N, H, W)`, or `(N, H, W, 3)` in colour.
        name: What messages call it.
        framing: As `frame_picture` takes it.
        bad_files: As `frame_all` takes it.
        shown: As `frame_all` takes it.

    Raises:
        InputError: If a picture cannot be framed, unless such are skipped.
    """
    if framing == "resize" and array.shape[1:] == (IMAGE_SIZE, IMAGE_SIZE):
        return Framed(torch.from_numpy(np.ascontiguousarray(array)), {})

    def frame(index: int) -> Tensor:
        return frame_picture(Image.fromarray(array[index]), framing)

    return frame_all(
        range(len(array)), frame, lambda index: f"{name}, picture {index}", bad_files, shown
    )
