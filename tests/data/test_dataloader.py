from typing import Any

import pytest
import torch

from fnn_lightning.data.dataloader import EpochSampler, InMemoryDataLoader

IMAGES = torch.arange(10, dtype=torch.uint8).view(10, 1, 1).expand(10, 28, 28)
LABELS = torch.arange(10)


def source(batch_size: int = 4, **kwargs: Any) -> InMemoryDataLoader:
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
def test_ranks_share_each_global_batch(world_size: int) -> None:
    shares = [
        labels_of(source(shuffle_seed=1, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for *parts, whole in zip(*shares, labels_of(source(shuffle_seed=1)), strict=True):
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
