from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from scipy.stats import multivariate_normal
from torch import Tensor

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.commands.demo_page import answer
from fnn_lightning.commands.main import main
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation import novelty
from fnn_lightning.evaluation.novelty import (
    NoveltyDetector,
    distances,
    features_and_logits,
    fit_gaussian,
    fit_novelty,
    stored_novelty,
)
from fnn_lightning.evaluation.prediction_writer import add_warnings
from fnn_lightning.runs.load import load_trained
from fnn_lightning.training.checkpointing import RunCheckpoint
from tests.support import LAST, assert_same, fit, refused, trainer

CLASSES = 3


def rows(count: int) -> tuple[Tensor, Tensor]:
    """Make images of three classes: noise, with a bright row that tells the class."""
    labels = torch.arange(count) % CLASSES
    images = torch.randint(100, (count, 28, 28), dtype=torch.uint8)
    images[torch.arange(count), 4 + 8 * labels] = 255
    return images, labels


def small_module(**network: Any) -> FNNLitModule:
    torch.manual_seed(0)
    return FNNLitModule(class_names=["top", "middle", "bottom"], **network).train()


def test_the_distance_is_minus_twice_the_log_likelihood_of_the_nearest_class() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, 5, generator=generator)
    components = torch.linalg.qr(torch.randn(2, 5, 2, generator=generator)).Q
    variances = torch.tensor([[4.0, 2.0, 0.5], [3.0, 1.0, 0.1]])
    points = torch.randn(20, 5, generator=generator) * 2
    densities: list[np.ndarray] = []
    for mean, axes, (*along, rest) in zip(means, components, variances, strict=True):
        others = rest * (torch.eye(5) - axes @ axes.T)
        covariance = axes @ torch.diag(torch.stack(along)) @ axes.T + others
        densities.append(multivariate_normal(mean, covariance).logpdf(points))
    constant = 5 * torch.log(torch.tensor(2 * torch.pi)).double()
    nearest = torch.from_numpy(np.max(densities, axis=0))
    expected = -2 * nearest - constant
    found = distances(points, means, components, variances).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_gaussian_has_the_principal_components_and_the_mean_variance_of_the_rest() -> None:
    features = torch.randn(400, 6) @ torch.diag(torch.tensor([5.0, 3.0, 1.0, 1.0, 1.0, 1.0])) + 2
    mean, axes, variances = fit_gaussian(features, 2)
    values, vectors = torch.linalg.eigh(torch.cov(features.T, correction=0))
    torch.testing.assert_close(mean, features.mean(dim=0))
    expected = torch.stack([values[-1], values[-2], values[:-2].mean()])
    torch.testing.assert_close(variances, expected, rtol=1e-3, atol=0)
    aligned = (axes * vectors[:, [-1, -2]]).sum(dim=0).abs()  # whose sign is free
    torch.testing.assert_close(aligned, torch.ones(2), rtol=1e-3, atol=0)


@pytest.mark.parametrize("hidden_dims", [[12], []])
def test_one_in_a_hundred_of_the_classes_is_marked_and_what_is_no_class(
    hidden_dims: list[int],
) -> None:
    module = small_module(hidden_dims=hidden_dims, batch_norm=bool(hidden_dims), dropout=0.5)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    images, labels = rows(1500)
    state = torch.get_rng_state()
    detector = fit_novelty(module, images[:900], labels[:900], images[900:])
    assert torch.equal(torch.get_rng_state(), state)
    assert detector is not None
    assert detector.components.shape[0] == CLASSES
    assert detector.marks(module, images[900:]).sum() == 6  # of 600
    other = 255 - images[:100]
    assert detector.marks(module, other).all()
    assert detector.marks(module, other[:1]).tolist() == [True]
    assert module.training
    assert_same(dict(module.state_dict()), before)
    features, logits = features_and_logits(module, images[:5])
    with torch.no_grad():
        torch.testing.assert_close(logits, module.eval()(images[:5]))
    if not hidden_dims:
        torch.testing.assert_close(features, images[:5].flatten(1) / 255)


def test_there_is_none_of_too_few_images_or_too_many_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = small_module(hidden_dims=[12])
    images, labels = rows(600)
    assert fit_novelty(module, images[:140], labels[:140], images) is None  # 46 of a class
    assert fit_novelty(module, images, labels, images[:299]) is None
    with torch.no_grad():  # finite weights after a far too large step
        next(module.network.parameters()).fill_(3e38)
    assert fit_novelty(module, images, labels, images) is None
    monkeypatch.setattr(novelty, "MAX_NUMBERS", 2 * CLASSES * 12 - 1)
    assert fit_novelty(module, images, labels, images) is None


def detector_of(classes: int = 10, offset: float = 1.0) -> NoveltyDetector:
    """Make a detector that marks every image if the offset is positive, otherwise none."""
    weights = torch.tensor([0.0, 0.0, offset])
    shapes = (classes, 8), (classes, 8, 2), (classes, 3)
    means, components, variances = (torch.ones(shape) for shape in shapes)
    return NoveltyDetector(means, components, variances, weights)


@pytest.mark.parametrize(
    "damage",
    [
        {"means": torch.ones(10, 7)},
        {"means": torch.ones(10, 7), "components": torch.ones(10, 7, 2)},  # of another network
        {"variances": torch.ones(10)},
        {"variances": torch.zeros(10, 3)},
        {"weights": torch.full((3,), torch.nan)},
        {"components": "text"},
        {"more": torch.ones(1)},
    ],
)
def test_a_damaged_detector_is_refused(damage: dict[str, Any]) -> None:
    state = detector_of().state_dict()
    settings = {"hyper_parameters": {"hidden_dims": [8]}}
    assert stored_novelty(settings, "old.ckpt") is None
    found = stored_novelty({**settings, "novelty": state}, "a.ckpt")
    assert found is not None
    assert torch.equal(found.means, state["means"])
    with pytest.raises(InputError, match=r"^Expected a detector of novelty in a\.ckpt, but got"):
        stored_novelty({**settings, "novelty": {**state, **damage}}, "a.ckpt")


def test_a_fit_adds_it_to_its_checkpoints_and_to_nothing_else(
    make_data: Callable[..., MNISTDataModule],
    make_model: Callable[..., FNNLitModule],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(name: str, epochs: int, ckpt_path: str | None = None) -> tuple[Trainer, dict[str, Any]]:
        checkpoint = RunCheckpoint(monitor="val/acc")
        run = trainer(Path(name), callbacks=[checkpoint], max_epochs=epochs)
        model = make_model(dropout=0.2)
        run.fit(model, datamodule=make_data(), ckpt_path=ckpt_path)
        return run, load_trained(checkpoint.last_model_path).checkpoint

    _, without = run("a", 2)
    assert "novelty" not in without  # 300 images are too few
    monkeypatch.setattr(novelty, "MIN_IMAGES", 2)
    monkeypatch.setattr(novelty, "MIN_CALIBRATION", 10)
    before, half = run("b", 1)
    after, resumed = run("c", 2, str(Path(str(before.log_dir), "checkpoints", "last.ckpt")))
    found, earlier = resumed.pop("novelty"), half.pop("novelty")
    assert not torch.equal(found["means"], earlier["means"])
    assert_same(resumed["state_dict"], without["state_dict"])
    assert_same(resumed["optimizer_states"], without["optimizer_states"])
    best = load_trained(Path(str(after.log_dir), "checkpoints", "best.ckpt"))
    detector = stored_novelty(best.checkpoint, "best.ckpt")
    assert detector is not None
    data = make_data()
    data.setup("validate")
    held_out = data.val_dataloader()
    marked = detector.marks(best.module, held_out.images[held_out.indices])
    assert marked.sum() <= 1 + len(marked) // 100


def test_the_mark_is_among_the_warnings_of_predict_and_demo(
    data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = torch.zeros(28, 28, dtype=torch.uint8)
    bar[4:24, 12:15] = 255
    sure = {"probabilities": [0.95, 0.05]}
    for like_mnist, reason in ((True, "no digit"), (False, "none of the classes")):
        records: list[dict[str, Any]] = [dict(sure), dict(sure)]
        add_warnings(records, [bar, bar], like_mnist, [True, False])
        assert [each["warning"] for each in records] == [f"looks like {reason}", ""]

    fit(data_dir)
    trained = load_trained(LAST)
    assert "looks like no digit" not in answer(trained, lambda: bar)
    for offset, expected in ((1.0, True), (-1.0, False)):
        checkpoint = {**trained.checkpoint, "novelty": detector_of(10, offset).state_dict()}
        torch.save(checkpoint, LAST)
        marked = load_trained(LAST)
        assert ("looks like no digit" in answer(marked, lambda: bar)) is expected
        Image.fromarray(255 - bar.numpy()).resize((200, 200)).save("bar.png")
        capsys.readouterr()
        main(["predict", "--ckpt_path", LAST, "--data.images", "bar.png", "--output", "out.csv"])
        assert ("looks like no digit" in Path("out.csv").read_text()) is expected
    capsys.readouterr()
    torch.save({**trained.checkpoint, "novelty": {"means": 3}}, LAST)
    words = ["predict", "--ckpt_path", LAST, "--data.images", "bar.png"]
    assert "Expected a detector of novelty in" in refused(words, capsys)
