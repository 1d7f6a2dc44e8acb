"""The training loss: weighted by class, and the same however a batch is dealt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.commands.lightning_cli import FNNCLI
from fnn_lightning.commands.main import main
from fnn_lightning.errors import InputError
from fnn_lightning.training.loss import TrainingLoss, balanced_weights
from tests.support import trainer, why_single_steps

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_an_image_weighs_as_its_class_and_the_batch_as_its_size(label_smoothing: float) -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 0, 1])
    loss = TrainingLoss(label_smoothing)
    loss.class_weights = torch.tensor([1.0, 0.0, 3.0])
    log_p = logits.log_softmax(1)
    smooth = label_smoothing / 3
    by_hand = [
        -(1 - label_smoothing) * weight * row[label] - smooth * (row[0] + 3 * row[2])
        for row, label, weight in zip(log_p, labels, [1, 0, 3, 3, 1, 0], strict=True)
    ]
    assert torch.allclose(loss.mean(logits, labels), torch.stack(by_hand).sum() / 6)
    halves = [loss.mean(logits[i::2], labels[i::2]) for i in (0, 1)]
    assert torch.allclose(torch.stack(halves).mean(), loss.mean(logits, labels))


def test_balanced_classes_weigh_the_same_in_all() -> None:
    labels = torch.tensor([0] * 5 + [1] * 2 + [2])
    weights = balanced_weights(labels, ["a", "b", "c"])
    sums = torch.zeros(3).scatter_add(0, labels, weights[labels])
    assert torch.allclose(sums, torch.full((3,), 8 / 3))
    with pytest.raises(InputError, match="none of d: give a number"):
        balanced_weights(labels, ["a", "b", "c", "d"])


def test_a_run_learns_by_the_weights_of_its_training_images(
    tmp_path: Path, make_data: MakeData, make_model: MakeModel
) -> None:
    data, model = make_data(class_weights="balanced", batch_size=50), make_model()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    run = trainer(tmp_path, max_steps=1)
    run.fit(model, data)
    assert why_single_steps(run) is None
    images, labels = next(iter(data.train_dataloader()))
    weights = data.class_weights
    assert weights is not None
    expected = make_model()
    expected.load_state_dict(start)
    loss = F.cross_entropy(expected(images), labels, weights, reduction="sum") / 50
    loss.backward()
    for new, old in zip(model.parameters(), expected.parameters(), strict=True):
        assert old.grad is not None
        assert torch.allclose(new, old - model.lr * old.grad, atol=1e-7)


def test_the_weights_survive_the_command_line(data_dir: str, capsys: Any) -> None:
    weights = [1.0] * 9 + [2.5]
    words = ["--data.data_dir", data_dir, "--trainer.max_epochs", "1"]
    FNNCLI(["fit", *words, "--data.class_weights", str(weights)])
    assert "train loss has class weights, val loss none" in capsys.readouterr().out
    last = "lightning_logs/version_0/checkpoints/last.ckpt"
    cli = FNNCLI(["fit", "--ckpt_path", last, "--trainer.max_epochs", "2"])
    assert torch.equal(cli.datamodule.class_weights, torch.tensor(weights))
    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path", last, "--data.class_weights", "balanced"])
    assert "`data.class_weights` to be [1.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("even", "to be balanced, or a list of a number from 0 for each class, but got 'even'"),
        ([1.0, -1.0], "a number from 0 for each class"),
        ([0.0] * 10, "a number from 0 for each class"),
        ([1.0] * 9, "to be 10 numbers, one for each class, but got 9"),
    ],
)
def test_weights_by_which_nothing_is_learnt_are_refused(
    make_data: MakeData, weights: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_data(class_weights=weights).setup("fit")
