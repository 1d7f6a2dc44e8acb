from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fnn_lightning import FNN
from fnn_lightning.dropout import Dropout
from fnn_lightning.errors import InputError
from fnn_lightning.network import ACTIVATIONS, Activation


@pytest.mark.parametrize(
    ("hidden_dims", "shapes"),
    [([], [(2, 6)]), ([3], [(3, 6), (2, 3)]), ([4, 5], [(4, 6), (5, 4), (2, 5)])],
)
def test_depth_is_the_number_of_hidden_layers(
    hidden_dims: list[int], shapes: list[tuple[int, int]]
) -> None:
    network = FNN(in_features=6, hidden_dims=hidden_dims, out_features=2)
    linear = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == shapes
    assert len(network.layers) == 2 * len(hidden_dims) + 1
    assert network.layers[-1] is linear[-1]  # no activation on the logits


def test_logits_computed_by_hand() -> None:
    network = FNN(4, [3], 2, activation="sigmoid", pixel_mean=0.5, pixel_std=0.25)
    pixels = np.array([[0, 51, 102, 255], [255, 0, 7, 90]], dtype=np.uint8)
    w1, b1, w2, b2 = (parameter.detach().numpy() for parameter in network.parameters())
    hidden = 1 / (1 + np.exp(-((pixels / 255 - 0.5) / 0.25 @ w1.T + b1)))
    expected = hidden @ w2.T + b2
    logits = network(torch.from_numpy(pixels)).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_defaults_leave_the_network_as_it_was() -> None:
    torch.manual_seed(5)
    network = FNN(6, [4, 5], 2)
    torch.manual_seed(5)
    plain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    after = torch.rand(1)
    torch.manual_seed(5)
    FNN(6, [4, 5], 2, batch_norm=True, dropout=0.5, input_dropout=0.1)
    assert torch.equal(torch.rand(1), after)  # nor do these draw anything at first
    expected = {f"layers.{name}": weight for name, weight in plain.state_dict().items()}
    assert list(network.state_dict()) == list(expected)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, expected[name])
    pixels = torch.randint(256, (3, 6), dtype=torch.uint8)
    assert torch.equal(network.train()(pixels), plain(pixels.float() / 255))


def test_batch_norm_equals_the_formula() -> None:
    torch.manual_seed(0)
    network = FNN(4, [3], 2, activation="tanh", batch_norm=True)
    pixels = torch.randint(256, (6, 4), dtype=torch.uint8)
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert [name for name, _ in network.layers.named_parameters()] == names
    w1, b1, scale, offset, w2, b2 = (each.detach().numpy() for each in network.parameters())
    assert scale.tolist() == [1] * 3
    assert offset.tolist() == [0] * 3
    before = pixels.numpy() / 255 @ w1.T + b1
    mean, variance = before.mean(0), before.var(0)
    normalised = (before - mean) / np.sqrt(variance + 1e-5)
    expected = np.tanh(normalised) @ w2.T + b2
    np.testing.assert_allclose(network(pixels).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    # a tenth of the way from 0 and 1 to this batch's; the variance is then that of a sample
    running = before - 0.1 * mean, 0.9 + 0.1 * variance * 6 / 5
    expected = np.tanh(running[0] / np.sqrt(running[1] + 1e-5)) @ w2.T + b2
    logits = network.eval()(pixels).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_dropout_acts_on_inputs_and_hidden_layers_in_training_only() -> None:
    torch.manual_seed(0)
    network = FNN(50, [400], 2, activation="sigmoid", dropout=0.25, input_dropout=0.5)
    kinds = [type(layer) for layer in network.layers]
    assert kinds == [Dropout, nn.Linear, nn.Sigmoid, Dropout, nn.Linear]
    seen: list[torch.Tensor] = []
    for layer in network.layers:
        layer.register_forward_hook(lambda _, __, output: seen.append(output))
    pixels = torch.full((40, 50), 255.0)
    network(pixels)
    scaled, hidden = seen[0], seen[3]
    assert set(scaled.unique().tolist()) == {0.0, 2.0}  # 1 / (1 - 0.5)
    assert (scaled == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (hidden == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(hidden[hidden != 0], seen[2][hidden != 0] / 0.75)
    assert network.dtype == torch.float32
    network.eval()
    assert torch.equal(network(pixels), network(pixels))


def test_initialization_has_the_variance_of_its_source() -> None:
    torch.manual_seed(0)
    for name, fans in (("he", (500, 300)), ("xavier", (800, 700))):
        network = FNN(500, [300], 400, initialization=name)  # type: ignore[arg-type]
        first, last = (layer for layer in network.layers if isinstance(layer, nn.Linear))
        for layer, fan in zip((first, last), fans, strict=True):
            assert layer.weight.var().item() == pytest.approx(2 / fan, rel=0.02)
            assert layer.bias.abs().max() == 0
    assert first.weight.abs().max().item() == pytest.approx((6 / 800) ** 0.5, rel=1e-3)  # uniform


@pytest.mark.parametrize("activation", get_args(Activation))
def test_activation_is_the_function_of_that_name(activation: Activation) -> None:
    x = torch.linspace(-3, 3, 13)
    assert torch.equal(ACTIVATIONS[activation]()(x), getattr(F, activation)(x))


def test_every_form_of_raw_pixels_gives_the_same_logits() -> None:
    network = FNN()
    images = torch.randint(256, (5, 28, 28), dtype=torch.uint8)
    logits = network(images)
    assert logits.shape == (5, 10)
    assert logits.dtype == torch.float32
    for same in (images.view(5, 1, 28, 28), images.view(5, 784), images.float(), images.double()):
        assert torch.equal(network(same), logits)


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"784 pixels .* shape \(5, 27, 28\)"):
        FNN()(torch.zeros(5, 27, 28))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_dims": [100, 0]}, r"`hidden_dims` to be positive integers, but got \[100, 0\]"),
        ({"hidden_dims": [-1]}, "positive integers"),
        ({"hidden_dims": [1.5]}, "positive integers"),
        ({"hidden_dims": [True]}, "positive integers"),
        ({"activation": "rleu"}, "one of celu, .*, relu, .*, tanh, but got 'rleu'"),
        ({"pixel_std": 0.0}, "`pixel_std` to be positive, but got 0.0"),
        ({"pixel_std": float("nan")}, "`pixel_std` to be positive"),
        ({"dropout": 1.0}, "`dropout` to be from 0 to below 1, but got 1.0"),
        ({"input_dropout": -0.1}, "`input_dropout` to be from 0 to below 1"),
        ({"initialization": "best"}, "one of pytorch, he, xavier, but got 'best'"),
    ],
)
def test_an_argument_out_of_range_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FNN(**arguments)  # type: ignore[arg-type]
