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

# by the end of a file's name: the third byte of the magic number, bytes of each
ITEMS = {"ubyte": (0x08, 1), "int": (0x0C, 4)}
GZIP_MAGIC = b"\x1f\x8b"


def idx_shape(path: Path, ndim: int, item: str = "ubyte") -> tuple[int, ...]:
    """Read the shape in the header of an IDX file, and check the file's size.

    Args:
        path: An uncompressed IDX file.
        ndim: Expected number of dimensions: 3 for images, 1 for labels.
        item: Expected type, one of `ITEMS`.

    Raises:
        InputError: If the file is missing, is not an IDX file of `ndim` dimensions of that type,
            or has another size than its header says.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing" if not path.exists() else f"{path} is not a file")
    with path.open("rb") as file:
        header = file.read(_header_size(ndim))
    return _shape(header, path.stat().st_size, path, ndim, item)


def _header_size(ndim: int) -> int:
    return 4 + 4 * ndim


def _shape(header: bytes, size: int, path: Path, ndim: int, item: str = "ubyte") -> tuple[int, ...]:
    """Return the shape that a header gives, and check it against the size of the content."""
    code, size_of_item = ITEMS[item]
    # magic number: two zero bytes, the type, the number of dimensions
    if len(header) < _header_size(ndim) or header[:4] != bytes([0, 0, code, ndim]):
        raise InputError(f"{path} is damaged: it does not start with the header of an IDX file")
    shape = struct.unpack(f">{ndim}I", header[4:])
    expected = _header_size(ndim) + size_of_item * math.prod(shape)
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


def read_label_rows(path: Path) -> Tensor:
    """Read QMNIST's labels: an IDX file of rows of 4-byte integers, the digit first.

    The others say who wrote it, and where it stands in NIST's own data.

    Returns:
        `int64` of shape `(N,)`.

    Raises:
        InputError: If the file is not an intact IDX file of such rows.
    """
    rows, columns = idx_shape(path, ndim=2, item="int")
    if columns < 1:
        raise InputError(f"Expected rows of labels in {path}, but got {columns} columns")
    table = np.fromfile(path, dtype=">i4", offset=12).reshape(rows, columns)
    return torch.from_numpy(table[:, 0].astype(np.int64))
