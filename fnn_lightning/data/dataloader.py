"""Serves batches straight from tensors in memory: one index, no Python per image."""

from collections.abc import Callable, Iterator
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
        """Return the epoch's permutation, `int64` of shape `(size,)`."""
        seed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(int(seed[0])))


class InMemoryDataLoader:
    """An iterable of (images, labels), as the Trainer takes it in place of a `DataLoader`.

    Every process holds all the images and walks through the same global batches; of each it
    takes every `world_size`-th image from its `rank` on. An epoch's incomplete last batch is kept.
    Shares may differ by one image, and be empty.

    Args:
        images: `uint8` of shape `(N, 28, 28)`.
        labels: `int64` of shape `(N,)`.
        indices: The images to serve, `int64` of shape `(M,)`.
        batch_size: Size of the global batch, over all processes.
        shuffle_seed: Seed of the order, new in every epoch; in order if not given.
        rank: Number of this process.
        world_size: Number of processes.
        augmentation: Of every image, drawn anew in every epoch; only if there is a seed. It is a
            function of (seed, epoch, position in the epoch) alone, on any number of processes.
        device: Where batches that are augmented are served, and deformed.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        *,
        batch_size: int,
        shuffle_seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.indices = indices
        self.rank = rank
        self.world_size = world_size
        self.augmentation = augmentation or Augmentation()
        self.augments = bool(self.augmentation) and shuffle_seed is not None
        """Whether the images are augmented."""
        self.device = torch.device(device)
        if shuffle_seed is not None:
            # Where the Trainer finds `set_epoch`. A source without a sampler is in order to it.
            self.sampler = EpochSampler(len(indices), shuffle_seed)
        self.position = 0
        """Number of batches served in this epoch."""
        self.between: Callable[[Iterator[Batch]], None] | None = None
        """Called before every batch but the first with the batches to come; may take from them."""
        self._start = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.indices) // self.batch_size)

    def global_batch_size(self, batch_idx: int) -> int:
        """Return how many images a batch of the epoch has, over all processes."""
        return min(self.batch_size, len(self.indices) - batch_idx * self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this process's share of every batch."""
        self.position, self._start = self._start, 0
        batches = self._serve()
        for batch in batches:
            yield batch
            if self.between is not None:
                self.between(batches)

    def peek(self) -> Batch:
        """Return this process's share of the epoch's first batch, and leave everything as it is."""
        return self._batch(self._order(), 0)

    def _serve(self) -> Iterator[Batch]:
        order = self._order()
        for position in range(self.position, len(self)):
            self.position += 1
            yield self._batch(order, position)

    def _order(self) -> Tensor:
        return self.indices[self.sampler.order()] if hasattr(self, "sampler") else self.indices

    def _batch(self, order: Tensor, position: int) -> Batch:
        whole = order[position * self.batch_size : (position + 1) * self.batch_size]
        share = whole[self.rank :: self.world_size]
        # half the time of `self.images[share]`
        images, labels = self.images.index_select(0, share), self.labels.index_select(0, share)
        if not self.augments:
            return images, labels
        # not the sampler's own seed: to NumPy (seed, epoch) is (seed, epoch, 0)
        seed = (self.sampler.seed, self.sampler.epoch, position + 1)
        # of the whole batch, so that rounding, too, is the same on any number of processes
        grid = sampling_grid(self.augmentation.draw(len(whole), seed).to(self.device))
        grid = grid[self.rank :: self.world_size]
        return resample(images.to(self.device), grid), labels.to(self.device)

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


def all_gather_batch(share: Tensor, source: InMemoryDataLoader, batch_idx: int) -> Tensor:
    """Put together what the processes have of a batch, of its rows each in turn one.

    Args:
        share: This process's rows.
        source: What served the batch.
        batch_idx: Its number.

    Returns:
        Tensor of all the batch's rows, the same on all processes.
    """
    if source.world_size == 1:
        return share
    size = source.global_batch_size(batch_idx)
    padded = share.new_zeros((-(-size // source.world_size), *share.shape[1:]))
    padded[: len(share)] = share
    shares = [torch.empty_like(padded) for _ in range(source.world_size)]
    torch.distributed.all_gather(shares, padded)
    return torch.stack(shares, dim=1).flatten(0, 1)[:size]
