"""Steps of a plain net on as many CPU threads as are the fastest, where that changes no bit."""

from collections.abc import Generator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fnn_lightning.network import FNN

TRIAL_SECONDS = 0.1  # of steps with each number of threads, to find the fastest
KEPT = 10  # times as long as the trials took, the fastest is then kept

GRAIN_SIZE = 32768  # numbers that PyTorch does not divide among threads: at::internal::GRAIN_SIZE

# those whose steps were compared on one thread and several, and had the same bits
OPTIMIZERS = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
)


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


def most_with_same_bits(network: FNN, batch_sizes: set[int], most: int, also: int = 1) -> int:
    """Find how many threads may take the steps of a plain net without changing a bit.

    MKL divides no sum of a product among threads, when it was told so in time
    (`reproduce_products`), unless they are many for a small matrix. So products of the shapes of a
    step are computed to see. Sums over the batch are not divided. Neither are activations of
    `GRAIN_SIZE` numbers; of more, the last of each thread's share are computed by other
    instructions, which may round otherwise, except for ReLU, which does not round.

    Args:
        network: One that `supports_manual_backward` accepts, on the CPU.
        batch_sizes: Images of a step: of most, and of an epoch's last.
        most: Greatest number of threads to try. If it changes a bit, half of it is tried next.
        also: Another number whose bits have to be the same.

    Returns:
        The number; 1 if any other changes bits.
    """
    layers: list[Any] = list(network.layers)
    for linear, activation in zip(layers[::2], layers[1::2], strict=False):
        numbers = max(batch_sizes) * linear.out_features
        if type(activation) is not nn.ReLU and numbers > GRAIN_SIZE:
            return 1
    before = torch.get_num_threads()
    expected = products(layers[::2], batch_sizes, 1)
    while most > 1:
        counts = {also, most, *(2**power for power in range(1, most.bit_length()))}
        if all(
            all(map(torch.equal, expected, products(layers[::2], batch_sizes, count)))
            for count in sorted(counts, reverse=True)
        ):
            break
        most //= 2
    torch.set_num_threads(before)
    return most


@torch.no_grad()
def products(linear: list[Any], batch_sizes: set[int], threads: int) -> list[torch.Tensor]:
    """Compute the products of a step, of random numbers, with a number of threads."""
    torch.set_num_threads(threads)
    random = torch.Generator().manual_seed(0)
    results = []
    for layer in linear:
        shape, dtype = layer.weight.shape, layer.weight.dtype
        for size in sorted(batch_sizes):
            for _ in range(1 + 200 // max(size, 1)):  # few numbers may be equal by luck
                inputs = torch.randn(size, shape[1], generator=random, dtype=dtype)
                gradient = torch.randn(size, shape[0], generator=random, dtype=dtype)
                results += [F.linear(inputs, layer.weight, layer.bias), gradient.t().mm(inputs)]
                results += [gradient.mm(layer.weight), gradient.sum(0)]
    return results
