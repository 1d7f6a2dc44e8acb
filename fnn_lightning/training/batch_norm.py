"""Batch normalisation: enough images on every rank, and passes that leave no trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from torch import nn

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.errors import InputError
from fnn_lightning.training.hard_examples import HardExamples


def check_batch_norm(trainer: Trainer, hard_examples: HardExamples | None) -> None:
    """Check that every rank has two images of every batch: one alone has no variance.

    Args:
        trainer: About to train.
        hard_examples: What selects the images of a step, if anything does.

    Raises:
        InputError: If a rank would have fewer, or could have.
    """
    loader, ranks = trainer.train_dataloader, trainer.world_size
    if not isinstance(loader, InMemoryDataLoader):
        return
    last = loader.global_batch_size(int(trainer.num_training_batches) - 1)
    kept, hardest = last, ""
    if hard_examples is not None:
        if ranks > 1:  # how many a rank has of them is known only when they are found
            raise InputError(
                "Expected one rank for batch normalisation with `keep_hardest`, since all of the "
                f"hardest images can be another rank's, but got {ranks}: give --trainer.devices 1, "
                "or --model.batch_norm false"
            )
        kept = hard_examples.count(last)
        hardest = f", of which the hardest {hard_examples.fraction:g} are kept,"
    if kept < 2 * ranks:
        raise InputError(
            f"Expected two images or more of every batch on each rank, for batch normalisation, "
            f"but got {last} in an epoch's last batch{hardest} on {ranks} "
            f"rank{'s' * (ranks > 1)}: give another --data.batch_size"
        )


@contextmanager
def batch_statistics_only(network: nn.Module) -> Iterator[None]:
    """Keep what is normalised out of the running means and variances."""
    kinds = nn.BatchNorm1d | nn.SyncBatchNorm
    layers = [each for each in network.modules() if isinstance(each, kinds)]
    tracking = [layer for layer in layers if layer.training and layer.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
