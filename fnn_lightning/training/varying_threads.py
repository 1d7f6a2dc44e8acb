"""Steps on as many CPU threads as are the fastest, where that changes no bit."""

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fnn_lightning.batch_norm import BatchNorm
from fnn_lightning.data.augmentation import Augmentation, sampling_grid
from fnn_lightning.dropout import Dropout
from fnn_lightning.network import ACTIVATIONS, FNN
from fnn_lightning.training.manual_backward import computes_its_layers_alone

TRIAL_SECONDS = 0.1  # of steps with each number of threads, to find the fastest
KEPT = 10  # times as long as the trials took, the fastest is then kept

GRAIN_SIZE = 32768  # numbers that PyTorch does not divide among threads: at::internal::GRAIN_SIZE
GELU_GRAIN_SIZE = 16384  # of GELU: GELU_MIN_ELEMENTS_FOR_MULTI_THREADING
VECTORISED = 64  # numbers, or a divisor of them, that one pass of a vectorised loop computes
FEW = 3  # numbers, too few for a vectorised loop; of a single one GELU is computed otherwise

LAYERS = (nn.Linear, BatchNorm, Dropout, *ACTIVATIONS.values())

# those whose steps were compared on one thread and several, and had the same bits
OPTIMIZERS = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
)


def fastest_counts(counts: Sequence[int]) -> Generator[int, tuple[float, int], None]:
    """Find the number of threads with which steps are the fastest, again and again.

    Tries the present number and its neighbours, and then keeps the fastest for a while.

    Args:
        counts: Those to choose from, in ascending order. It begins with the last.

    Yields:
        The number for the next steps. Expects to be sent the seconds they took and how many they
        were.
    """
    present = len(counts) - 1
    while True:
        seconds_per_step, tried = {}, 0.0
        fewer, more = max(0, present - 1), min(present + 1, len(counts) - 1)
        for each in dict.fromkeys((present, fewer, more)):
            seconds, steps = yield from use_for(counts[each], TRIAL_SECONDS)
            seconds_per_step[each] = seconds / steps
            tried += seconds
        present = min(seconds_per_step, key=lambda each: seconds_per_step[each])
        yield from use_for(counts[present], KEPT * tried)


def use_for(count: int, duration: float) -> Generator[int, tuple[float, int], tuple[float, int]]:
    """Take steps with a number of threads for a time, in seconds; part of `fastest_counts`."""
    total_seconds, total_steps = 0.0, 0
    while total_seconds < duration:
        seconds, steps = yield count
        total_seconds += seconds
        total_steps += steps
    return total_seconds, total_steps


def steps_are_known(network: Any) -> bool:
    """Tell whether a network computes nothing on the CPU but what `counts_with_same_bits` knows."""
    return (
        computes_its_layers_alone(network)
        and network.dtype in (torch.float32, torch.float64)  # in others optimisers round otherwise
        and all(type(layer) in LAYERS for layer in network.layers)
    )


def counts_with_same_bits(
    networks: Sequence[FNN],
    batch_sizes: set[int],
    most: int,
    reference: int = 1,
    *,
    averaged: bool = False,
    augmentation: Augmentation | None = None,
) -> list[int]:
    """Find the numbers of threads that take a step with the same bits.

    MKL divides no sum of a product among threads, when it was told so in time
    (`reproduce_products`), unless they are many for a small matrix; other libraries may. So
    products of the shapes of a step are computed to see. Sums over the batch are not divided.
    Functions of single numbers are, if those are many: the last of a thread's share are then
    computed by other instructions, which may round otherwise, unless each share is a multiple of
    `VECTORISED`.

    Args:
        networks: The one that is trained, of which `steps_are_known`, and those that teach it.
        batch_sizes: Numbers of images that pass through them.
        most: Greatest number of threads to try.
        reference: The number whose bits the others have to have.
        averaged: Whether there is an EMA of the weights.
        augmentation: What is applied to the images, if anything.

    Returns:
        The reference and, of the others that have its bits, the powers of two and the greatest; in
        ascending order.
    """
    if averaged and not averages_alike():
        return [reference]
    divided = list(divided_numbers(networks, batch_sizes))
    counts = [
        count
        for count in range(1, most + 1)
        if all(divides_alike(each, (count, reference)) for each in divided)
    ]
    kept = {*(2**power for power in range(most.bit_length())), *counts[-1:]} - {reference}
    same = [count for count in counts if count in kept]
    before = torch.get_num_threads()
    for compute in products(networks, batch_sizes, augmentation):
        torch.set_num_threads(reference)
        expected = compute()
        for count in tuple(same):
            torch.set_num_threads(count)
            if not all(map(torch.equal, expected, compute())):
                same.remove(count)
    torch.set_num_threads(before)
    return sorted([reference, *same])


def averages_alike() -> bool:
    """Tell whether an EMA rounds few numbers at once as it does many."""
    kept, new = random_numbers()
    few_at_once = map(torch.lerp, kept.split(FEW), new.split(FEW), repeat(0.01))
    return torch.equal(torch.cat(list(few_at_once)), kept.lerp(new, 0.01))


def activates_alike(activation: type[nn.Module], dtype: torch.dtype) -> bool:
    """Tell whether an activation rounds few numbers at once as it does many."""

    def outputs_and_gradients(x: Tensor, gradient: Tensor) -> Tensor:
        output = activation()(x.requires_grad_())
        return torch.stack([output, *torch.autograd.grad(output, x, gradient)])

    x, gradient = random_numbers().to(dtype)
    few_at_once = map(outputs_and_gradients, x.split(FEW), gradient.split(FEW))
    return torch.equal(torch.cat(list(few_at_once), dim=1), outputs_and_gradients(x, gradient))


def random_numbers() -> Tensor:
    """Return two rows of numbers, enough that any other rounding shows in some."""
    return 3 * torch.randn(2, 341 * FEW, generator=torch.Generator().manual_seed(0))


def divided_numbers(networks: Sequence[FNN], batch_sizes: set[int]) -> Iterator[int]:
    """Yield the size of each activation's output that threads divide.

    An activation that rounds alike however it is divided is left out.
    """
    for network in networks:
        width = 0
        for layer in network.layers:
            if isinstance(layer, nn.Linear):
                width = layer.out_features
                continue
            if type(layer) not in ACTIVATIONS.values():
                continue
            grain_size = GELU_GRAIN_SIZE if type(layer) is nn.GELU else GRAIN_SIZE
            divided = [size * width for size in batch_sizes if size * width > grain_size]
            # last, as the check takes as long as some forty steps of a small net
            if divided and not activates_alike(type(layer), network.dtype):
                yield from divided


def divides_alike(numbers: int, counts: Sequence[int]) -> bool:
    """Tell whether each number is computed by the same instructions on so many threads.

    >>> [divides_alike(100 * width, (1, 2)) for width in (400, 512)]
    [False, True]
    """
    # PyTorch gives a thread at least `GRAIN_SIZE`, but for GELU
    shares = {min(count, -(-numbers // GRAIN_SIZE)) for count in counts}.union(counts) - {1}
    return all(-(-numbers // share) % VECTORISED == 0 for share in shares)


def products(
    networks: Sequence[FNN], batch_sizes: set[int], augmentation: Augmentation | None
) -> Iterator[Callable[[], list[Tensor]]]:
    """Yield functions that compute the products of a step, of random numbers."""
    random = torch.Generator().manual_seed(0)
    linear: list[Any] = [
        each for network in networks for each in network.layers if isinstance(each, nn.Linear)
    ]
    for size in sorted(batch_sizes):
        for layer in linear:
            shape, dtype = layer.weight.shape, layer.weight.dtype
            # few numbers may be equal by luck
            for _ in range(1 + 2000 // max(size * shape[0], 1)):
                inputs = torch.randn(size, shape[1], generator=random, dtype=dtype)
                gradient = torch.randn(size, shape[0], generator=random, dtype=dtype)
                yield partial(products_of_layer, layer, inputs, gradient)
        if augmentation:
            coefficients = augmentation.draw(size, seed=(0,))
            yield partial(products_of_augmentation, coefficients)


@torch.no_grad()
def products_of_layer(layer: Any, inputs: Tensor, gradient: Tensor) -> list[Tensor]:
    """Compute the output of a linear layer, and the gradients of its parameters and its input."""
    output = F.linear(inputs, layer.weight, layer.bias)
    return [output, gradient.t().mm(inputs), gradient.sum(0), gradient.mm(layer.weight)]


def products_of_augmentation(coefficients: Tensor) -> list[Tensor]:
    """Compute the sampling grids of a batch."""
    return [sampling_grid(coefficients)]
