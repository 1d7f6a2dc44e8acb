import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.errors import InputError
from fnn_lightning.training.hard_examples import HardExamples
from tests.support import trainer

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]


def test_a_step_is_taken_on_the_hardest_images(make_model: MakeModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make_model(keep_hardest=0.3, batch_norm=True, dropout=0.5, label_smoothing=0.2)
    last: Any = model.network.layers[-1]
    last.weight.data *= 50  # so sure that label smoothing changes which are the hardest
    images = torch.randint(256, (100, 28, 28), dtype=torch.uint8)
    labels = torch.randint(10, (100,))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.eval()
    logits = model(images)
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.2)
    chosen = losses.argsort(descending=True)[:30].sort().values  # in the order of the batch
    plain = F.cross_entropy(logits, labels, reduction="none").argsort(descending=True)[:30]
    assert set(plain.tolist()) != set(chosen.tolist())
    model.train()
    torch.manual_seed(0)
    expected = F.cross_entropy(model(images[chosen]), labels[chosen], label_smoothing=0.2)
    wanted = torch.autograd.grad(expected, list(model.network.parameters()))
    seen_once = {name: buffer.clone() for name, buffer in model.named_buffers()}

    model.load_state_dict(before, strict=False)
    torch.manual_seed(0)
    model.trainer = trainer(tmp_path)
    loss = model.training_step((images, labels), 0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    gradients = [parameter.grad for parameter in model.network.parameters()]
    torch.testing.assert_close(gradients, list(wanted))
    for name, buffer in model.network.named_buffers():  # of the step, not of the first pass
        torch.testing.assert_close(buffer, seen_once[f"network.{name}"])
    # what is logged is of the whole batch
    torch.testing.assert_close(model.train_metrics.losses(), losses.mean().view(1))
    assert model.train_metrics.compute_and_reset()["train/acc"] == (
        (logits.argmax(1) == labels).float().mean()
    )


def test_the_first_pass_restores_the_mode_of_each_module(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = make_model(keep_hardest=0.3, batch_norm=True, dropout=0.5)
    model.trainer = trainer(tmp_path)
    model.train()
    frozen = model.network.layers[1].eval()
    images = torch.randint(256, (20, 28, 28), dtype=torch.uint8)
    batch = images, torch.randint(10, (20,))
    model.training_step(batch, 0)
    others = [each for each in model.network.modules() if each is not frozen]
    assert not frozen.training
    assert all(each.training for each in others)
    monkeypatch.setattr(model, "_step", None)
    with pytest.raises(TypeError):
        model.training_step(batch, 1)
    assert all(each.training for each in others)


@pytest.mark.parametrize(("fraction", "sizes"), [(0.25, [0, 1, 1, 2]), (0.999, [0, 1, 4, 8])])
def test_the_fraction_is_rounded_to_one_image_at_least(fraction: float, sizes: list[int]) -> None:
    assert [HardExamples(fraction).count(count) for count in (0, 1, 4, 8)] == sizes


@pytest.mark.parametrize("hardest", [0.0, -0.5, 1.1, math.nan])
def test_a_fraction_out_of_range_is_refused(make_model: MakeModel, hardest: float) -> None:
    with pytest.raises(InputError, match="`keep_hardest` to be above 0 and at most 1"):
        make_model(keep_hardest=hardest)
