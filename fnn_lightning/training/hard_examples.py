"""Trains on the hardest examples of each batch alone (Jiang et al. 2019, arXiv:1910.00762)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fnn_lightning.data.dataloader import Batch, InMemoryDataLoader, all_gather_batch
from fnn_lightning.errors import InputError
from fnn_lightning.training.loss import CROSS_ENTROPY, TrainingLoss
from fnn_lightning.training.metrics import StepOutput

Sharding = tuple[InMemoryDataLoader, int]
"""The dataloader that dealt a batch to the ranks, and the number of the batch."""


class HardExamples:
    """Selects the images of a batch that have the greatest loss.

    A first pass over the whole batch, without dropout and without gradients, finds them. The
    backward pass on the rest, which the network has learned already, is saved.

    Source: Jiang et al. 2019, "Accelerating deep learning by focusing on the biggest losers",
    arXiv:1910.00762.

    Args:
        fraction: Of a batch that is kept, rounded to whole images, at least one.
        loss: What training lowers.

    Raises:
        InputError: If the fraction is not above 0 and at most 1.
    """

    def __init__(self, fraction: float, loss: TrainingLoss = CROSS_ENTROPY) -> None:
        if not 0 < fraction <= 1:
            raise InputError(
                f"Expected `keep_hardest` to be above 0 and at most 1, but got {fraction}"
            )
        self.fraction = fraction
        self.loss = loss

    def count(self, batch_size: int) -> int:
        """Return how many images of a batch are kept.

        >>> HardExamples(0.25).count(100)
        25
        """
        return min(batch_size, max(1, round(self.fraction * batch_size)))

    def select(
        self,
        batch: Batch,
        network: nn.Module,
        step: Callable[[Batch, TrainingLoss], StepOutput],
        sharding: Sharding | None,
    ) -> tuple[Batch, Tensor, StepOutput]:
        """Select those of this rank's images that are among the hardest of the whole batch.

        Args:
            batch: This rank's share of it.
            network: The network that is trained.
            step: Computes a loss and the logits of a batch.
            sharding: How the batch was dealt to the ranks; None if there is one rank.

        Returns:
            The selected images and labels, in the order of the batch; their indices in the whole
            batch, `int64`; and the first pass over all images of the share.
        """
        with evaluating(network):
            first_pass = step(batch, self.loss)
        images, labels = batch
        losses = self.loss.of_images(first_pass.logits, labels)
        rank, ranks = 0, 1
        if sharding is not None:
            loader, batch_idx = sharding
            losses = all_gather_batch(losses, loader, batch_idx)
            rank, ranks = loader.rank, loader.world_size
        order = losses.argsort(descending=True, stable=True)
        kept = torch.zeros_like(losses, dtype=torch.bool)
        kept[order[: self.count(len(losses))]] = True
        own = kept[rank::ranks].nonzero().flatten()
        return (images[own], labels[own]), rank + own * ranks, first_pass


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Run a network without dropout and gradients, then restore the mode of each module."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:  # the others are frozen, and stay so
            module.training = True
