import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from fnn_lightning import FNN
from fnn_lightning.training import varying_threads
from fnn_lightning.training.manual_backward import ManualBackward
from fnn_lightning.training.varying_threads import fastest_counts, most_with_same_bits


def test_the_fastest_number_is_found_and_found_again() -> None:
    seconds = {1: 3.0, 2: 2.0, 3: 1.5, 4: 1.0, 6: 0.5}  # a step, with so many threads
    search = fastest_counts(1, 6)
    count = next(search)

    def use(steps: int) -> list[int]:
        nonlocal count
        used = []
        for _ in range(steps):
            used.append(count)
            count = search.send((seconds[count], 1))
        return used

    assert use(4) == [1, 2, 2, 2], "tries both, and keeps the faster"
    use(500)
    assert use(500).count(6) > 400
    seconds = {1: 3.0, 2: 4.0, 3: 8.0, 4: 8.5, 6: 9.0}  # another program has come
    use(500)
    assert use(500).count(1) > 350


@pytest.mark.parametrize("hidden_dims", [[], [33], [100], [300, 64]])
@pytest.mark.parametrize("batch_sizes", [{100}, {112, 8}, {64, 2}, {500}])
def test_no_number_of_threads_that_is_found_changes_a_bit(
    hidden_dims: list[int], batch_sizes: set[int]
) -> None:
    torch.manual_seed(0)
    network = FNN(hidden_dims=hidden_dims)
    most = most_with_same_bits(network, batch_sizes, 16)
    manual = ManualBackward(network)
    batches = [
        (network.scale(torch.randint(256, (size, 784)).byte()), torch.randint(10, (size,)))
        for size in sorted(batch_sizes)
        for _ in range(5)
    ]

    def step(threads: int) -> list[torch.Tensor | None]:
        torch.set_num_threads(threads)
        seen: list[torch.Tensor | None] = []
        for batch in batches:
            seen += [manual(*batch).logits, *(each.grad for each in network.parameters())]
        return seen

    before = torch.get_num_threads()
    try:
        for count in (2, 4, 8, 16):
            if count <= most:
                for ours, theirs in zip(step(count), step(1), strict=True):
                    assert ours is not None
                    assert theirs is not None
                    assert torch.equal(ours, theirs), f"{count} of {most} threads"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("limit", [1, 4])
def test_products_that_differ_on_more_threads_are_found_out(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = varying_threads.products

    def differ_beyond(linear: list[Any], sizes: set[int], threads: int) -> list[torch.Tensor]:
        *others, last = products(linear, sizes, 1)
        return [*others, last + (threads > limit)]

    monkeypatch.setattr(varying_threads, "products", differ_beyond)
    assert most_with_same_bits(FNN(hidden_dims=[8]), {100, 7}, 16) == limit


def test_products_of_mkl_that_depend_on_threads_are_found_out() -> None:
    # MKL reads its variable at the first product, which comes too early here
    program = (
        "import torch\n"
        "gradient, inputs = torch.rand(100, 10), torch.rand(100, 100)\n"
        "products = []\n"
        "for count in (1, 2):\n"
        "    torch.set_num_threads(count)\n"
        "    products.append(gradient.t().mm(inputs))\n"
        "from fnn_lightning import FNN\n"
        "from fnn_lightning.training.varying_threads import most_with_same_bits\n"
        "print(torch.equal(*products), most_with_same_bits(FNN(), {100}, 2) == 2)\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60
    )
    assert printed.stdout, printed.stderr
    same, found_same = printed.stdout.split()
    assert same == "True" or found_same == "False"  # it compares more products than this one
    assert most_with_same_bits(FNN(), {100}, 2) == 2, "here the variable came in time"
    assert most_with_same_bits(FNN(hidden_dims=[400], activation="sigmoid"), {100}, 2) == 1
