"""The classes of a data set of one's own: their names, and labels as indices into them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fnn_lightning.errors import InputError

MAX_CLASSES = 1_000
SHOWN = 5  # names that a message lists
ADVICE = "add some, or leave the class out"  # where a class has too few pictures


def sorted_names(names: Sequence[str]) -> list[str]:
    """Sort the names of classes: as numbers if all are, otherwise by the alphabet.

    >>> sorted_names(["10", "9"]), sorted_names(["10", "9", "b"])
    (['9', '10'], ['10', '9', 'b'])
    """
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def too_many_classes(path: Path, found: str) -> InputError:
    """Return the error for a data set of more classes than a network can have."""
    return InputError(
        f"Expected {MAX_CLASSES:,} classes at most, but got {found} in {path}: check that each "
        "class, not each picture, has its own name"
    )


def check_names(names: Sequence[str], path: Path) -> None:
    """Check the names of the classes of a data set.

    Raises:
        InputError: If there are fewer than 2 or more than 1,000, or one is empty, given twice or
            not printable.
    """
    if len(names) > MAX_CLASSES:
        raise too_many_classes(path, f"{len(names):,}")
    if len(names) < 2:
        only = f"{names[0]} only" if names else "none"
        raise InputError(f"Expected two classes or more in {path}, but got {only}")
    for name in names:
        if not name.isprintable() or not name:
            raise InputError(f"Expected printable names of classes in {path}, but got {name!a}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"Expected different names of classes in {path}, but got {twice} twice")


def check_parts(
    path: Path, names: Sequence[str], train: Tensor, test: Tensor, advice: str = ADVICE
) -> None:
    """Check that every class has a picture to train on and one to test on.

    Args:
        path: The data set's.
        names: Of the classes.
        train: Labels of the training pictures, `int64` of shape `(N,)`.
        test: Those of the test pictures.
        advice: What the message says to do.

    Raises:
        InputError: If a class has none.
    """
    lacking = []
    for part, labels in (("train", train), ("test", test)):
        counts = torch.bincount(labels, minlength=len(names)).tolist()
        empty = [name for name, count in zip(names, counts, strict=True) if not count]
        if empty:
            lacking.append(f"none of {listed(empty)} in {part}")
    if lacking:
        raise InputError(
            f"Expected train and test pictures of every class in {path}, but got "
            f"{' and '.join(lacking)}: {advice}"
        )


def listed(names: Sequence[str]) -> str:
    """List a few names.

    >>> listed(["cat", "dog"]), listed("abcdefgh")
    ('cat, dog', 'a, b, c, d, e and 3 more')
    """
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def index_labels(
    train: NDArray[Any], test: NDArray[Any], names: list[str] | None, path: Path
) -> tuple[list[str], Tensor, Tensor]:
    """Turn labels into indices into the names of the classes.

    Args:
        train: Integers, which are indices already, or texts; of shape `(N,)`, not empty.
        test: Likewise.
        names: Of the classes. By default the texts, sorted, or the numbers from 0.
        path: The data set's.

    Returns:
        The names; the labels of either part, `int64` of shape `(N,)`.

    Raises:
        InputError: If a label has no name, or there is no picture of a number without a name.
    """
    both = np.unique(np.concatenate([np.unique(train), np.unique(test)]))
    if (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise InputError(
            f"Expected the labels in {path} to be all integers or all texts, but got "
            f"{train.dtype} in train and {test.dtype} in test"
        )
    if train.dtype.kind == "U":
        names = sorted_names(both.tolist()) if names is None else names
        indices = {name: index for index, name in enumerate(names)}
        unknown = [text for text in both.tolist() if text not in indices]
        if unknown:
            raise InputError(
                f"Expected labels among the names of the classes in {path}, but got {unknown[0]!r}"
            )
        numbers = ([indices[text] for text in labels.tolist()] for labels in (train, test))
        train, test = map(np.array, numbers)
        return names, torch.from_numpy(train), torch.from_numpy(test)
    least, most = int(both[0]), int(both[-1])
    if least < 0 or (names is not None and most >= len(names)):
        expected = f"0 to {len(names) - 1}, for which there are names," if names else "0 upwards"
        raise InputError(f"Expected labels from {expected} in {path}, but got {least} to {most}")
    if names is None:
        if most >= MAX_CLASSES:
            raise too_many_classes(path, f"labels up to {most:,}")
        gaps = sorted(set(range(most)) - set(both.tolist()))
        if gaps:
            raise InputError(
                f"Expected labels from 0 to {most} without a gap in {path}, but got no picture of "
                f"{gaps[0]}: number the classes from 0"
            )
        names = [str(label) for label in range(most + 1)]
    train, test = train.astype(np.int64), test.astype(np.int64)
    return names, torch.from_numpy(train), torch.from_numpy(test)
