"""A data set of one's own at a path: finds out its form, and checks what it holds."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray
from torch import Tensor

from fnn_lightning.data.classes import check_names, check_parts, listed
from fnn_lightning.data.datasets import BadFiles, Framing
from fnn_lightning.data.framing import frame_array
from fnn_lightning.errors import InputError


class Part(NamedTuple):
    """The pictures of a part, and those that are left out of it."""

    images: Tensor
    """`uint8` of shape `(N, 28, 28)`."""
    labels: Tensor
    """`int64` of shape `(N,)`."""
    bad: dict[str, str]
    """Name of each picture that is left out, and why."""
    files: Sequence[str] = ()
    """Path of each picture, relative to the data set's folder; none where it is not a file."""


class Content(NamedTuple):
    """What a data set holds."""

    train: Part
    test: Part


def framed_part(
    pictures: NDArray[Any],
    labels: Tensor,
    source: str,
    framing: Framing,
    bad_files: BadFiles,
    first: bool,
) -> Part:
    """Make a part of an array of pictures.

    Args:
        pictures: As `frame_array` takes them.
        labels: `int64`, one for each picture.
        source: What messages call the array.
        framing: How the pictures become 28 × 28 pixels.
        bad_files: Whether one that cannot be framed stops it, or is skipped.
        first: Whether this process may show a progress bar.

    Raises:
        InputError: If there are more or fewer labels than pictures, or one cannot be framed.
    """
    if len(pictures) != len(labels):
        raise InputError(
            f"Expected as many labels as pictures, but got {len(labels):,} labels of "
            f"{len(pictures):,} pictures in {source}"
        )
    images, bad = frame_array(pictures, source, framing, bad_files, first)
    if bad:
        sound = [index for index in range(len(labels)) if index not in bad]
        images, labels = images[sound], labels[sound]
    return Part(
        images, labels, {f"{source}, picture {index}": reason for index, reason in bad.items()}
    )


class Form(Protocol):
    """A form in which a data set lies at a path. All that can fail raises an `InputError`."""

    def class_names(self) -> Sequence[str]:
        """Look up the names of the classes, without reading a picture."""

    def read(self, first: bool) -> Content:
        """Read the pictures.

        Args:
            first: Whether this process is the one that may write, warn and show a progress bar.
        """


class OwnData:
    """The data set at a path, looked at when it is first needed.

    Args:
        path: A folder of pictures, a folder of IDX files, or an `.npz` file.
        framing: How pictures become 28 × 28 pixels; `resize` by default.
        bad_files: Whether a picture that cannot be read stops the run, or is skipped.
    """

    train_size = None

    def __init__(
        self, path: str, framing: Framing | None = None, bad_files: BadFiles = "stop"
    ) -> None:
        self.path = Path(path).expanduser()
        self.framing: Framing = framing or "resize"
        self.bad_files: BadFiles = bad_files
        self._names: Sequence[str] | None = None
        self._content: Content | None = None

    @property
    def class_names(self) -> Sequence[str]:
        """Name of each class; a label is an index into it."""
        if self._names is None:
            self._names = self._form().class_names()
            check_names(self._names, self.path)
        return self._names

    def prepare(self) -> None:
        """Read the pictures, and check them."""
        self._names = None  # they may have changed since
        names = self.class_names
        content = self._form().read(first=True)
        bad = content.train.bad | content.test.bad
        if bad:
            some = listed([f"{name} ({reason})" for name, reason in bad.items()])
            warnings.warn(
                f"{len(bad):,} of the pictures in {self.path} left out, since they cannot be read: "
                f"{some}",
                stacklevel=2,
            )
        check_parts(self.path, names, content.train.labels, content.test.labels)
        if count := count_duplicates(content):
            warnings.warn(
                f"{count:,} of the {len(content.test.labels):,} test pictures in {self.path} are "
                "among the training pictures as well, pixel for pixel at 28 × 28: the test "
                "accuracy says too much",
                stacklevel=2,
            )
        self._content = content

    def labels(self, train: bool) -> Tensor:
        """Read the labels."""
        return self._part(train).labels

    def images(self, train: bool) -> Tensor:
        """Read the images."""
        return self._part(train).images

    def train_files(self) -> Sequence[str]:
        """Return the path of each training picture, as `Part` has it."""
        return self._part(train=True).files

    def is_present(self) -> bool:
        """Tell whether there is anything at the path."""
        return self.path.exists()

    def _part(self, train: bool) -> Part:
        if self._content is None:
            self._content = self._form().read(first=False)
        return self._content.train if train else self._content.test

    def _form(self) -> Form:
        # each of use for one form only
        from fnn_lightning.data.idx_folder import IdxFolder
        from fnn_lightning.data.npz_file import NpzFile
        from fnn_lightning.data.picture_folder import PictureFolder

        path, options = self.path, (self.framing, self.bad_files)
        if path.is_dir():
            idx = IdxFolder.find(path, *options)
            return PictureFolder(path, *options) if idx is None else idx
        if path.is_file() and path.suffix.lower() == ".npz":
            return NpzFile(path, *options)
        found = "it is neither" if path.exists() else "there is no such file or folder"
        raise InputError(
            f"Expected `dataset` to be a folder of pictures or IDX files, or an .npz file, but got "
            f"{path}: {found}"
        )


def count_duplicates(content: Content) -> int:
    """Count the test pictures that are training pictures as well, to the pixel."""
    train = {hash(each.tobytes()) for each in content.train.images.numpy()}
    return sum(hash(each.tobytes()) in train for each in content.test.images.numpy())
