"""The data sets that `--data.dataset` can name: what they are made of, and where they come from."""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from fnn_lightning.data.idx_file import image_count, read_images, read_labels
from fnn_lightning.data.mnist_files import fetch_mnist, find_file, raw_dir
from fnn_lightning.data.sklearn_digits import TRAIN_SIZE, read_digits
from fnn_lightning.errors import InputError

DIGITS = tuple("0123456789")
NAMES = ("mnist", "digits")
Framing = Literal["resize", "mnist"]
BadFiles = Literal["stop", "skip"]


class Dataset(Protocol):
    """Grey pictures of 28 × 28 pixels, each of one class, in a training and a test part.

    Making one reads nothing. All that can fail raises an `InputError`.
    """

    @property
    def train_size(self) -> int | None:
        """Number of training images, if it is known before they are there."""

    @property
    def class_names(self) -> Sequence[str]:
        """Name of each class; a label is an index into it."""

    @property
    def framing(self) -> Framing:
        """How a picture of any size becomes one of 28 × 28: resized, or brought to MNIST's form."""

    def prepare(self) -> None:
        """Obtain the files, and check them; done by one process of a machine, before all others."""

    def labels(self, train: bool) -> Tensor:
        """Read the labels of the training or the test part, `int64` of shape `(N,)`."""

    def images(self, train: bool) -> Tensor:
        """Read the pictures of a part, `uint8` of shape `(N, 28, 28)`."""


class MNIST:
    """MNIST, downloaded where it is missing.

    Args:
        data_dir: As `raw_dir` takes it.
        mirror: As `fetch_mnist` takes it.
    """

    train_size = 60_000
    class_names = DIGITS
    framing: Framing = "mnist"

    def __init__(self, data_dir: str, mirror: str | None) -> None:
        self.data_dir = data_dir
        self.mirror = mirror

    def prepare(self) -> None:
        """Download what `data_dir` lacks, and check what it holds."""
        fetch_mnist(self.data_dir, self.mirror or os.environ.get("FNN_LIGHTNING_MIRROR"))
        for train in (True, False):
            self.labels(train)

    def labels(self, train: bool) -> Tensor:
        """Read the labels, and check that there are as many images."""
        folder, part = raw_dir(self.data_dir), part_name(train)
        path = find_file(folder, f"{part}-labels-idx1-ubyte")
        labels = read_labels(path)
        if len(labels) and labels.max() > 9:
            raise InputError(f"Expected labels 0–9 in {path}, but got {labels.max()}")
        count = image_count(find_file(folder, f"{part}-images-idx3-ubyte"))
        if count != len(labels):
            raise InputError(
                f"Expected as many labels as images in {folder}, "
                f"but got {len(labels):,} labels of {count:,} {part} images"
            )
        if count < 2:
            raise InputError(f"Expected images in {folder}, but got {count} {part} images")
        return labels

    def images(self, train: bool) -> Tensor:
        """Read the images."""
        folder = raw_dir(self.data_dir)
        return read_images(find_file(folder, f"{part_name(train)}-images-idx3-ubyte"))


class Digits:
    """The 1,797 handwritten digits that scikit-learn bundles."""

    train_size = TRAIN_SIZE
    class_names = DIGITS
    framing: Framing = "mnist"

    def prepare(self) -> None:
        """Fail now, before a run's folder is made, if scikit-learn is missing."""
        read_digits(train=True)

    def labels(self, train: bool) -> Tensor:
        """Read the labels."""
        return read_digits(train)[1]

    def images(self, train: bool) -> Tensor:
        """Read the images."""
        return read_digits(train)[0]


def part_name(train: bool) -> str:
    """Return what MNIST's files call a part."""
    return "train" if train else "t10k"


def is_path(dataset: str) -> bool:
    """Tell whether `--data.dataset` names a folder or file of one's own.

    >>> is_path("mnist"), is_path("pictures/flowers"), is_path("letters.npz")
    (False, True, True)
    """
    if dataset in NAMES:
        return False
    return (
        bool(set("/\\") & set(dataset))
        or dataset.startswith("~")
        or Path(dataset).exists()
        or (Path(dataset).suffix == ".npz")
    )


def portable_name(dataset: str) -> str:
    """Return what finds a data set from whatever folder: its name, or its path in absolute form.

    >>> portable_name("mnist"), portable_name("letters.npz") == str(Path.cwd() / "letters.npz")
    ('mnist', True)
    """
    return str(Path(dataset).expanduser().absolute()) if is_path(dataset) else dataset


def same_dataset(one: str, other: str) -> bool:
    """Tell whether two names, or two paths, are of the same data set.

    >>> same_dataset("mnist", "digits"), same_dataset("a/../letters.npz", "letters.npz")
    (False, True)
    """
    if is_path(one) and is_path(other):
        return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()
    return one == other


def find_dataset(
    dataset: str,
    data_dir: str,
    mirror: str | None,
    framing: Framing | None = None,
    bad_files: BadFiles = "stop",
) -> Dataset:
    """Return the data set of a name, or at a path.

    Args:
        dataset: One of `NAMES`, or the path of a folder or file.
        data_dir: Where data sets that are downloaded live.
        mirror: Where they come from, before their own addresses.
        framing: How the pictures at a path become 28 × 28 pixels.
        bad_files: What becomes of one at a path that cannot be read.

    Raises:
        InputError: If there is none of that name.
    """
    if dataset == "mnist":
        return MNIST(data_dir, mirror)
    if dataset == "digits":
        return Digits()
    if is_path(dataset):
        from fnn_lightning.data.own_data import OwnData  # takes SciPy, which is slow to import

        return OwnData(dataset, framing, bad_files)
    near = get_close_matches(dataset.lower(), NAMES, n=1)
    raise InputError(
        f"Expected `dataset` to be one of {', '.join(NAMES)} or a path, but got {dataset}"
        + (f"; did you mean {near[0]}?" if near else "")
    )


def check_classes(stored: Sequence[str], found: Sequence[str]) -> None:
    """Refuse data of other classes than a network tells apart.

    Args:
        stored: The network's.
        found: The data's.

    Raises:
        InputError: If they differ.
    """
    if list(stored) != list(found):
        raise InputError(
            f"Expected data of the classes that the net tells apart, {shown(stored)}, but got "
            f"{shown(found)}: train a new net on them, --init_from starts it with these weights"
        )


def shown(class_names: Sequence[str]) -> str:
    """Write the names of a few classes.

    >>> shown("0123456789")
    '0, 1, 2, …, 9 (10 classes)'
    """
    names = [*class_names[:3], "…", class_names[-1]] if len(class_names) > 5 else class_names
    return f"{', '.join(names)} ({len(class_names)} classes)"
