"""The number of CPU threads of a run, which can decide the last bits of its weights."""

import os
from collections.abc import Generator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.utilities import rank_zero_warn

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.errors import InputError
from fnn_lightning.runs.cores import available_cores
from fnn_lightning.training.ema import EMA
from fnn_lightning.training.varying_threads import (
    GRAIN_SIZE,
    OPTIMIZERS,
    counts_with_same_bits,
    fastest_counts,
)

# With less work for each, two threads gain little alone, and lose much beside another program.
FLOPS_PER_THREAD = 100e6


class Threads(callbacks.Callback):
    """Sets the number of CPU threads of a run, so that it ends with the same bits on other cores.

    Threads divide a sum among them, and it is rounded accordingly. So the number is chosen when a
    run starts, stored in its checkpoints, and used again when the run is resumed or evaluated,
    whatever the cores there. On the same kind of processor a resumed run then ends with the same
    bits.

    Most steps have the same bits on several numbers of threads. `MultiStep` then takes them with
    the fastest of these, which is one thread beside a program that needs the other cores.

    The attribute `num_threads` of the module, if it has one, is the number; None chooses one for
    every 100 million floating-point operations of a step, as far as there are cores for this rank.
    """

    acts_every_n_steps = 0

    def __init__(self) -> None:
        self.count: int | None = None
        """Number of threads of the run; None before it is known, and on an accelerator."""
        self.varies = False
        """Whether steps of the plain loop may take fewer or more, without changing a bit."""
        self.most = 1
        """The greatest number of threads in this fit."""
        self._search: Generator[int, tuple[float, int], None] | None = None
        self._before: int | None = None
        self._began: int | None = None
        self._loaded = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._search, self._loaded, self.most = None, False, 1
        if stage == "fit":
            self.count, self.varies = None, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type != "cpu":
            return
        given = getattr(pl_module, "num_threads", None)
        self._began = self.count
        if not self.varies:
            self._warn_of_other_bits(given)
        count = given or self.count or choose_threads(trainer, pl_module)
        self.count = trainer.strategy.broadcast(count)
        self._use()

    def vary(self, trainer: Trainer, module: Any) -> None:
        """From now on let steps take as many threads as are the fastest.

        Does nothing if the user has set the number, or the bits depend on it. A run that began with
        a fixed number keeps it when it is resumed. Warns of a number that changes the bits of one
        that varied it.

        Args:
            trainer: Whose training has started.
            module: An `FNNLitModule`, of whose network the `steps_are_known`.
        """
        optimizer, loader = trainer.optimizers[0], trainer.train_dataloader
        if (
            self.count is None
            or (module.num_threads and not self._loaded)
            or (self._loaded and not self.varies)
            or trainer.world_size > 1
            or type(optimizer) not in OPTIMIZERS
            or not isinstance(loader, InMemoryDataLoader)
        ):
            self.varies = False
            return
        sizes = {loader.global_batch_size(i) for i in range(len(loader))}
        summed = max(sizes) * (len(module.class_names) if module.teachers else 1)
        if summed > GRAIN_SIZE:  # the mean loss is divided among threads
            self.varies = False
            return
        if module.hard_examples is not None:
            sizes |= {module.hard_examples.count(size) for size in sizes}
        given = trainer.callbacks  # type: ignore[attr-defined]
        cores = max_threads(self._before)
        same = counts_with_same_bits(
            [module.network, *module.teachers.networks],
            sizes,
            module.num_threads or cores,
            self._began or 1,
            averaged=any(isinstance(each, EMA) for each in given),
            augmentation=loader.augmentation if loader.augments else None,
        )
        if module.num_threads:
            self.varies = False
            if module.num_threads not in same:
                self._warn_of_other_bits(module.num_threads)
            return
        counts = [count for count in same if count <= cores]
        self.varies = bool(counts) and (self._loaded or len(counts) > 1 or cores == 1)
        if not self.varies:
            return
        self.most = counts[-1]
        if not self._loaded:
            self.count = self.most  # evaluations gain more by threads than steps do
            self._use()
        self._search = fastest_counts(counts)
        self._fastest = next(self._search)

    def _warn_of_other_bits(self, given: int | None) -> None:
        if None not in (given, self._began) and given != self._began:
            began = f"{self._began} thread{'s' * (self._began != 1)}"
            rank_zero_warn(
                f"The run began with {began} and is resumed with {given}: its last bits may be "
                "others"
            )

    def use_fastest(self) -> None:
        """Set the number of threads for the next steps, until `took` is told about them."""
        if self._search is not None:
            torch.set_num_threads(self._fastest)

    def took(self, seconds: float, steps: int) -> None:
        """Set the number of threads of the run again, and learn from how long steps took.

        Args:
            seconds: Time that they took together.
            steps: Number of steps.
        """
        if self._search is not None:
            self._use()
            if steps:
                self._fastest = self._search.send((seconds, steps))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:  # before it is known how many there are
            self._use()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use()

    def _use(self) -> None:
        if self.count is None:
            return
        if self._before is None:
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
        return {"count": self.count, "varies": self.varies}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Earlier checkpoints know of a fixed number alone.
        self.count, self.varies = state_dict["count"], state_dict.get("varies", False)
        self._loaded = self.count is not None


def check_num_threads(num_threads: int | None) -> None:
    """Refuse what is no number of threads.

    Raises:
        InputError: If it is not None, and not positive.
    """
    if num_threads is not None and (type(num_threads) is not int or num_threads < 1):
        raise InputError(
            f"Expected `num_threads` to be 1 or more, or None, but got {num_threads!r}"
        )


def max_threads(threads: int | None = None) -> int:
    """Return how many threads this process can keep busy.

    Args:
        threads: What PyTorch has set itself, of OMP_NUM_THREADS or the cores that are no
            hyperthreads; by default the present number.
    """
    threads = threads or torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:  # as it is for ranks that Lightning or torchrun starts
        return threads
    return min(threads, available_cores())


def images_per_step(trainer: Trainer) -> float | None:
    """Return how many images a step has on this rank; None if the dataloader does not say."""
    loader: Any = trainer.train_dataloader
    if isinstance(loader, InMemoryDataLoader):
        return loader.global_batch_size(0) / loader.world_size
    batch_size = getattr(loader, "batch_size", None)
    return batch_size if isinstance(batch_size, int) else None


def choose_threads(trainer: Trainer, module: LightningModule) -> int:
    """Choose the number of threads for a new run, by the work of a step and the cores there are."""
    threads, images = max_threads(), images_per_step(trainer)
    if images is None:
        return threads
    # for each weight and image two operations forward, two for its gradient, two for its input's
    flops = 6 * images * sum(parameter.numel() for parameter in module.parameters())
    return max(1, min(threads, int(flops / FLOPS_PER_THREAD)))
