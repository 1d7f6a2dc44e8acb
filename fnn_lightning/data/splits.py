"""Which training images train and which validate: held out, in folds, a balanced subset."""

from typing import NamedTuple

import torch
from torch import Tensor

from fnn_lightning.errors import InputError

SPLIT_SEED = 0  # fixed, so that runs with different seeds validate on the same images


class Split(NamedTuple):
    """Images in memory, and the indices of those in this split."""

    images: Tensor
    """`uint8` of shape `(N, 28, 28)`."""
    labels: Tensor
    """`int64` of shape `(N,)`."""
    indices: Tensor
    """`int64` of shape `(M,)`."""


def default_val_size(count: int) -> int:
    """Return how many of so many training images are held out unless the user says: a twelfth.

    >>> default_val_size(60_000), default_val_size(5)
    (5000, 1)
    """
    return max(1, count // 12)


def hold_out(count: int, val_size: int | None) -> tuple[Tensor, Tensor]:
    """Draw images for validation.

    Args:
        count: Number of training images.
        val_size: How many are held out; None for the default.

    Returns:
        The indices that train and those that validate, `int64`, each in a random order.
    """
    order = shuffled(count, SPLIT_SEED)
    val_size = default_val_size(count) if val_size is None else val_size
    return order[val_size:], order[:val_size]


def split_fold(labels: Tensor, folds: int, fold: int) -> tuple[Tensor, Tensor]:
    """Divide images into folds, of which one validates and the others train.

    The images of a class are dealt to the folds in turn, so two folds differ by at most one image
    of any class, and by at most one in all.

    Args:
        labels: Of all training images, `int64` of shape `(N,)`.
        folds: Number of folds, from 2 to N.
        fold: The one that validates, counted from 0.

    Returns:
        The indices that train and those that validate, `int64`, each in a random order.

    Example:
        >>> train, val = split_fold(torch.tensor([3, 3, 8, 8]), folds=2, fold=0)
        >>> len(train), sorted(torch.tensor([3, 3, 8, 8])[val].tolist())
        (2, [3, 8])
    """
    order = shuffled(len(labels), SPLIT_SEED)
    by_class = order[labels.index_select(0, order).argsort(stable=True)]
    validates = torch.zeros(len(labels), dtype=torch.bool)
    validates[by_class[fold::folds]] = True
    # not by class: a part of the fold, such as `limit_val_batches` leaves, has all classes too
    validates = validates[order]
    return order[~validates], order[validates]


def fold_size(count: int, folds: int, fold: int) -> int:
    """Return how many of so many images are in a fold of `split_fold`.

    >>> [fold_size(5, folds=3, fold=fold) for fold in range(3)]
    [2, 2, 1]
    """
    return len(range(fold, count, folds))


def balanced_subset(labels: Tensor, candidates: Tensor, size: int, seed: int) -> Tensor:
    """Draw a subset with as many images of each class, as far as a class has them.

    The classes take turns, and one that has no images left is passed over. So a smaller subset of
    the same seed is a part of a larger one.

    Args:
        labels: Of all training images, `int64` of shape `(N,)`.
        candidates: The indices to draw from, `int64` of shape `(M,)`.
        size: Number of images to draw, M at most.
        seed: Seed of the choice.

    Returns:
        The indices, `int64` of shape `(size,)`, in the order of the candidates; all of them are
        the candidates as they came.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1])
        >>> chosen = balanced_subset(labels, torch.arange(5), size=3, seed=0)
        >>> labels[chosen]
        tensor([0, 0, 1])
    """
    order = shuffled(len(candidates), seed)
    classes = labels[candidates[order]]
    turns = torch.empty_like(order)  # how many images of its class come before each
    for label in torch.unique(classes):
        of_class = (classes == label).nonzero().flatten()
        turns[of_class] = torch.arange(len(of_class))
    chosen = order[turns.argsort(stable=True)[:size]]
    return candidates[chosen.sort().values]


def shuffled(count: int, seed: int) -> Tensor:
    """Return the numbers below `count` in a random order, `int64`."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def check_folds(folds: int | None, fold: int | None, val_size: int | None) -> None:
    """Check what can be checked of the folds without the data.

    Raises:
        InputError: If one is missing or out of its range, or images are held out as well.
    """
    if folds is None:
        if fold is not None:
            raise InputError(
                f"Expected `folds` beside `fold`, but got fold {fold} alone: give both or neither"
            )
        return
    if folds < 2:
        raise InputError(f"Expected `folds` to be 2 or more, but got {folds}")
    if fold is None:
        raise InputError(
            f"Expected `fold` beside `folds`, but got {folds} folds alone: say which one validates,"
            f" from 0 to {folds - 1:,}; `seeds` trains on every fold in turn"
        )
    if not 0 <= fold < folds:
        raise InputError(
            f"Expected `fold` to be from 0 to {folds - 1:,}, since there are {folds:,} folds, "
            f"but got {fold}"
        )
    if val_size is not None:
        raise InputError(
            f"Expected either `folds` or `val_size`, but got {folds} folds and val_size "
            f"{val_size}: a fold validates, so give val_size null"
        )


def check_train_size(train_size: int, classes: int, count: int) -> None:
    """Check the size of a subset.

    Args:
        train_size: The size.
        classes: Number of classes.
        count: Number of images to draw from.

    Raises:
        InputError: If there are fewer images, or not one for each class.
    """
    if not classes <= train_size <= count:
        raise InputError(
            f"Expected `train_size` to be from {classes:,}, one image of each class, to {count:,}, "
            f"the training images that do not validate, but got {train_size}"
        )
