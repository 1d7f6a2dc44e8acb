"""The number of CPU threads, which is part of a run: it decides the last bits of its weights."""

import os
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.utilities import rank_zero_warn

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.errors import InputError
from fnn_lightning.runs.cores import available_cores

# With less work for each, two threads gain little alone, and lose much beside another program.
FLOPS_PER_THREAD = 100e6


class Threads(callbacks.Callback):
    """Computes a run on the CPU with the same number of threads from its first step to its last.

    Threads divide a product of matrices among them, and its sums are rounded accordingly. So the
    number is chosen when a run starts, stored in its checkpoints, and used again when the run is
    resumed or evaluated, whatever the cores there. On the same kind of processor a resumed run then
    ends with the same bits.

    The attribute `num_threads` of the module, if it has one, is the number; None chooses one for
    every 100 million floating-point operations of a step, as far as there are cores for this rank.
    """

    acts_every_n_steps = 0

    def __init__(self) -> None:
        self.count: int | None = None
        """Number of threads of the run; None before it is known, and on an accelerator."""
        self._before: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.count = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type != "cpu":
            return
        given = getattr(pl_module, "num_threads", None)
        if None not in (given, self.count) and given != self.count:
            rank_zero_warn(
                f"The run began with {self.count} threads and is resumed with {given}: its last "
                "bits will be others"
            )
        count = given or self.count or choose_threads(trainer, pl_module)
        self.count = trainer.strategy.broadcast(count)
        self._use()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use()

    def _use(self) -> None:
        if self.count is not None and self._before is None:
            self._before = torch.get_num_threads()
            torch.set_num_threads(self.count)

    def _restore(self) -> None:
        """Leave the process as it was, for what comes after the run."""
        if self._before is not None:
            torch.set_num_threads(self._before)
            self._before = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


def check_num_threads(num_threads: int | None) -> None:
    """Refuse what is no number of threads.

    Raises:
        InputError: If it is not None, and not positive.
    """
    if num_threads is not None and (type(num_threads) is not int or num_threads < 1):
        raise InputError(
            f"Expected `num_threads` to be 1 or more, or None, but got {num_threads!r}"
        )


def choose_threads(trainer: Trainer, module: LightningModule) -> int:
    """Choose the number of threads for a new run, by the work of a step and the cores there are."""
    threads = torch.get_num_threads()  # of OMP_NUM_THREADS, or the cores that are no hyperthreads
    if "OMP_NUM_THREADS" not in os.environ:  # as it is for ranks that Lightning or torchrun starts
        threads = min(threads, available_cores())
    loader: Any = trainer.train_dataloader
    if isinstance(loader, InMemoryDataLoader):
        images = loader.global_batch_size(0) / loader.world_size
    elif isinstance(batch_size := getattr(loader, "batch_size", None), int):
        images = batch_size
    else:
        return threads
    # for each weight and image two operations forward, two for its gradient, two for its input's
    flops = 6 * images * sum(parameter.numel() for parameter in module.parameters())
    return max(1, min(threads, int(flops / FLOPS_PER_THREAD)))
