"""The number of CPU threads, which can decide the last bits of a run's weights."""

import math
import os
from collections.abc import Generator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.errors import InputError
from fnn_lightning.network import FNN
from fnn_lightning.runs.cores import available_cores
from fnn_lightning.training.manual_backward import ManualBackward

# With less work for each, two threads gain little alone, and lose much beside another program.
FLOPS_PER_THREAD = 100e6

TRIAL_SECONDS = 0.1  # of steps with each number of threads, to find the fastest
KEPT = 10  # times as long as the trials took, the fastest is then kept

GRAIN_SIZE = 32768  # numbers that PyTorch does not divide among threads: at::internal::GRAIN_SIZE

# those whose steps were found to have the same bits on any number of threads; others sum
OPTIMIZERS = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
)


class Threads(callbacks.Callback):
    """Sets the number of CPU threads of a run, so that it ends with the same bits on any cores.

    Threads divide a sum among them, and it is rounded accordingly. So the number is chosen when a
    run starts, stored in its checkpoints, and used again when the run is resumed or evaluated,
    whatever the cores there. On the same kind of processor a resumed run then ends with the same
    bits.

    Steps of a plain net have the same bits on any number of threads. While it is trained the number
    may vary: the fastest is used, which is one thread beside a program that needs the other cores.

    The attribute `num_threads` of the module, if it has one, is the number; None chooses one for
    every 100 million floating-point operations of a step, as far as there are cores for this rank.
    """

    acts_every_n_steps = 0

    def __init__(self) -> None:
        self.count: int | None = None
        """Number of threads of the run; None before it is known, and on an accelerator."""
        self.varies_up_to: int | None = None
        """The greatest number of threads, if the number varies in this fit; None if it does not."""
        self._most = 1
        self._fastest = 1
        self._evaluation_varies = False
        self._search: Generator[int, tuple[float, int], None] | None = None
        self._before: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._search = self.varies_up_to = None
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
        self._most = max_threads()
        count = given or self.count or choose_threads(trainer, pl_module)
        self.count = trainer.strategy.broadcast(count)
        self._use()

    def vary(self, trainer: Trainer, module: Any) -> None:
        """From now on take the steps of a plain net with as many threads as are the fastest.

        Does nothing if the user has set the number, there is only one core, or the bits of such a
        step depend on the number. Evaluations have larger batches; the number varies in them if
        their bits do not depend on it either.

        Args:
            trainer: Whose training has started, on the CPU.
            module: An `FNNLitModule`, whose network `supports_manual_backward` accepts.
        """
        most, images = self._most, images_per_step(trainer)
        if module.num_threads or most == 1 or self.count is None or images is None:
            return
        optimizer = type(trainer.optimizers[0])
        if optimizer in OPTIMIZERS and same_bits_on_threads(
            module.network, math.ceil(images), most
        ):
            self.varies_up_to = most
            self._evaluation_varies = not rounds_in_shares(module.network, math.inf)
            self._search = fastest_counts(min(self.count, most), most)
            self._fastest = next(self._search)
        torch.set_num_threads(self._fastest if self._search else self.count)

    def took(self, seconds: float, steps: int) -> None:
        """Take in how long steps of a plain net took, and set the number of threads for the next.

        Args:
            seconds: Time that they took together.
            steps: Number of steps.
        """
        if self._search is not None and steps:
            self._fastest = self._search.send((seconds, steps))
            torch.set_num_threads(self._fastest)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use()
        if self._search is not None and not self._evaluation_varies:
            assert self.count is not None
            torch.set_num_threads(self.count)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._search is not None:
            torch.set_num_threads(self._fastest)

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


def max_threads() -> int:
    """Return how many threads this process can keep busy."""
    threads = torch.get_num_threads()  # of OMP_NUM_THREADS, or the cores that are no hyperthreads
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


def fastest_counts(count: int, most: int) -> Generator[int, tuple[float, int], None]:
    """Find the number of threads with which steps are the fastest, again and again.

    Tries the present number, half of it and twice as many, and then keeps the fastest for a while.

    Args:
        count: The number to begin with.
        most: The greatest to try.

    Yields:
        The number for the next steps. Expects to be sent the seconds they took and how many they
        were.
    """
    while True:
        seconds_per_step, tried = {}, 0.0
        for each in dict.fromkeys((count, max(1, count // 2), min(most, 2 * count))):
            seconds, steps = yield from use_for(each, TRIAL_SECONDS)
            seconds_per_step[each] = seconds / steps
            tried += seconds
        count = min(seconds_per_step, key=lambda each: seconds_per_step[each])
        yield from use_for(count, KEPT * tried)


def use_for(count: int, duration: float) -> Generator[int, tuple[float, int], tuple[float, int]]:
    """Take steps with a number of threads for a time, in seconds; part of `fastest_counts`."""
    total_seconds, total_steps = 0.0, 0
    while total_seconds < duration:
        seconds, steps = yield count
        total_seconds += seconds
        total_steps += steps
    return total_seconds, total_steps


def rounds_in_shares(network: FNN, batch_size: float) -> bool:
    """Tell whether activations of a plain net are rounded by how they are divided among threads.

    The last numbers of each thread's share are computed by other instructions than those before,
    which may round otherwise. ReLU does not round, and up to `GRAIN_SIZE` numbers are not divided.

    Args:
        network: One that `supports_manual_backward` accepts.
        batch_size: Number of images in a batch.
    """
    layers: list[Any] = list(network.layers)
    return any(
        type(activation) is not nn.ReLU and batch_size * linear.out_features > GRAIN_SIZE
        for linear, activation in zip(layers[::2], layers[1::2], strict=False)
    )


def same_bits_on_threads(network: FNN, batch_size: int, most: int) -> bool:
    """Tell whether the steps of a plain net have the same bits on any number of threads.

    Products have, where MKL was told so in time (`reproduce_products`): a step is computed to see.
    Sums over the batch are not divided among threads.

    Args:
        network: One that `supports_manual_backward` accepts, on the CPU.
        batch_size: Images of a step.
        most: Greatest number of threads.
    """
    if rounds_in_shares(network, batch_size):
        return False
    manual, parameters = ManualBackward(network), list(network.parameters())
    random = torch.Generator().manual_seed(0)
    pixels = torch.rand(batch_size, network.in_features, dtype=network.dtype, generator=random)
    labels = torch.zeros(batch_size, dtype=torch.int64)
    before = torch.get_num_threads()
    steps: list[list[Any]] = []
    for count in {1, most, *(2**power for power in range(1, most.bit_length()))}:
        torch.set_num_threads(count)
        loss = manual(pixels, labels).loss
        steps.append([loss, *(parameter.grad for parameter in parameters)])
    torch.set_num_threads(before)
    for parameter in parameters:
        parameter.grad = None
    return all(map(torch.equal, steps[0] * len(steps), [each for step in steps for each in step]))
