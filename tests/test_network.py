from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fnn_lightning import FNN
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
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FNN(**arguments)  # type: ignore[arg-type]
