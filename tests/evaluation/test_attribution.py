import base64
import io
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from fnn_lightning.evaluation.attribution import AGAINST, FOR, SHADES, attribute, draw_attribution
from fnn_lightning.lit_module import FNNLitModule

CLASSES, OTHERS = torch.tensor([3, 0]), torch.tensor([8, 5])


def images() -> torch.Tensor:
    return torch.randint(256, (2, 28, 28), dtype=torch.uint8)


def test_without_hidden_layers_pixels_and_biases_add_up_to_the_lead() -> None:
    module = FNNLitModule(hidden_dims=[], pixel_mean=0.13, pixel_std=0.31)
    pixels = images()
    with torch.inference_mode():  # in which the Trainer tests
        contributions = attribute(module, pixels.clone(), CLASSES, OTHERS)
    layer = module.network.layers[-1]
    assert isinstance(layer, nn.Linear)
    scaled = (pixels.double() / 255 - 0.13) / 0.31
    rows = (layer.weight[CLASSES] - layer.weight[OTHERS]).double()
    expected = rows.view(2, 28, 28) * scaled
    torch.testing.assert_close(contributions.double(), expected, rtol=1e-4, atol=1e-6)
    logits = module(pixels)
    lead = logits.gather(1, CLASSES[:, None]) - logits.gather(1, OTHERS[:, None])
    biases = layer.bias[CLASSES] - layer.bias[OTHERS]
    torch.testing.assert_close(contributions.sum((1, 2)) + biases, lead[:, 0])


@pytest.mark.parametrize("compile", [False, True])  # what is compiled is never called
def test_with_hidden_layers_it_is_the_slope_along_each_pixel(compile: bool) -> None:
    torch.manual_seed(0)
    network: dict[str, Any] = {
        "hidden_dims": [8, 6],
        "activation": "tanh",
        "batch_norm": True,
        "dropout": 0.5,
    }
    module = FNNLitModule(**network, compile=compile).train()
    pixels = images()
    contributions = attribute(module, pixels, CLASSES, OTHERS)
    assert module.training
    assert all(each.grad is None for each in module.parameters())
    assert module.network.state_dict()["layers.1.num_batches_tracked"] == 0

    reference = FNNLitModule(**network).double().eval()
    reference.network.load_state_dict(module.network.state_dict())

    def lead(image: torch.Tensor) -> float:
        with torch.no_grad():
            logits = reference.network.layers(image.flatten()[None] / 255)[0]
        return float(logits[3] - logits[8])

    row, column, step = 5, 7, 1e-3
    higher, lower = pixels[0].double(), pixels[0].double()
    higher[row, column] += step
    lower[row, column] -= step
    slope = (lead(higher) - lead(lower)) / (2 * step)
    expected = slope * float(pixels[0, row, column])
    assert float(contributions[0, row, column]) == pytest.approx(expected, rel=1e-3)


def test_the_greatest_contribution_has_full_colour_and_none_is_white() -> None:
    contributions = torch.zeros(28, 28)
    contributions[0, 0], contributions[0, 1], contributions[1, 0] = 0.5, 0.25, -0.5
    picture = Image.open(io.BytesIO(base64.b64decode(draw_attribution(contributions))))
    assert picture.size == (28, 28)
    colors = picture.convert("RGB")
    found = [colors.getpixel(xy) for xy in ((0, 0), (0, 1), (5, 5))]  # column, row
    assert found == [FOR, AGAINST, (255, 255, 255)]
    half = 8 / SHADES  # 7.5 of 15 shades, rounded to even
    assert colors.getpixel((1, 0)) == tuple(round(255 - (255 - part) * half) for part in FOR)
    assert Image.open(io.BytesIO(base64.b64decode(draw_attribution(torch.zeros(28, 28))))).size
