import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fnn_lightning import FNNLitModule
from fnn_lightning.errors import InputError
from fnn_lightning.training.adversarial import AdversarialExamples
from tests.support import trainer

MakeModel = Callable[..., FNNLitModule]


def test_an_example_lies_where_the_loss_of_a_linear_net_rises_fastest(
    make_model: MakeModel,
) -> None:
    model = make_model(hidden_dims=[], pixel_mean=0.1, pixel_std=0.5).double()
    images = torch.randint(256, (20, 28, 28)).double().requires_grad_()
    labels = torch.randint(10, (20,))
    loss = F.cross_entropy(model(images), labels)
    examples = AdversarialExamples(1.5).of(images, loss)
    assert examples.shape == images.shape
    assert not examples.requires_grad
    weight = model.network.layers[0].weight
    # of softmax and cross-entropy: probabilities less one-hot labels, through the weights
    gradient = (model(images).softmax(1) - F.one_hot(labels, 10)) @ weight
    moved = (examples - images).detach().flatten(1) / 255
    torch.testing.assert_close(moved.norm(dim=1), torch.full((20,), 1.5, dtype=torch.float64))
    torch.testing.assert_close(moved, 1.5 * F.normalize(gradient).detach())


def test_an_image_without_a_gradient_stays_as_it_is() -> None:
    images = torch.ones(3, 4, requires_grad=True)
    examples = AdversarialExamples(1.0).of(images, (0 * images).sum())
    assert torch.equal(examples, torch.ones(3, 4))
    none = torch.ones(0, 4, requires_grad=True)
    assert AdversarialExamples(1.0).of(none, none.sum()).shape == (0, 4)


@pytest.mark.parametrize("slope", [1e-25, 1e-37, 1e18])
def test_a_gradient_whose_squares_underflow_or_overflow_moves_no_farther(slope: float) -> None:
    images = torch.zeros(2, 784, requires_grad=True)
    moved = AdversarialExamples(1.5).of(images, slope * images.sum()) / 255
    torch.testing.assert_close(moved, torch.full((2, 784), 1.5 / 28))


@pytest.mark.parametrize("keep_hardest", [1.0, 0.5])
def test_a_step_lowers_the_mean_of_both_losses(
    make_model: MakeModel, tmp_path: Path, keep_hardest: float
) -> None:
    options = {"batch_norm": True, "label_smoothing": 0.1, "keep_hardest": keep_hardest}
    images = torch.randint(256, (40, 28, 28), dtype=torch.uint8)
    labels = torch.randint(10, (40,))

    plain = make_model(**options)
    plain.trainer = trainer(tmp_path)
    losses = F.cross_entropy(plain.eval()(images), labels, reduction="none", label_smoothing=0.1)
    kept = losses.argsort(descending=True)[: round(40 * keep_hardest)].sort().values
    plain.train()
    shown = images[kept].float().requires_grad_()
    clean = F.cross_entropy(plain(shown), labels[kept], label_smoothing=0.1)
    running = {name: buffer.clone() for name, buffer in plain.named_buffers()}
    (gradient,) = torch.autograd.grad(clean, shown, retain_graph=True)
    length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1)
    moved = shown.detach() + 255 * 0.7 * gradient / length
    adversarial = F.cross_entropy(plain(moved), labels[kept], label_smoothing=0.1)
    assert adversarial > clean
    expected = (clean + adversarial) / 2
    wanted = torch.autograd.grad(expected, list(plain.network.parameters()))

    model = make_model(**options, adversarial_radius=0.7)
    model.trainer = trainer(tmp_path)
    loss = model.training_step((images, labels), 0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    gradients = [parameter.grad for parameter in model.network.parameters()]
    torch.testing.assert_close(gradients, list(wanted), rtol=1e-4, atol=1e-7)
    # normalisation has counted the images alone, and so has what is logged
    for name, buffer in model.named_buffers():
        if "layers" in name:
            torch.testing.assert_close(buffer, running[name])
    assert all(getattr(each, "track_running_stats", True) for each in model.network.modules())
    logged = clean if keep_hardest == 1 else losses.mean()
    torch.testing.assert_close(model.train_metrics.losses(), logged.detach().view(1))


def test_floating_point_images_of_the_user_are_left_as_they_are(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(adversarial_radius=0.7)
    model.trainer = trainer(tmp_path)
    images = torch.full((4, 784), 9.0)
    model.training_step((images, torch.arange(4)), 0)
    assert not images.requires_grad
    assert torch.equal(images, torch.full((4, 784), 9.0))


@pytest.mark.parametrize("radius", [-0.1, math.inf, math.nan])
def test_a_radius_out_of_range_is_refused(make_model: MakeModel, radius: float) -> None:
    with pytest.raises(InputError, match="`adversarial_radius` to be a finite number from 0"):
        make_model(adversarial_radius=radius)


def test_a_compiled_network_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match=r"`compile` and `adversarial_radius` 0\.5: leave out one"):
        make_model(compile=True, adversarial_radius=0.5)
