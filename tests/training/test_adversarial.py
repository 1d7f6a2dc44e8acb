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

    def loss_at(images: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(images), labels)

    examples = AdversarialExamples(1.5).of(images, loss_at(images), loss_at)
    assert examples.shape == images.shape
    assert not examples.requires_grad
    weight = model.network.layers[0].weight
    # of softmax and cross-entropy: probabilities less one-hot labels, through the weights
    gradient = (model(images).softmax(1) - F.one_hot(labels, 10)) @ weight
    moved = (examples - images).detach().flatten(1) / 255
    torch.testing.assert_close(moved.norm(dim=1), torch.full((20,), 1.5, dtype=torch.float64))
    torch.testing.assert_close(moved, 1.5 * F.normalize(gradient).detach())


def examples_on_slope(images: torch.Tensor, slope: float, steps: int = 1) -> torch.Tensor:
    """Compute examples of a loss that rises alike with every pixel."""

    def loss_at(images: torch.Tensor) -> torch.Tensor:
        return slope * images.sum()

    return AdversarialExamples(1.0, steps).of(images, loss_at(images), loss_at)


def test_an_image_without_a_gradient_stays_as_it_is() -> None:
    images = torch.ones(3, 4, requires_grad=True)
    assert torch.equal(examples_on_slope(images, 0), torch.ones(3, 4))
    assert torch.equal(examples_on_slope(images, 0, steps=3), torch.ones(3, 4))
    none = torch.ones(0, 4, requires_grad=True)
    assert examples_on_slope(none, 1, steps=3).shape == (0, 4)


@pytest.mark.parametrize("slope", [1e-25, 1e-37, 1e18])
def test_a_gradient_whose_squares_underflow_or_overflow_moves_no_farther(slope: float) -> None:
    images = torch.zeros(2, 784, requires_grad=True)
    moved = examples_on_slope(images, slope) / 255
    torch.testing.assert_close(moved, torch.full((2, 784), 1 / 28))


def test_each_step_follows_the_gradient_at_the_place_reached() -> None:
    # x² + 4y² (÷ 255²) rises along (2x, 8y): from (3, 4) along (6, 32), a way of 5 in two steps
    images = torch.tensor([[3.0, 4.0], [0.0, -8.0]]).double().mul(255).requires_grad_()

    def loss_at(images: torch.Tensor) -> torch.Tensor:
        return ((images / 255) ** 2 * torch.tensor([1.0, 4.0])).sum()

    examples = AdversarialExamples(5.0, steps=2).of(images, loss_at(images), loss_at) / 255
    x, y = 3 + 2.5 * 6 / math.hypot(6, 32), 4 + 2.5 * 32 / math.hypot(6, 32)
    length = math.hypot(2 * x, 8 * y)
    expected = [[x + 2.5 * 2 * x / length, y + 2.5 * 8 * y / length], [0.0, -13.0]]
    torch.testing.assert_close(examples, torch.tensor(expected).double())
    assert not examples.requires_grad
    one = AdversarialExamples(5.0).of(images, loss_at(images), loss_at) / 255
    assert one[0, 1] < examples[0, 1]  # the second gradient points farther along y


@pytest.mark.parametrize("keep_hardest", [1.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_step_lowers_the_mean_of_both_losses(
    make_model: MakeModel, tmp_path: Path, keep_hardest: float, steps: int
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
    moved = shown.detach()
    for step in range(steps):
        if step:
            moved.requires_grad_()
            loss = F.cross_entropy(plain(moved), labels[kept], label_smoothing=0.1)
            (gradient,) = torch.autograd.grad(loss, moved)
        length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1)
        moved = moved.detach() + 255 * 0.7 / steps * gradient / length
    adversarial = F.cross_entropy(plain(moved), labels[kept], label_smoothing=0.1)
    assert adversarial > clean
    expected = (clean + adversarial) / 2
    wanted = torch.autograd.grad(expected, list(plain.network.parameters()))

    model = make_model(**options, adversarial_radius=0.7, adversarial_steps=steps)
    model.trainer = trainer(tmp_path)
    loss = model.training_step((images, labels), 0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    gradients = [parameter.grad for parameter in model.network.parameters()]
    atol = 1e-7 if steps == 1 else 1e-6  # a second step magnifies the rounding of the first
    torch.testing.assert_close(gradients, list(wanted), rtol=1e-4, atol=atol)
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
    model = make_model(adversarial_radius=0.7, adversarial_steps=2)
    model.trainer = trainer(tmp_path)
    images = torch.full((4, 784), 9.0)
    model.training_step((images, torch.arange(4)), 0)
    assert not images.requires_grad
    assert torch.equal(images, torch.full((4, 784), 9.0))


@pytest.mark.parametrize("radius", [-0.1, math.inf, math.nan])
def test_a_radius_out_of_range_is_refused(make_model: MakeModel, radius: float) -> None:
    with pytest.raises(InputError, match="`adversarial_radius` to be a finite number from 0"):
        make_model(adversarial_radius=radius)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_a_number_of_steps_out_of_range_is_refused(make_model: MakeModel, steps: float) -> None:
    with pytest.raises(InputError, match="`adversarial_steps` to be an integer of 1"):
        make_model(adversarial_steps=steps)


def test_a_compiled_network_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match=r"`compile` and `adversarial_radius` 0\.5: leave out one"):
        make_model(compile=True, adversarial_radius=0.5)
