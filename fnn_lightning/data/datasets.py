"""The data sets that `--data.dataset` can name: what they are made of, and where they come from."""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from fnn_lightning.data.downloads import fetch
from fnn_lightning.data.idx_file import image_count, read_images, read_label_rows, read_labels
from fnn_lightning.data.published import PUBLISHED, Published, check_owner, find_file, raw_dir
from fnn_lightning.data.sklearn_digits import TRAIN_SIZE, read_digits
from fnn_lightning.errors import InputError

DIGITS = tuple("0123456789")
NAMES = ("mnist", "digits", *(name for name in PUBLISHED if name != "mnist"))
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

    def is_present(self) -> bool:
        """Tell whether the test part is here, so that nothing has to be downloaded to read it."""


class Downloaded:
    """A published data set, downloaded where it is missing.

    Args:
        published: Which one.
        data_dir: As `raw_dir` takes it.
        mirror: As `fetch` takes it.
    """

    def __init__(self, published: Published, data_dir: str, mirror: str | None) -> None:
        self.published = published
        self.data_dir = data_dir
        self.mirror = mirror

    @property
    def train_size(self) -> int | None:
        """60,000; not known before for EMNIST, whose splits are of many sizes."""
        return None if self.published.title == "EMNIST" else 60_000

    @property
    def class_names(self) -> Sequence[str]:
        """The digits, or what torchvision calls the classes."""
        title, split = self.published.title, self.published.split
        if title in ("MNIST", "QMNIST") or split == "digits":
            return DIGITS
        if title != "EMNIST":
            return tuple(self.published.in_torchvision.classes)
        names = self.published.in_torchvision.classes_split_dict[split]
        return tuple(names[self._first_label :])

    @property
    def framing(self) -> Framing:
        """Characters are brought to MNIST's form."""
        return "resize" if self.published.title == "FashionMNIST" else "mnist"

    @property
    def _first_label(self) -> int:
        return 1 if self.published.split == "letters" else 0

    def prepare(self) -> None:
        """Download what `data_dir` lacks, and check what it holds."""
        mirror = self.mirror or os.environ.get("FNN_LIGHTNING_MIRROR")
        fetch(self.published, self.data_dir, mirror)
        folder = raw_dir(self.data_dir, self.published)
        for train in (True, False):
            self._labels(folder, train)
            check_owner(find_file(folder, self.published.labels(train)), self.published)

    def labels(self, train: bool) -> Tensor:
        """Read the labels, and check that there are as many images."""
        return self._labels(raw_dir(self.data_dir, self.published), train)

    def _labels(self, folder: Path, train: bool) -> Tensor:
        part = self.published.part(train)
        path = find_file(folder, self.published.labels(train))
        read = read_label_rows if self.published.title == "QMNIST" else read_labels
        labels, first = read(path), self._first_label
        last = first + len(self.class_names) - 1
        if len(labels) and (labels.max() > last or labels.min() < first):
            wrong = labels.max() if labels.max() > last else labels.min()
            raise InputError(f"Expected labels {first}–{last} in {path}, but got {wrong}")
        labels -= first  # in EMNIST's letters, a is 1
        count = image_count(find_file(folder, self.published.images(train)))
        if count != len(labels):
            raise InputError(
                f"Expected as many labels as images in {folder}, "
                f"but got {len(labels):,} labels of {count:,} {part} images"
            )
        if count < 2:
            raise InputError(f"Expected images in {folder}, but got {count} {part} images")
        return labels

    def images(self, train: bool) -> Tensor:
        """Read the images; EMNIST's, which lie on their side, are turned upright."""
        folder = raw_dir(self.data_dir, self.published)
        images = read_images(find_file(folder, self.published.images(train)))
        if self.published.title == "EMNIST":
            # in place: there can be half a gigabyte of them
            for chunk in torch.split(images, 10_000):
                chunk.copy_(chunk.transpose(1, 2).clone())
        return images

    def is_present(self) -> bool:
        """Tell whether the files of the test part are here, intact or not."""
        folder = raw_dir(self.data_dir, self.published)
        names = self.published.images(train=False), self.published.labels(train=False)
        return all(find_file(folder, name).is_file() for name in names)


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

    def is_present(self) -> bool:
        """Tell that they are here: they come with scikit-learn."""
        return True


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
    if dataset in PUBLISHED:
        return Downloaded(PUBLISHED[dataset], data_dir, mirror)
    if dataset == "digits":
        return Digits()
    if is_path(dataset):
        from fnn_lightning.data.own_data import OwnData  # takes SciPy, which is slow to import

        return OwnData(dataset, framing, bad_files)
    beginning = [name for name in NAMES if name.startswith(f"{dataset.lower()}_")]
    near = beginning or get_close_matches(dataset.lower(), NAMES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ", and there is no folder or file of that name"
    raise InputError(
        f"Expected `dataset` to be one of {', '.join(NAMES)} or a path, but got {dataset}{hint}"
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
