"""A data set in four IDX files, named as MNIST's are, of any number of classes."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fnn_lightning.data.classes import index_labels
from fnn_lightning.data.datasets import BadFiles, Framing
from fnn_lightning.data.idx_file import read_idx
from fnn_lightning.data.own_data import Content, Part, framed_part
from fnn_lightning.data.published import MNIST, file_forms, find_file
from fnn_lightning.errors import InputError

NAMES = "classes.txt"
# where the files can be, seen from the folder that the user names: torchvision's folders, too
PLACES = (".", "raw", "MNIST/raw")


class IdxFolder:
    """Images and labels of a training and a test part, packed by gzip or not.

    The names of the classes are the lines of `classes.txt` or, without that file, the labels.

    Args:
        folder: That of the files.
        framing: How pictures become 28 × 28 pixels.
        bad_files: Whether a picture that cannot be framed stops the run, or is skipped.
    """

    def __init__(self, folder: Path, framing: Framing, bad_files: BadFiles) -> None:
        self.folder = folder
        self.framing: Framing = framing
        self.bad_files: BadFiles = bad_files

    @classmethod
    def find(cls, path: Path, framing: Framing, bad_files: BadFiles) -> "IdxFolder | None":
        """Return the data set in or below a folder; None if there is none of these files."""
        for folder in (path / place for place in PLACES):
            if any(find_packed(folder, name).exists() for name in MNIST.files):
                return cls(folder, framing, bad_files)
        return None

    def class_names(self) -> list[str]:
        """Return the lines of `classes.txt`, or else the labels 0 to N - 1."""
        return self._labels()[0]

    def read(self, first: bool) -> Content:
        """Read the pictures."""
        _, train, test = self._labels()
        return Content(self._part(True, train, first), self._part(False, test, first))

    def _part(self, train: bool, labels: Tensor, first: bool) -> Part:
        path = find_packed(self.folder, MNIST.images(train))
        pictures = read_idx(path, ndim=3)
        return framed_part(pictures, labels, str(path), self.framing, self.bad_files, first)

    def _labels(self) -> tuple[list[str], Tensor, Tensor]:
        train, test = (self._read_labels(part) for part in (True, False))
        return index_labels(train, test, self._names(), self.folder)

    def _read_labels(self, train: bool) -> NDArray[np.uint8]:
        path = find_packed(self.folder, MNIST.labels(train))
        labels = read_idx(path, ndim=1)
        if not len(labels):
            raise InputError(f"Expected labels in {path}, but got none")
        return labels

    def _names(self) -> list[str] | None:
        path = self.folder / NAMES
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeError) as error:
            raise InputError(f"Expected names in UTF-8 in {path}, but got {error}") from None
        return [line.strip() for line in lines if line.strip()]


def find_packed(folder: Path, name: str) -> Path:
    """Find one of the four files as `find_file` does, or else its archive."""
    path = find_file(folder, name)
    packed = [each for each in file_forms(folder, f"{name}.gz") if each.is_file()]
    return packed[0] if packed and not path.is_file() else path
