"""MNIST's four files: fetching them into a folder, and reading their IDX format."""

import math
import socket
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import torch
from torch import Tensor

from fnn_lightning.errors import InputError

# name of each uncompressed file, and its number of dimensions
FILES = {
    "train-images-idx3-ubyte": 3,
    "train-labels-idx1-ubyte": 1,
    "t10k-images-idx3-ubyte": 3,
    "t10k-labels-idx1-ubyte": 1,
}
TIMEOUT_SECONDS = 30


def raw_dir(data_dir: str) -> Path:
    """Return the folder of the uncompressed files, the same as torchvision's.

    Example:
        >>> raw_dir("data").as_posix()
        'data/MNIST/raw'
    """
    return Path(data_dir).expanduser() / "MNIST" / "raw"


def fetch_mnist(data_dir: str, mirror: str | None) -> None:
    """Download or copy the MNIST files that `raw_dir(data_dir)` lacks.

    Sources, in this order: archives that are in that folder already, `mirror`, torchvision's
    mirrors. A file appears under its name only if its archive has the MD5 digest that torchvision
    lists. Damaged files are replaced.

    Args:
        data_dir: Folder of the data; made if missing.
        mirror: Base URL or folder that holds the four `.gz` archives.

    Raises:
        InputError: If a file is missing and no source has it, or it cannot be written.
    """
    folder = raw_dir(data_dir)
    if not _problems(folder):
        return

    from filelock import FileLock

    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            _fetch_missing(folder, mirror)
    except OSError as error:
        raise InputError(
            f"Expected `data_dir` to be a folder that can be written, "
            f"but got {data_dir!r}: {error.strerror}: {error.filename}"
        ) from error
    finally:
        # Another run that waits for the lock then finds the files, or fails for its own reason.
        with suppress(OSError):
            (folder / ".lock").unlink()
        for path in created:  # from the innermost outwards; only empty ones can be removed
            with suppress(OSError):
                path.rmdir()


def _fetch_missing(folder: Path, mirror: str | None) -> None:
    """Fetch the files of a folder that are missing or damaged.

    Raises:
        InputError: If no source has one of them.
    """
    from torchvision.datasets import MNIST

    digests = dict(MNIST.resources)
    mirrors = [*([_source(mirror)] if mirror else []), *MNIST.mirrors]
    # in the files' own folder, so that moving them to their place is a rename and hence atomic
    with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
        problems = _problems(folder)  # with the lock held: another run may have fetched some
        for name in problems:
            archive = f"{name}.gz"
            sources = [folder, *mirrors] if (folder / archive).is_file() else mirrors
            try:
                _download(archive, digests[archive], sources, scratch)
            except InputError as error:
                raise InputError(
                    f"MNIST is incomplete: {'; '.join(problems.values())}; tried to get "
                    f"{archive} from {error}. Use --data.mirror with a folder or base URL that "
                    "holds MNIST's four .gz archives, or train on the embedded digits with "
                    "--data.dataset digits"
                ) from None
            (Path(scratch) / name).replace(folder / name)


def _problems(folder: Path) -> dict[str, str]:
    """Return the missing or damaged files of a folder, each with what is wrong with it."""
    return {name: problem for name in FILES if (problem := _problem(folder / name))}


def _problem(path: Path) -> str | None:
    """Return what is wrong with an IDX file, or None if it is intact."""
    try:
        idx_shape(path, FILES[path.name])
    except InputError as error:
        return str(error)
    return None


def _source(mirror: str) -> str | Path:
    """Return a mirror as a base URL that ends in a slash, or as a folder."""
    if mirror.startswith("file://"):
        return Path(url2pathname(urlparse(mirror).path))
    return f"{mirror.rstrip('/')}/" if "://" in mirror else Path(mirror).expanduser()


def _download(archive: str, md5: str, sources: Iterable[str | Path], folder: str) -> None:
    """Get an archive from the first source that has it, and extract it into a folder.

    Raises:
        InputError: If no source has it; the message lists the sources and why each failed.
    """
    failures: list[str] = []
    for source in sources:
        try:
            if isinstance(source, str):
                _extract_from_url(source + archive, md5, folder)
            else:
                _extract_from_file(source / archive, md5, folder)
            return
        # RuntimeError: wrong digest; ValueError: not a URL
        except (OSError, HTTPException, RuntimeError, ValueError) as error:
            failures.append(f"{source} ({getattr(error, 'reason', None) or error})")
    raise InputError("; ".join(failures) or "nowhere")


def _extract_from_url(url: str, md5: str, folder: str) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    with _socket_timeout():
        download_and_extract_archive(url, folder, md5=md5)


def _extract_from_file(archive: Path, md5: str, folder: str) -> None:
    from torchvision.datasets.utils import check_integrity, extract_archive

    if not check_integrity(archive, md5):
        raise RuntimeError("the archive is damaged" if archive.exists() else "no such archive")
    extract_archive(archive, folder)


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Limit every wait for the network; torchvision's download code sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


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
