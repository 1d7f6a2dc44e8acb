"""A data set in one `.npz` file, named as Keras names it."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fnn_lightning.data.classes import index_labels
from fnn_lightning.data.datasets import BadFiles, Framing
from fnn_lightning.data.own_data import Content, Part, framed_part
from fnn_lightning.errors import InputError

Array = NDArray[Any]
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
NAMES = "class_names"


class NpzFile:
    """`x_train`, `y_train`, `x_test`, `y_test` and, if the classes have names, `class_names`.

    Pictures are integers 0–255 of shape `(N, H, W)`, `(N, H, W, 1)`, `(N, H, W, 3)` or `(N, 784)`;
    labels are integers or texts of shape `(N,)` or `(N, 1)`.

    Args:
        path: The file.
        framing: How pictures become 28 × 28 pixels.
        bad_files: Whether a picture that cannot be framed stops the run, or is skipped.
    """

    def __init__(self, path: Path, framing: Framing, bad_files: BadFiles) -> None:
        self.path = path
        self.framing: Framing = framing
        self.bad_files: BadFiles = bad_files

    def class_names(self) -> list[str]:
        """Return `class_names`, the texts of the labels, sorted, or else the labels 0 to N - 1."""
        return self._labels()[0]

    def read(self, first: bool) -> Content:
        """Read the pictures."""
        _, train, test = self._labels()
        return Content(self._part("x_train", train, first), self._part("x_test", test, first))

    def _part(self, name: str, labels: Tensor, first: bool) -> Part:
        pictures, source = self._pictures(name), f"{name} of {self.path}"
        return framed_part(pictures, labels, source, self.framing, self.bad_files, first)

    def _labels(self) -> tuple[list[str], Tensor, Tensor]:
        """Return the names of the classes, and the labels of both parts as indices into them."""
        arrays = self._load("y_train", "y_test", NAMES)
        train, test = (
            flat_labels(arrays[name], f"{name} in {self.path}") for name in ("y_train", "y_test")
        )
        names = arrays.get(NAMES)
        if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
            raise InputError(
                f"Expected {NAMES} in {self.path} to be texts, one for each class, but got "
                f"{names.dtype} of shape {names.shape}"
            )
        given = None if names is None else [str(name) for name in names]
        return index_labels(train, test, given, self.path)

    def _pictures(self, name: str) -> Array:
        array = self._load(name)[name]
        where = f"{name} in {self.path}"
        if array.dtype.kind not in "iu":
            raise InputError(
                f"Expected {where} to be integers from 0 to 255, but got {array.dtype}: scale it, "
                "as in (255 * x).round().astype('uint8') if it is from 0 to 1"
            )
        if array.ndim == 2 and array.shape[1] == 784:
            array = array.reshape(-1, 28, 28)
        if array.ndim == 4 and array.shape[3] == 1:
            array = array[..., 0]
        is_colour = array.ndim == 4 and array.shape[3] == 3
        if not (array.ndim == 3 or is_colour) or 0 in array.shape:
            raise InputError(
                f"Expected {where} to be pictures of shape (N, 28, 28), (N, 784), (N, H, W), "
                f"(N, H, W, 1) or (N, H, W, 3), but got {array.shape}"
            )
        least, most = int(array.min()), int(array.max())
        if least < 0 or most > 255 or most <= 1:
            raise InputError(
                f"Expected {where} to be integers from 0 to 255, but got {least} to {most}: scale "
                "it so that 255 is the brightest"
            )
        return array.astype(np.uint8, copy=False)

    def _load(self, *names: str) -> dict[str, Array]:
        """Load some of the arrays.

        Raises:
            InputError: If one of `ARRAYS` is missing, or the file is damaged or holds objects.
        """
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                found = [*stored.keys()]
                lacking = [name for name in ARRAYS if name not in found]
                if not lacking:
                    arrays = {name: stored[name] for name in names if name in found}
                    if all(isinstance(array, np.ndarray) for array in arrays.values()):
                        return arrays
                    raise ValueError("it holds something else than arrays")
        except (MemoryError, PermissionError) as error:
            raise InputError(f"{self.path} cannot be read: {error or 'out of memory'}") from None
        except Exception as error:  # a damaged file can make NumPy fail in any way
            if "allow_pickle" in str(error):
                raise InputError(
                    f"Expected integers and texts in {self.path}, but got arrays of objects, which "
                    "can run code: save them with another dtype, as y.astype(int) or y.astype(str)"
                ) from None
            raise InputError(f"{self.path} is damaged: {error}") from None
        raise InputError(
            f"Expected {', '.join(ARRAYS)} in {self.path}, but got no {', '.join(lacking)}; it "
            f"holds {', '.join(found) or 'nothing'}"
        )


def flat_labels(labels: Array, where: str) -> Array:
    """Check the form of labels, and give them the shape `(N,)`."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "backslashreplace")
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        hint = ": take the argmax of each row" if labels.ndim == 2 else ""
        raise InputError(
            f"Expected {where} to be integers or texts of shape (N,), but got {labels.dtype} of "
            f"shape {labels.shape}{hint}"
        )
    if not len(labels):
        raise InputError(f"Expected {where} to be labels, but got none")
    return labels
