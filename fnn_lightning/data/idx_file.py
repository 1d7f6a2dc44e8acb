"""Reads IDX files, the form in which MNIST is published."""

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fnn_lightning.errors import InputError


def idx_shape(path: Path, ndim: int) -> tuple[int, ...]:
    """Read the shape in the header of an IDX file of unsigned bytes, and check the file's size.

    Args:
        path: An uncompressed IDX file.
        ndim: Expected number of dimensions: 3 for images, 1 for labels.

    Raises:
        InputError: If the file is missing, is not an IDX file of `ndim` dimensions of unsigned
            bytes, or has another size than its header says.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing" if not path.exists() else f"{path} is not a file")
    # magic number: two zero bytes, 0x08 for unsigned bytes, the number of dimensions
    header_size = 4 + 4 * ndim
    with path.open("rb") as file:
        header = file.read(header_size)
    if len(header) < header_size or header[:4] != bytes([0, 0, 8, ndim]):
        raise InputError(f"{path} is damaged: it does not start with the header of an IDX file")
    shape = struct.unpack(f">{ndim}I", header[4:])
    expected, size = header_size + math.prod(shape), path.stat().st_size
    if size != expected:
        raise InputError(
            f"{path} is damaged: its header promises {expected:,} bytes, but it has {size:,}"
        )
    return shape


def image_count(path: Path) -> int:
    """Return the number of images in an IDX file, from its header.

    Raises:
        InputError: If the file is not an intact IDX file of 28 × 28 images.
    """
    count, *size = idx_shape(path, ndim=3)
    if size != [28, 28]:
        raise InputError(f"Expected images of 28 × 28 pixels in {path}, but got {size}")
    return count


def read_images(path: Path) -> Tensor:
    """Read an IDX file of images.

    Returns:
        `uint8` of shape `(N, 28, 28)`, ink 255 on 0.

    Raises:
        InputError: If the file is not an intact IDX file of 28 × 28 images.
    """
    count = image_count(path)
    return torch.from_numpy(np.fromfile(path, dtype=np.uint8, offset=16)).view(count, 28, 28)


def read_labels(path: Path) -> Tensor:
    """Read an IDX file of labels.

    Returns:
        `int64` of shape `(N,)`, values 0–9.

    Raises:
        InputError: If the file is not an intact IDX file of digits 0–9.
    """
    idx_shape(path, ndim=1)
    labels = torch.from_numpy(np.fromfile(path, dtype=np.uint8, offset=8)).long()
    if len(labels) and labels.max() > 9:
        raise InputError(f"Expected labels 0–9 in {path}, but got {labels.max()}")
    return labels
