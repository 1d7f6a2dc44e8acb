from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fnn_lightning.data.augmentation import Augmentation
from fnn_lightning.data.dataloader import (
    EpochSampler,
    InMemoryDataLoader,
    evaluation_batch_size,
)

IMAGES = torch.arange(10, dtype=torch.uint8).view(10, 1, 1).expand(10, 28, 28)
LABELS = torch.arange(10)


def source(batch_size: int | Fraction = 4, **kwargs: Any) -> InMemoryDataLoader:
    return InMemoryDataLoader(IMAGES, LABELS, torch.arange(10), batch_size=batch_size, **kwargs)


def labels_of(batches: InMemoryDataLoader) -> list[list[int]]:
    return [labels.tolist() for _, labels in batches]


def test_the_incomplete_last_batch_is_served() -> None:
    batches = source()
    assert len(batches) == 3
    assert labels_of(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert labels_of(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_images_and_labels_stay_together() -> None:
    for images, labels in source(shuffle_seed=3):
        assert images.dtype == torch.uint8
        assert images.shape == (len(labels), 28, 28)
        assert images[:, 0, 0].tolist() == labels.tolist()


def test_only_the_indices_are_served() -> None:
    batches = InMemoryDataLoader(IMAGES, LABELS, torch.tensor([7, 2, 5]), batch_size=2)
    assert labels_of(batches) == [[7, 2], [5]]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(100, seed)
        sampler.set_epoch(epoch)
        return sampler.order().tolist()

    assert sorted(order(0, 0)) == list(range(100))
    assert order(5, 7) == order(5, 7)
    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_a_new_iteration_of_an_epoch_repeats_it() -> None:
    batches = source(shuffle_seed=1)
    next(iter(batches))
    assert labels_of(batches) == labels_of(batches)


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("size", [4, Fraction(5, 2)])
def test_ranks_share_each_global_batch(size: int | Fraction, world_size: int) -> None:
    shares = [
        labels_of(source(size, shuffle_seed=1, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for *parts, whole in zip(*shares, labels_of(source(size, shuffle_seed=1)), strict=True):
        assert sorted(label for part in parts for label in part) == sorted(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_loaded_state_continues_at_its_position() -> None:
    whole = labels_of(source(shuffle_seed=1))
    first = source(shuffle_seed=1)
    iterator = iter(first)
    next(iterator), next(iterator)
    second = source(shuffle_seed=1)
    second.load_state_dict(first.state_dict())
    assert labels_of(second) == whole[2:]
    assert labels_of(second) == whole  # the epoch after it is whole


def test_a_state_at_the_end_of_an_epoch_begins_the_next() -> None:
    first, second = source(), source()
    for _ in first:
        pass
    second.load_state_dict(first.state_dict())
    assert len(labels_of(second)) == 3


def test_a_fractional_batch_size_serves_every_image_once() -> None:
    batches = source(Fraction(5, 2))
    assert labels_of(batches) == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
    assert len(batches) == 4
    assert [batches.global_batch_size(i) for i in range(4)] == [2, 3, 2, 3]
    assert [batches.image_count(i) for i in range(6)] == [0, 2, 5, 7, 10, 10]
    assert labels_of(source(Fraction(10, 3))) == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert labels_of(source(Fraction(7, 2))) == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9]]


def images_taken(images: int, limit: float, at_most: int) -> int:
    """Return how many images the Trainer evaluates, by the rule of its `limit_val_batches`."""
    batch_size = evaluation_batch_size(images, limit, at_most)
    assert batch_size is not None
    served = InMemoryDataLoader(
        IMAGES, LABELS, torch.empty(images, dtype=torch.uint8), batch_size=batch_size
    )
    return served.image_count(int(len(served) * limit))


@pytest.mark.parametrize(
    ("images", "limit", "taken"),
    [
        (10_000, 0.1, 1_000),
        (10_000, 0.25, 2_500),
        (10_000, 0.33, 3_300),
        (5_000, 0.25, 1_250),
        (55_000, 0.5, 27_500),
        (10_000, 0.2503, 2_503),  # a prime number
        (10_000, 0.0001, 1),
        (10_000, 0.00019, 1),
        (10_000, 0.9999, 9_999),
        (10_000, 0.57, 5_700),  # 10,000 × 0.57 < 5,700 in floating point
        (9_999, 1 / 3, 3_333),
        (196, 1 / 49, 3),  # 49 × (1 / 49) < 1: the Trainer would take no batch of 4
        (360, 0.1, 36),
    ],
)
def test_a_fraction_is_of_the_images(images: int, limit: float, taken: int) -> None:
    assert images_taken(images, limit, at_most=2000) == taken


@settings(deadline=None)
@given(
    images=st.integers(2, 70_000),
    limit=st.one_of(
        st.floats(0, 1, exclude_min=True, exclude_max=True),
        st.integers(1, 9_999).map(lambda each: each / 10_000),
    ),
    at_most=st.sampled_from([1, 7, 2000]),
)
@example(images=49, limit=1 / 49, at_most=2000)
def test_any_fraction_takes_its_share_rounded_down(images: int, limit: float, at_most: int) -> None:
    batch_size = evaluation_batch_size(images, limit, at_most)
    if batch_size is None:
        assert images * limit <= 1 + 1e-9
    else:
        share = int(images * limit), int(images * limit + 1e-9)
        assert images_taken(images, limit, at_most) in share
        assert batch_size < at_most + 1


@pytest.mark.parametrize("limit", [0, 0.0, 1, 3, 1.0])
def test_other_limits_leave_the_batches_alone(limit: float) -> None:
    assert evaluation_batch_size(10_000, limit, at_most=2000) == 2000
    assert evaluation_batch_size(0, 0.5, at_most=2000) == 2000


@pytest.mark.parametrize("augmentation", [None, Augmentation(rotation=10.0)])
def test_all_of_it_is_on_the_device(augmentation: Augmentation | None) -> None:
    # a device without values: what is left on the CPU cannot be mixed with it
    images, labels = torch.zeros(7, 28, 28, dtype=torch.uint8), torch.arange(7)
    loader = InMemoryDataLoader(
        images,
        labels,
        torch.arange(7),
        batch_size=3,
        shuffle_seed=0,
        augmentation=augmentation,
        device="meta",
    )
    assert {each.device.type for each in (loader.images, loader.labels, loader.indices)} == {"meta"}
    for batch in (*loader, *loader.take(3)):
        assert [each.device.type for each in batch] == ["meta", "meta"]
