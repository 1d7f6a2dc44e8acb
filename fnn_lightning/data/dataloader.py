"""Serves batches from tensors in memory: one tensor index per batch, no Python per image."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fnn_lightning.data.augmentation import Augmentation, resample, sampling_grid
from fnn_lightning.errors import InputError

Batch = tuple[Tensor, Tensor]
"""Images of shape `(B, 28, 28)`, pixels 0–255, and labels, `int64` of shape `(B,)`.

The pixels are `uint8`, or `float32` if they are augmented.
"""


class EpochSampler:
    """Every index once, in an order that is a function of (seed, epoch) alone.

    Lightning calls `set_epoch` before every epoch, as it does for PyTorch's own samplers.

    Args:
        size: Number of indices.
        seed: Seed of the order. Epoch 1 of seed 0 is unrelated to epoch 0 of seed 1.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next, counted from 0."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return the epoch's permutation, `int64` of shape `(size,)`.

        >>> EpochSampler(size=4, seed=0).order().sort().values
        tensor([0, 1, 2, 3])
        """
        seed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(int(seed[0])))


class InMemoryDataLoader:
    """An iterable of (images, labels) that the Trainer takes in place of a `DataLoader`.

    Every rank holds all the images and walks through the same global batches; of each it serves
    every `world_size`-th image, starting at its `rank`. The shares of two ranks differ by one image
    at most, and a share can be empty. An epoch's incomplete last batch is served.

    Iterating and `take` share one position in the epoch: what one of them has served, the other
    does not serve again.

    Args:
        images: `uint8` of shape `(N, 28, 28)`.
        labels: `int64` of shape `(N,)`.
        indices: The images to serve, `int64` of shape `(M,)`.
        batch_size: Size of the global batch, over all ranks. With a fraction such as 5/2, batches
            of 2 and 3 images take turns.
        shuffle_seed: Seed of the order, which is new in every epoch. None keeps the order of
            `indices`.
        rank: Rank of this process.
        world_size: Number of ranks.
        augmentation: Applied to every image, drawn anew in every epoch; only with a
            `shuffle_seed`. It is a function of (seed, epoch, position in the epoch) alone, on any
            number of ranks.
        device: Where the images, the labels and the order are kept, and batches are served.

    Example:
        >>> pixels, labels = torch.zeros(5, 28, 28, dtype=torch.uint8), torch.arange(5)
        >>> loader = InMemoryDataLoader(pixels, labels, torch.arange(5), batch_size=2)
        >>> [labels.tolist() for _, labels in loader]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        *,
        batch_size: int | Fraction,
        shuffle_seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        # all of it once, so that a step copies nothing
        self.images = images.to(self.device)
        self.labels = labels.to(self.device)
        self.indices = indices.to(self.device)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.augmentation = augmentation or Augmentation()
        self.augments = bool(self.augmentation) and shuffle_seed is not None
        """Whether the images are augmented."""
        if shuffle_seed is not None:
            # The attribute in which the Trainer looks for `set_epoch`; without it, the Trainer
            # takes the loader for one that does not shuffle.
            self.sampler = EpochSampler(len(indices), shuffle_seed)
        self._augmented: tuple[float, int] = math.inf, len(self)
        self.position = 0
        """Number of batches served in this epoch."""
        self._start = 0
        self._order = self.indices

    def end_augmentation(self, batches: int, batches_per_epoch: int) -> None:
        """Let the augmentation end where its `end` says, given the length of the run.

        Args:
            batches: Number of batches of the whole run.
            batches_per_epoch: How many of them are in an epoch.
        """
        self._augmented = self.augmentation.end * batches, batches_per_epoch

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.indices) // self.batch_size)

    def image_count(self, batches: int) -> int:
        """Return how many images the first batches of the epoch have in all, over all ranks."""
        return min(int(batches * self.batch_size), len(self.indices))

    def indices_within(self, limit: int | float) -> Tensor:
        """Return the images of the first batches, without an order that changes.

        Args:
            limit: The Trainer's `limit_val_batches`: number of batches, or a fraction of them.
        """
        batches = min(limit, len(self)) if isinstance(limit, int) else limit * len(self)
        return self.indices[: self.image_count(int(batches))]

    def global_batch_size(self, batch_idx: int) -> int:
        """Return how many images a batch of the epoch has, over all ranks."""
        return self.image_count(batch_idx + 1) - self.image_count(batch_idx)

    def __iter__(self) -> Iterator[Batch]:
        """Start an epoch, and yield this rank's share of every batch."""
        # A generator, because the Trainer calls `set_epoch` after `iter` and before `next`.
        self.position, self._start = self._start, 0
        self._order = self._epoch_order()
        yield from self.take(len(self))

    def take(
        self, count: int, together: int = 1, prepare: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[Batch]:
        """Yield this rank's share of the next batches of the epoch.

        Args:
            count: Number of batches; fewer if the epoch ends before.
            together: Number of batches that are gathered at once, where that takes less time. They
                are then views of one tensor. Nothing else may serve batches between two of these.
            prepare: What to make of images, each on its own; applied to what is gathered at once.
        """
        if self.augments or self.world_size > 1:
            together = 1
        while count > 0 and self.position < len(self):
            gathered = min(count, together, len(self) - self.position)
            images, labels = self._gather(self._order, self.position, gathered)
            if prepare is not None:
                images = prepare(images)
            batches = [(images, labels)]
            if gathered > 1:
                sizes = [self.global_batch_size(self.position + i) for i in range(gathered)]
                batches = list(
                    zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)
                )
            # an unfinished iteration does not serve all that was gathered
            for batch in batches:
                self.position += 1
                yield batch
            count -= gathered

    def peek(self) -> Batch:
        """Return this rank's share of the epoch's first batch without moving on."""
        return self._gather(self._epoch_order(), 0, 1)

    def _epoch_order(self) -> Tensor:
        if not hasattr(self, "sampler"):
            return self.indices
        return self.indices[self.sampler.order().to(self.device)]

    def _gather(self, order: Tensor, first: int, count: int) -> Batch:
        batch = order[self.image_count(first) : self.image_count(first + count)]
        share = batch[self.rank :: self.world_size]
        # `index_select` takes half the time of `self.images[share]`
        images, labels = self.images.index_select(0, share), self.labels.index_select(0, share)
        if not self.augments or self._is_past_augmentation(first):
            return images, labels
        # not the sampler's own seed: to NumPy (seed, epoch) is (seed, epoch, 0)
        seed = (self.sampler.seed, self.sampler.epoch, first + 1)
        # for the whole batch, so that even rounding is the same on any number of ranks
        grid = sampling_grid(self.augmentation.draw(len(batch), seed).to(self.device))
        grid = grid[self.rank :: self.world_size]
        return resample(images, grid), labels

    def _is_past_augmentation(self, position: int) -> bool:
        """Tell whether a batch of the epoch comes after the augmentation has ended."""
        augmented, per_epoch = self._augmented
        return self.sampler.epoch * per_epoch + position >= augmented

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch, for the Trainer's checkpoints."""
        return {"position": self.position % len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration begin at a saved position.

        Raises:
            InputError: If there is no such position.
        """
        position = state["position"]
        if type(position) is not int or not 0 <= position <= len(self):
            raise InputError(
                f"Expected a position in an epoch of {len(self):,} batches, but got {position!r}"
            )
        self._start = position


def evaluation_batch_size(images: int, limit: int | float, at_most: int) -> int | Fraction | None:
    """Choose the batch size with which the Trainer's limit means a fraction of the images.

    Of `n` batches the Trainer takes the first `int(n * limit)`. With few batches of a fixed size
    these would be none, or hold another fraction of the images.

    Args:
        images: Number of images in the split.
        limit: `limit_val_batches` and the like: a number of batches or, if it is a float, a
            fraction.
        at_most: Number of images in a batch that suits evaluation.

    Returns:
        The size of the batches. None if the fraction is less than an image.

    Example:
        >>> evaluation_batch_size(10_000, 0.25, at_most=2000)  # two batches of eight
        Fraction(1250, 1)
        >>> evaluation_batch_size(10_000, 5, at_most=2000)
        2000
    """
    if images == 0 or not (isinstance(limit, float) and 0 < limit < 1):
        return at_most
    # 0.57 of 10,000 is 5,699.999… in floating point; the Trainer's product can be as far off
    for wanted in (int(images * limit + 1e-9), int(images * limit)):
        for batches in range(-(-wanted // at_most), 0, -1):
            size = Fraction(wanted, batches)
            if int(-(-images // size) * limit) == batches:
                return size
    return None


def all_gather_batch(share: Tensor, loader: InMemoryDataLoader, batch_idx: int) -> Tensor:
    """All-gather the rows of a batch that was dealt round-robin to the ranks.

    Args:
        share: This rank's rows.
        loader: The dataloader that served the batch.
        batch_idx: Number of the batch in the epoch.

    Returns:
        The rows of the whole batch in its order, the same on all ranks.
    """
    if loader.world_size == 1:
        return share
    size = loader.global_batch_size(batch_idx)
    padded = share.new_zeros((-(-size // loader.world_size), *share.shape[1:]))
    padded[: len(share)] = share
    shares = [torch.empty_like(padded) for _ in range(loader.world_size)]
    torch.distributed.all_gather(shares, padded)
    return torch.stack(shares, dim=1).flatten(0, 1)[:size]
