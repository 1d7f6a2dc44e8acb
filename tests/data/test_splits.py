from itertools import pairwise

import pytest
import torch

from fnn_lightning.data.splits import balanced_subset, fold_size, hold_out, split_fold


def uneven_labels() -> torch.Tensor:
    """Return the labels of 10, 7 and 2 images of three classes, mixed."""
    labels = torch.tensor([0] * 10 + [1] * 7 + [2] * 2)
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))]


def counts(labels: torch.Tensor, indices: torch.Tensor) -> list[int]:
    return torch.bincount(labels[indices], minlength=3).tolist()


def test_the_images_held_out_are_those_of_earlier_versions() -> None:
    train, val = hold_out(60_000, None)
    # the first numbers of PyTorch's permutation with seed 0, of which 5,000 are held out
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(val, order[:5_000])
    assert torch.equal(train, order[5_000:])
    assert [len(each) for each in hold_out(5, None)] == [4, 1]
    assert [len(each) for each in hold_out(5, 0)] == [5, 0]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (3, [1, 1, 1]),
        (6, [2, 2, 2]),
        (10, [4, 4, 2]),  # the third class has no more, so the others have its share
        (16, [7, 7, 2]),
        (18, [9, 7, 2]),
        (19, [10, 7, 2]),
    ],
)
def test_a_subset_has_as_many_images_of_each_class_as_there_are(
    size: int, expected: list[int]
) -> None:
    labels = uneven_labels()
    chosen = balanced_subset(labels, torch.arange(19), size, seed=1)
    assert counts(labels, chosen) == expected
    assert len(set(chosen.tolist())) == size


def test_a_size_that_does_not_divide_evenly_differs_by_one_image() -> None:
    labels = uneven_labels()
    for seed in range(20):
        found = counts(labels, balanced_subset(labels, torch.arange(19), 5, seed))
        assert sorted(found) == [1, 2, 2]


def test_a_smaller_subset_is_a_part_of_a_larger_one() -> None:
    labels = uneven_labels()
    subsets = [
        set(balanced_subset(labels, torch.arange(19), size, seed=4).tolist()) for size in range(20)
    ]
    assert [len(each) for each in subsets] == list(range(20))
    assert all(small < large for small, large in pairwise(subsets))


def test_a_subset_is_drawn_from_the_candidates_by_the_seed() -> None:
    labels = torch.arange(1_000) % 10
    candidates = torch.arange(999, -1, -2)  # the odd ones
    first, again, other = (balanced_subset(labels, candidates, 50, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first % 2 == 1).all()
    assert len(set(first.tolist()) & set(other.tolist())) < 20  # 5 by chance
    assert torch.equal(balanced_subset(labels, candidates, 500, 0), candidates)


@pytest.mark.parametrize("folds", [2, 3, 5, 19])
def test_folds_hold_each_image_once_and_their_share_of_each_class(folds: int) -> None:
    labels = uneven_labels()
    parts = [split_fold(labels, folds, fold) for fold in range(folds)]
    validated = torch.cat([val for _, val in parts])
    assert sorted(validated.tolist()) == list(range(19))
    for fold, (train, val) in enumerate(parts):
        assert sorted([*train.tolist(), *val.tolist()]) == list(range(19))
        assert len(val) == fold_size(19, folds, fold)
    by_fold = torch.tensor([counts(labels, val) for _, val in parts])
    spread = by_fold.amax(dim=0) - by_fold.amin(dim=0)
    assert spread.max() <= 1
    assert by_fold.sum(dim=0).tolist() == [10, 7, 2]
    sizes = by_fold.sum(dim=1)
    assert sizes.max() - sizes.min() <= 1


def test_folds_of_three_classes_by_hand() -> None:
    # 10, 7 and 2 images are dealt to three folds in turn: 0 1 2 0 1 2 0 1 2 0, 1 2 0 1 2 0 1, 2 0
    labels = uneven_labels()
    assert [counts(labels, split_fold(labels, 3, fold)[1]) for fold in range(3)] == [
        [4, 2, 1],
        [3, 3, 0],
        [3, 2, 1],
    ]


def test_the_first_images_of_a_fold_are_of_all_classes() -> None:
    labels = torch.arange(1_000) // 100
    for part in split_fold(labels, 5, 0):
        assert len(labels[part[: len(part) // 2]].unique()) == 10
