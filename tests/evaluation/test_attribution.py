import base64
import io
import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from fnn_lightning.commands.demo_page import answer
from fnn_lightning.evaluation.attribution import AGAINST, FOR, SHADES, attribute, draw_attribution
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.runs.load import TrainedNetwork

CLASSES, OTHERS = torch.tensor([3, 0]), torch.tensor([8, 5])


def images() -> torch.Tensor:
    return torch.randint(256, (2, 28, 28), dtype=torch.uint8)


def test_without_hidden_layers_it_is_gradient_times_input() -> None:
    module = FNNLitModule(hidden_dims=[], pixel_mean=0.13, pixel_std=0.31)
    pixels = images()
    with torch.inference_mode():  # in which the Trainer tests
        contributions = attribute(module, pixels.clone(), CLASSES.clone(), OTHERS.clone())
    layer = module.network.layers[-1]
    assert isinstance(layer, nn.Linear)
    beyond_blank = pixels.double() / 255 / 0.31
    rows = (layer.weight[CLASSES] - layer.weight[OTHERS]).double()
    expected = rows.view(2, 28, 28) * beyond_blank
    torch.testing.assert_close(contributions.double(), expected, rtol=1e-4, atol=1e-6)
    leads = lead(module, pixels) - lead(module, torch.zeros_like(pixels))
    torch.testing.assert_close(contributions.sum((1, 2)), leads)


def lead(module: FNNLitModule, pixels: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = module(pixels)
    return (logits.gather(1, CLASSES[:, None]) - logits.gather(1, OTHERS[:, None]))[:, 0]


def test_with_hidden_layers_contributions_add_up_to_the_lead_over_a_blank_image() -> None:
    torch.manual_seed(0)
    network: dict[str, Any] = {"hidden_dims": [8, 6], "batch_norm": True, "dropout": 0.5}
    module = FNNLitModule(**network, activation="tanh", pixel_mean=0.1).train()
    with torch.no_grad():  # so that the gradient at the image alone adds up to something else
        for each in module.parameters():
            each.mul_(3)
    pixels = images()
    pixels[:, :5] = 0
    contributions = attribute(module, pixels, CLASSES, OTHERS)
    assert module.training
    assert all(each.grad is None for each in module.parameters())
    assert module.network.state_dict()["layers.1.num_batches_tracked"] == 0
    module.eval()
    leads = lead(module, pixels) - lead(module, torch.zeros_like(pixels))
    torch.testing.assert_close(contributions.sum((1, 2)), leads, rtol=0.02, atol=0.02)
    assert (contributions[:, :5] == 0).all()  # no ink, no word
    inputs = module.network.scale(pixels).requires_grad_()
    logits = module.network.layers(inputs)
    (gradient,) = torch.autograd.grad((logits[0, 3] - logits[0, 8]), inputs)
    at_the_image = (gradient * (inputs - module.network.scale(torch.zeros_like(pixels))))[0].sum()
    assert not torch.isclose(at_the_image, leads[0], rtol=0.2)


def test_the_demo_compares_the_answer_with_the_second_most_probable_class() -> None:
    names = ["a", "b <i>", "c"]
    module = FNNLitModule(class_names=names, hidden_dims=[])
    layer = module.network.layers[-1]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
        layer.weight[2, 30], layer.weight[1, 31] = 1.0, 0.5
    pixels = torch.full((28, 28), 255, dtype=torch.uint8)
    page = answer(TrainedNetwork(Path("last.ckpt"), module, {}), lambda: pixels)
    assert re.findall(r"--key: (#\w+)'>([^<]+)<", page) == [
        *(("#d55e00", "c"), ("#0072b2", "b &lt;i&gt;"))
    ]
    contributions = torch.zeros(28, 28)
    contributions[1, 2], contributions[1, 3] = 1.0, -0.5
    assert f"src='data:image/png;base64,{draw_attribution(contributions)}'" in page
    alone = TrainedNetwork(Path("last.ckpt"), FNNLitModule(class_names=["a"]), {})
    assert "What speaks for" not in answer(alone, lambda: pixels)


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
