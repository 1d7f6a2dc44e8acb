import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.errors import DivergenceError, InputError
from fnn_lightning.evaluation.evaluate import Evaluation, evaluate
from fnn_lightning.lit_module import FNNLitModule
from tests.support import trainer

MakeModel = Callable[..., FNNLitModule]
MakeData = Callable[..., MNISTDataModule]


def noise(count: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 28, 28), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 10, (count,), generator=generator)


def test_it_agrees_with_the_trainer(
    make_model: MakeModel, make_data: MakeData, tmp_path: Any
) -> None:
    model, data, run = make_model(), make_data(val_size=50), trainer(tmp_path)
    run.fit(model, datamodule=data)
    results = {"test": run.test(model, datamodule=data, verbose=False)[0]["test/acc"]}
    results["val"] = run.validate(model, datamodule=data, verbose=False)[0]["val/acc"]
    for split, size in (("test", 100), ("val", 50)):
        result = evaluate(model, data, split)  # type: ignore[arg-type]
        assert result.accuracy == pytest.approx(results[split])
        assert len(result.labels) == size
    assert len(evaluate(model, data, "train").labels) == 250
    # a data module that was never set up, and a dataloader of its own
    assert evaluate(model, make_data()).accuracy == pytest.approx(results["test"])
    assert evaluate(model, data.test_dataloader()).accuracy == pytest.approx(results["test"])


def test_every_form_of_the_data_gives_the_same_result(make_model: MakeModel) -> None:
    model, (images, labels) = make_model(), noise()
    expected = evaluate(model, (images, labels))
    for data in (
        [images.numpy(), labels.numpy().astype(np.uint8)],
        (images.float().flatten(1), labels.tolist()),
        DataLoader(TensorDataset(images[:, None].float(), labels), batch_size=7),
        iter([(images[:30], labels[:30]), (images[30:], labels[30:])]),
        [(images[:30], labels[:30]), (images[30:], labels[30:])],
        ([list(images[:2]), labels[:2].tolist()], [images[2:], labels[2:]]),
    ):
        result = evaluate(model, data)
        assert torch.equal(result.classes, expected.classes)
        assert torch.equal(result.labels, labels)
        assert result.image(3).tolist() == images[3].tolist()
    two = evaluate(model, (list(images[:2]), labels[:2].tolist()))
    assert torch.equal(two.classes, expected.classes[:2])


def test_results_equal_those_computed_by_hand(make_model: MakeModel) -> None:
    images, labels = noise()
    result = evaluate(make_model(), (images, labels))
    digits = make_model().predict(images).classes
    right = int((digits == labels).sum())
    assert result.accuracy == result.metrics["accuracy"] == right / 50
    confusion = torch.zeros(10, 10, dtype=torch.int64)
    for label, digit in zip(labels, digits, strict=True):
        confusion[label, digit] += 1
    assert torch.equal(result.confusion, confusion)
    assert result.confusion.dtype == torch.int64
    mistakes = result.mistakes(50)
    assert len(mistakes) == 50 - right
    confidences = [each.confidence for each in mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert result.mistakes(1) == mistakes[:1]
    assert result.mistakes(0) == []
    with pytest.raises(InputError, match="`n` to be 0 or more, but got -1"):
        result.mistakes(-1)
    first = mistakes[0]
    assert torch.equal(first.image, images[first.index])
    assert first.label == labels[first.index]
    assert first.predicted == digits[first.index]
    assert first.label != first.predicted
    assert repr(result) == f"Evaluation: {right} / 50 correct ({2 * right}.00 %)"


def test_a_notebook_shows_each_figure_once_and_without_pyplot(make_model: MakeModel) -> None:
    result = evaluate(make_model(), noise())
    figures: list[Any] = [result.plot_confusion(), result.plot_mistakes(), result.plot_mistakes(2)]
    for figure in figures:
        assert figure._repr_png_().startswith(b"\x89PNG")
        assert figure.canvas.manager is None  # pyplot's figures have one
    with pytest.raises(InputError, match="`columns` to be 1 or more, but got 0"):
        result.plot_mistakes(0)
    without = Evaluation(*noise(10), torch.arange(10), torch.eye(10))
    assert "no mistakes" in [text.get_text() for text in without.plot_mistakes().axes[0].texts]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.zeros(2, 28, 28), torch.zeros(3, dtype=torch.int64)), "2 labels, integers of "),
        ((torch.zeros(2, 28, 28), torch.zeros(2)), "but got torch.float32 of shape (2,)"),
        ((torch.zeros(2, 28, 28), [3, 10]), "labels from 0 to 9, but got 3 to 10"),
        ((torch.zeros(2, 28, 28), [-1, 3]), "labels from 0 to 9, but got -1 to 3"),
        ((torch.zeros(2, 28, 28), ["a", "b"]), "2 labels, integers of shape (2,), but got ['a', "),
        ((torch.zeros(2, 28, 28), np.array(["a", "b"])), "2 labels, integers of shape (2,), but "),
        ((torch.zeros(2, 28, 28), [2**70, 1]), "2 labels, integers of shape (2,), but got [11"),
        ((torch.rand(2, 28, 28), [0, 1]), "pixels from 0 to 255"),
        ([], "at least one image, but got an empty dataloader"),
        ([torch.zeros(2, 28, 28)], "batches (images, labels), but got tensor("),
        ("data", "an MNISTDataModule, a dataloader or (images, labels), but got 'data'"),
        (None, "an MNISTDataModule, a dataloader or (images, labels), but got None"),
    ],
)
def test_other_data_is_refused(make_model: MakeModel, data: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        evaluate(make_model(), data)


def test_a_diverged_network_is_refused(make_model: MakeModel) -> None:
    model, (images, labels) = make_model(), noise(3)
    torch.nn.init.constant_(next(model.parameters()), torch.nan)
    message = "finite outputs of the network, but got infinity or NaN for {} of {} images"
    with pytest.raises(DivergenceError, match=message.format(3, 3)):
        evaluate(model, (images, labels))
    with pytest.raises(DivergenceError, match=message.format(1, 1)):
        model.predict(images[0])


def test_another_model_or_split_is_refused(make_model: MakeModel) -> None:
    model: Any = "last.ckpt"
    with pytest.raises(InputError, match=r"an FNNLitModule, but got 'last.ckpt': load one by"):
        evaluate(model, noise())
    split: Any = "validation"
    with pytest.raises(InputError, match="train, val or test, but got 'validation'"):
        evaluate(make_model(), noise(), split)
