"""MNIST's four files: fetched into a folder, checked, and read from their IDX format."""

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

# name of each uncompressed file, and the number of dimensions of what it holds
FILES = {
    "train-images-idx3-ubyte": 3,
    "train-labels-idx1-ubyte": 1,
    "t10k-images-idx3-ubyte": 3,
    "t10k-labels-idx1-ubyte": 1,
}
TIMEOUT_SECONDS = 30


def raw_dir(data_dir: str) -> Path:
    """Return the folder of the uncompressed files, the one that torchvision uses too."""
    return Path(data_dir).expanduser() / "MNIST" / "raw"


def fetch_mnist(data_dir: str, mirror: str | None) -> None:
    """Bring the four MNIST files into `raw_dir(data_dir)`, unless sound ones lie there.

    A file appears under its name only when its archive had the MD5 digest that torchvision knows;
    a damaged one is replaced. The order in which the sources are tried: archives that lie in the
    folder already, `mirror`, torchvision's mirrors.

    Args:
        data_dir: Where the data lives. Made if need be.
        mirror: Base URL or folder that holds the four `.gz` archives.

    Raises:
        InputError: If a file is neither there nor to be had, or cannot be written.
    """
    folder = raw_dir(data_dir)
    if not _problems(folder):
        return

    from filelock import FileLock
    from torchvision.datasets import MNIST

    digests = dict(MNIST.resources)
    sources: list[str | Path] = [_source(mirror)] if mirror else []
    sources += MNIST.mirrors
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # beside the files' final place, so that the last move is a rename and hence atomic
        with (
            FileLock(folder / ".lock"),
            tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch,
        ):
            problems = _problems(folder)  # another run may have been here meanwhile
            for name in problems:
                archive = f"{name}.gz"
                here = [folder] if (folder / archive).is_file() else []
                failures: list[str] = []
                if not _download(archive, digests[archive], [*here, *sources], scratch, failures):
                    raise InputError(
                        f"MNIST is incomplete: {'; '.join(problems.values())}; tried to get "
                        f"{archive} from {'; '.join(failures) or 'nowhere'}. Use --data.mirror "
                        "with a folder or base URL that holds MNIST's four .gz archives, or train "
                        "on the embedded digits with --data.dataset digits"
                    )
                (Path(scratch) / name).replace(folder / name)
    except OSError as error:
        raise InputError(
            f"Expected `data_dir` to be a folder that can be written, "
            f"but got {data_dir!r}: {error.strerror}: {error.filename}"
        ) from error
    finally:
        # Another run that waits for the lock then finds the files, or its own way to fail.
        with suppress(OSError):
            (folder / ".lock").unlink()
        for path in made:  # from the innermost outwards; those that were of no use
            with suppress(OSError):
                path.rmdir()


def _problems(folder: Path) -> dict[str, str]:
    """Say what is wrong with which files of a folder."""
    return {name: problem for name in FILES if (problem := _problem(folder / name))}


def _problem(path: Path) -> str | None:
    """Say what is wrong with a file, or None if it is a sound IDX file."""
    try:
        idx_shape(path, FILES[path.name])
    except InputError as error:
        return str(error)
    return None


def _source(mirror: str) -> str | Path:
    """Tell a base URL, which then ends in a slash, from a folder."""
    if mirror.startswith("file://"):
        return Path(url2pathname(urlparse(mirror).path))
    return f"{mirror.rstrip('/')}/" if "://" in mirror else Path(mirror).expanduser()


def _download(
    archive: str, md5: str, sources: Iterable[str | Path], folder: str, failures: list[str]
) -> bool:
    """Try the sources in turn until one delivers; add to `failures` why the others did not."""
    from torchvision.datasets.utils import (
        check_integrity,
        download_and_extract_archive,
        extract_archive,
    )

    for source in sources:
        try:
            if isinstance(source, str):
                with _socket_timeout():
                    download_and_extract_archive(source + archive, folder, md5=md5)
            elif check_integrity(source / archive, md5):
                extract_archive(source / archive, folder)
            else:
                found = (source / archive).exists()
                raise RuntimeError("the archive is damaged" if found else "no such archive")
            return True
        # RuntimeError: wrong digest; ValueError: not a URL
        except (OSError, HTTPException, RuntimeError, ValueError) as error:
            failures.append(f"{source} ({getattr(error, 'reason', None) or error})")
    return False


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Bound every wait for the network, which torchvision's download code leaves open."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def idx_shape(path: Path, ndim: int) -> tuple[int, ...]:
    """Read the shape of an IDX file of unsigned bytes and check the file's size against it.

    Args:
        path: An uncompressed IDX file.
        ndim: Number of dimensions it should have: 3 for images, 1 for labels.

    Raises:
        InputError: If the file is missing, is not an IDX file of `ndim` dimensions of unsigned
            bytes, or is shorter or longer than its header says.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing" if not path.exists() else f"{path} is not a file")
    # magic number: two zero bytes, 0x08 for unsigned bytes, the number of dimensions
    header_size = 4 + 4 * ndim
    with path.open("rb") as file:
        header = file.read(header_size)
    if len(header) < header_size or header[:4] != bytes([0, 0, 8, ndim]):
        raise InputError(f"{path} is damaged: it does not begin with the header of an IDX file")
    shape = struct.unpack(f">{ndim}I", header[4:])
    expected, size = header_size + math.prod(shape), path.stat().st_size
    if size != expected:
        raise InputError(
            f"{path} is damaged: its header announces {expected:,} bytes, but it holds {size:,}"
        )
    return shape


def image_count(path: Path) -> int:
    """Read how many images an IDX file holds, without reading them.

    Raises:
        InputError: If the file is not a sound IDX file of 28 × 28 images.
    """
    count, *size = idx_shape(path, ndim=3)
    if size != [28, 28]:
        raise InputError(f"Expected images of 28 × 28 pixels in {path}, but got {size}")
    return count


def read_images(path: Path) -> Tensor:
    """Read an IDX file of images.

    Returns:
        `uint8` tensor of shape `(N, 28, 28)`, values 0–255, 0 for the background.

    Raises:
        InputError: If the file is not a sound IDX file of 28 × 28 images.
    """
    count = image_count(path)
    return torch.from_numpy(np.fromfile(path, dtype=np.uint8, offset=16)).view(count, 28, 28)


def read_labels(path: Path) -> Tensor:
    """Read an IDX file of labels.

    Returns:
        `int64` tensor of shape `(N,)`, values 0–9.

    Raises:
        InputError: If the file is not a sound IDX file of digits 0–9.
    """
    idx_shape(path, ndim=1)
    labels = torch.from_numpy(np.fromfile(path, dtype=np.uint8, offset=8)).long()
    if len(labels) and labels.max() > 9:
        raise InputError(f"Expected labels 0–9 in {path}, but got {labels.max()}")
    return labels
