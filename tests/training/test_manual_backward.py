"""Gradients written out must be those of autograd, and left to it wherever it would do more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fnn_lightning import FNN, FNNLitModule, MNISTDataModule
from fnn_lightning.network import ACTIVATIONS
from fnn_lightning.training.manual_backward import (
    DERIVATIVES,
    ManualBackward,
    supports_manual_backward,
)
from fnn_lightning.training.metrics import StepOutput
from tests.support import trainer, why_single_steps

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]

WRITTEN_OUT = [name for name, layer in ACTIVATIONS.items() if layer in DERIVATIVES]


def bits(numbers: Tensor) -> Tensor:
    """Tell 0.0 from -0.0."""
    return numbers.contiguous().view(torch.int64 if numbers.dtype == torch.float64 else torch.int32)


@pytest.mark.parametrize("hidden_dims", [[], [100], [30, 20, 10], [1, 4]])
@pytest.mark.parametrize("activation", WRITTEN_OUT)
@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_those_of_autograd_bit_for_bit(
    hidden_dims: list[int], activation: Any, batch_size: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    network = FNN(hidden_dims=hidden_dims, activation=activation, pixel_mean=0.5, pixel_std=0.3)
    network.to(dtype)
    images = torch.randint(256, (batch_size, 28, 28), dtype=torch.uint8)
    labels = torch.randint(10, (batch_size,))
    logits = network(images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    expected = [parameter.grad for parameter in network.parameters()]

    network.zero_grad()
    backpropagation = ManualBackward(network)
    for _ in range(2):  # a gradient takes the place of the one before
        output = backpropagation(network.scale(images), labels)
        assert torch.equal(bits(output.loss), bits(loss))
        assert torch.equal(bits(output.logits), bits(logits))
        assert output.labels is labels
        assert not output.loss.requires_grad
        for parameter, gradient in zip(network.parameters(), expected, strict=True):
            assert parameter.grad is not None
            assert gradient is not None
            assert torch.equal(bits(parameter.grad), bits(gradient))
            assert parameter.grad.stride() == gradient.stride()


def test_the_activations_of_the_tutorials_are_supported() -> None:
    assert sorted(WRITTEN_OUT) == ["relu", "sigmoid", "tanh"]
    assert supports_manual_backward(FNN(hidden_dims=[]))
    for name in ACTIVATIONS:
        assert supports_manual_backward(FNN(hidden_dims=[5, 4], activation=name)) == (
            name in WRITTEN_OUT
        )


@pytest.mark.parametrize(
    "arguments", [{"batch_norm": True}, {"dropout": 0.1}, {"input_dropout": 0.1}]
)
def test_other_layers_are_left_to_autograd(arguments: dict[str, Any]) -> None:
    assert not supports_manual_backward(FNN(**arguments))


class Derived(FNN):
    """Might do anything."""


def weight(network: FNN) -> nn.Parameter:
    found: Any = network.layers[0].weight
    return found  # type: ignore[no-any-return]


def nothing(*_: Any) -> None:
    """Watch."""


def reuse(network: FNN) -> None:
    network.layers[2] = network.layers[0]


def replace(number: int, layer: nn.Module) -> Callable[[FNN], None]:
    def change(network: FNN) -> None:
        network.layers[number] = layer

    return change


class Doubled(nn.Sequential):
    """Twice the logits."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)
        return 2 * logits


def double(network: FNN) -> None:
    network.layers = Doubled(*network.layers)


WATCHED: dict[str, Callable[[FNN], Any]] = {
    "forward": lambda network: network.layers[1].register_forward_hook(nothing),
    "before forward": lambda network: network.register_forward_pre_hook(nothing),
    "backward": lambda network: network.layers[0].register_full_backward_hook(nothing),
    "before backward": lambda network: network.layers.register_full_backward_pre_hook(nothing),
    "gradient": lambda network: weight(network).register_hook(nothing),
    "accumulated": lambda network: weight(network).register_post_accumulate_grad_hook(nothing),
    "frozen": lambda network: weight(network).requires_grad_(False),
    "parametrised": lambda network: parametrizations.weight_norm(network.layers[0]),
    "compiled": lambda network: network.compile(),
    "own forward": lambda network: vars(network).update(forward=nothing),
    "layer's own forward": lambda network: vars(network.layers[1]).update(forward=nothing),
    "shared layer": reuse,
    "shared weight": lambda network: vars(network.layers[2])["_parameters"].update(
        weight=weight(network)
    ),
    "no bias": replace(0, nn.Linear(784, 784, bias=False)),
    "other dtype": lambda network: network.layers[0].double(),
    "activation at the end": lambda network: network.layers.append(nn.ReLU()),
    "own container": double,
}


@pytest.mark.parametrize("watch", WATCHED.values(), ids=WATCHED.keys())
def test_hooks_on_modules_and_parameters_get_autograd(watch: Callable[[FNN], Any]) -> None:
    network = FNN(hidden_dims=[784, 784])
    assert supports_manual_backward(network)
    watch(network)
    assert not supports_manual_backward(network)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_global_module_hooks_get_autograd(kind: str) -> None:
    handle = getattr(nn.modules.module, f"register_module_{kind}_hook")(nothing)
    try:
        assert not supports_manual_backward(FNN())
    finally:
        handle.remove()
    assert supports_manual_backward(FNN())


def test_autocast_anomalies_and_other_networks_are_left_to_autograd() -> None:
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        assert not supports_manual_backward(FNN())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not supports_manual_backward(FNN())
    assert supports_manual_backward(FNN())
    assert not supports_manual_backward(Derived())
    assert not supports_manual_backward(nn.Linear(784, 10))


@pytest.mark.parametrize("label", [10, -1, -100])
def test_a_label_out_of_range_is_an_error(make_model: MakeModel, label: int) -> None:
    batch = torch.zeros(1, 784), torch.tensor([label])
    with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
        ManualBackward(FNN())(*batch)
    with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
        make_model()._step(batch)


class HalfLoss(FNNLitModule):
    """Halves the loss."""

    def _step(self, batch: Any, *args: Any) -> StepOutput:
        output = super()._step(batch, *args)
        return output._replace(loss=output.loss / 2)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with every gradient written out."""
    found: list[int] = []
    original = ManualBackward.__call__

    def count(self: ManualBackward, images: Tensor, labels: Tensor) -> Any:
        found.append(len(labels))
        return original(self, images, labels)

    monkeypatch.setattr(ManualBackward, "__call__", count)
    return found


@pytest.mark.parametrize(
    ("arguments", "written_out"),
    [
        ({}, True),
        ({"hidden_dims": []}, True),
        ({"activation": "tanh"}, True),
        ({"activation": "gelu"}, False),
        ({"label_smoothing": 0.1}, False),
        ({"keep_hardest": 0.5}, False),
        ({"adversarial_radius": 0.5}, False),
        ({"multi_step": False}, False),
    ],
)
def test_plain_nets_use_written_out_gradients(
    make_data: MakeData,
    make_model: MakeModel,
    tmp_path: Path,
    calls: list[int],
    arguments: dict[str, Any],
    written_out: bool,
) -> None:
    model = make_model(**arguments)
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=make_data(batch_size=20))
    assert bool(calls) == written_out


def test_a_derived_module_gets_autograd(
    make_data: MakeData, tmp_path: Path, calls: list[int]
) -> None:
    model = HalfLoss(hidden_dims=[4])
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, datamodule=make_data(batch_size=20))
    assert why_single_steps(run) is None
    assert run.global_step == 14
    assert not calls


@pytest.mark.parametrize("where", ["module", "layer"])
def test_hooks_are_called_in_every_step(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, calls: list[int], where: str
) -> None:
    model, seen = make_model(), []
    watched = model if where == "module" else model.network.layers[0]
    watched.register_forward_hook(lambda *_: seen.append(where))
    run = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    run.fit(model, datamodule=make_data(batch_size=20))
    assert why_single_steps(run) is None
    assert len(seen) == run.global_step == 14
    assert not calls
