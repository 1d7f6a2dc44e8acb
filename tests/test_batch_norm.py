from collections.abc import Callable

import pytest
import torch
from torch import nn

from fnn_lightning.batch_norm import BatchNorm


def step(layer: nn.Module, threads: int, images: int = 200) -> list[torch.Tensor | None]:
    """Take a step of a layer of 512 units; return all it computes."""
    random = torch.Generator().manual_seed(0)
    x, gradient = torch.randn(2, images, 512, generator=random)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        output = layer(x.requires_grad_())
        assert torch.get_num_threads() == threads, "after the forward pass"
        output.backward(gradient)
        assert torch.get_num_threads() == threads, "after the backward pass"
    finally:
        torch.set_num_threads(before)
    gradients = [each.grad for each in (x, *layer.parameters())]
    layer.zero_grad()
    return [output.detach(), *gradients, *layer.buffers()]


def equal(ours: list[torch.Tensor | None], theirs: list[torch.Tensor | None]) -> bool:
    return all(
        a is not None and b is not None and torch.equal(a, b)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_gradients_in_evaluation_mode_have_the_same_bits_as_well() -> None:
    ours, theirs = BatchNorm(512).eval(), nn.BatchNorm1d(512).eval()
    expected = step(theirs, 1)
    assert not equal(step(theirs, 3), expected)
    assert equal(step(ours, 3), expected)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_it_has_the_bits_of_pytorchs_on_one_thread(threads: int) -> None:
    expected = step(nn.BatchNorm1d(512), 1)
    assert equal(step(BatchNorm(512), threads), expected)
    assert not equal(step(nn.BatchNorm1d(512), threads), expected), (
        "the number of threads changes no bit of PyTorch's own any more: ours is not needed"
    )


def evaluated(layer: nn.BatchNorm1d) -> None:
    layer.eval()


def without_statistics(layer: nn.BatchNorm1d) -> None:
    layer.track_running_stats = False


def frozen(layer: nn.BatchNorm1d) -> None:
    layer.requires_grad_(False)


def cumulative(layer: nn.BatchNorm1d) -> None:
    layer.momentum = None


@pytest.mark.parametrize("change", [evaluated, without_statistics, frozen, cumulative])
def test_it_is_otherwise_pytorchs(change: Callable[[nn.BatchNorm1d], None]) -> None:
    ours, theirs = BatchNorm(512), nn.BatchNorm1d(512)
    for layer in (ours, theirs):
        change(layer)
        step(layer, 1)
    results = zip(step(ours, 1), step(theirs, 1), strict=True)
    for a, b in results:
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(ours(torch.ones(2, 512)), theirs(torch.ones(2, 512)))
    assert isinstance(
        nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(ours))[0], nn.SyncBatchNorm
    )


def test_a_graph_that_is_walked_back_twice_leaves_the_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        x = torch.randn(20, 4, requires_grad=True)
        loss = BatchNorm(4)(x).square().sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        torch.set_num_threads(2)
        gradient.square().sum().backward()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
