"""Reads IDX files, the form in which MNIST is published."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fnn_lightning.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"


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
    with path.open("rb") as file:
        header = file.read(_header_size(ndim))
    return _shape(header, path.stat().st_size, path, ndim)


def _header_size(ndim: int) -> int:
    return 4 + 4 * ndim


def _shape(header: bytes, size: int, path: Path, ndim: int) -> tuple[int, ...]:
    """Return the shape that a header gives, and check it against the size of the content."""
    # magic number: two zero bytes, 0x08 for unsigned bytes, the number of dimensions
    if len(header) < _header_size(ndim) or header[:4] != bytes([0, 0, 8, ndim]):
        raise InputError(f"{path} is damaged: it does not start with the header of an IDX file")
    shape = struct.unpack(f">{ndim}I", header[4:])
    expected = _header_size(ndim) + math.prod(shape)
    if size != expected:
        raise InputError(
            f"{path} is damaged: its header promises {expected:,} bytes, but it has {size:,}"
        )
    return shape


def read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, packed by gzip or not.

    Args:
        path: The file.
        ndim: Expected number of dimensions.

    Raises:
        InputError: If the file is missing, damaged, or no IDX file of `ndim` dimensions.
    """
    try:
        content = path.read_bytes()
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    shape = _shape(content[: _header_size(ndim)], len(content), path, ndim)
    # a copy, which can be written to
    return np.frombuffer(content, np.uint8, offset=_header_size(ndim)).reshape(shape).copy()


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
        `int64` of shape `(N,)`, values 0–255.

    Raises:
        InputError: If the file is not an intact IDX file of labels.
    """
    idx_shape(path, ndim=1)
    return torch.from_numpy(np.fromfile(path, dtype=np.uint8, offset=8)).long()
