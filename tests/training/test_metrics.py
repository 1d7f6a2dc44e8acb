import warnings

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torch import Tensor
from torch.nn import functional as F

from fnn_lightning.errors import DivergenceError
from fnn_lightning.training.metrics import EvaluationMetrics, SplitMetrics, StepOutput, TrainMetrics

CPU = torch.device("cpu")


def output(digits: list[int], labels: list[int], loss: float) -> StepOutput:
    logits = F.one_hot(torch.tensor(digits, dtype=torch.int64), 10).float()
    return StepOutput(torch.tensor(loss), logits, torch.tensor(labels, dtype=torch.int64))


def floats(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in values.items()}


def test_a_split_weighs_batches_by_their_images_and_counts_them() -> None:
    split = SplitMetrics("val/")
    for digits, labels, loss in (([1, 2, 3], [1, 2, 4], 0.5), ([7], [7], 2.5)):
        _, logits, target = output(digits, labels, loss)
        value = torch.tensor(loss)
        split.update(preds=logits, target=target, value=value, weight=len(labels))
    assert floats(split.compute_and_reset()) == pytest.approx({"val/loss": 1.0, "val/acc": 0.75})
    assert split.counts == (3, 4)


def test_training_is_measured_since_the_last_call() -> None:
    metrics = TrainMetrics()
    metrics.update(output([1, 2], [1, 3], 1.0))
    metrics.update(output([5], [5], 4.0))
    assert floats(metrics.compute_and_reset()) == pytest.approx(
        {"train/loss": 2.0, "train/acc": 2 / 3}
    )
    metrics.update(output([5], [5], 0.25))
    assert floats(metrics.compute_and_reset()) == pytest.approx(
        {"train/loss": 0.25, "train/acc": 1.0}
    )
    assert metrics.losses().tolist() == [1.0, 4.0, 0.25]
    assert metrics.means_since_validation() == pytest.approx(((2 + 4 + 0.25) / 4, 0.75))


def test_means_since_validation_leave_out_what_was_not_logged_before_it() -> None:
    metrics = TrainMetrics()
    metrics.update(output([1, 2], [1, 3], 1.0))
    metrics.end_validation()
    assert metrics.means_since_validation() is None
    metrics.update(output([5], [5], 4.0))
    assert metrics.means_since_validation() == pytest.approx((4.0, 1.0))
    resumed = TrainMetrics()
    resumed.load_state_dict(
        [metrics.state_dict(validated=False)], metrics.losses(), CPU, holds_sums=True
    )
    for each in (metrics, resumed):
        logged = floats(each.compute_and_reset())
        assert logged == pytest.approx({"train/loss": 2.0, "train/acc": 2 / 3})
        each.update(output([7], [8], 1.0))
        assert each.means_since_validation() == pytest.approx((2.5, 0.5))


@pytest.mark.parametrize("flushed", [False, True])
def test_the_sums_of_two_ranks_are_added_on_the_first_of_another_number(flushed: bool) -> None:
    ranks = [TrainMetrics(), TrainMetrics()]
    ranks[0].update(output([1, 2, 3], [1, 2, 4], 0.5))
    ranks[1].update(output([7], [7], 2.5))
    if flushed:
        for each in ranks:
            each.flush()
    states, losses = [each.state_dict(validated=False) for each in ranks], torch.tensor([1.0])
    first, second = TrainMetrics(), TrainMetrics()
    first.load_state_dict(states, losses, CPU, holds_sums=True)
    second.load_state_dict(states, losses, CPU, holds_sums=False)
    assert floats(first.compute_and_reset()) == pytest.approx(
        {"train/loss": 1.0, "train/acc": 0.75}
    )
    assert first.split.counts == (3, 4)
    assert first.losses().tolist() == [1.0]
    second.flush()
    assert not second.split["loss"].update_called


def test_a_loss_that_is_not_finite_is_named_by_its_batch() -> None:
    metrics = TrainMetrics()
    metrics.update(output([1], [1], 1.0))
    metrics.flush()
    metrics.update(output([1], [1], 1.0))
    metrics.update(output([1], [1], float("inf")))
    with pytest.raises(DivergenceError, match=r"training loss became inf in batch 3$"):
        metrics.flush()


def test_nothing_is_empty_until_a_batch_is_added() -> None:
    metrics = TrainMetrics()
    assert metrics.empty
    metrics.update(output([1], [1], 1.0))
    assert not metrics.empty
    metrics.reset()
    assert metrics.empty


@pytest.mark.parametrize("seed", range(3))
def test_every_class_counts_the_same_in_balanced_accuracy_and_f1(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (60,), generator=draw)  # none of class 4 or 5
    labels[:40] = 0
    digits = torch.where(
        torch.rand(60, generator=draw) < 0.6, labels, torch.randint(0, 5, (60,), generator=draw)
    )
    metrics = EvaluationMetrics("val/", 6)
    for part in range(3):
        metrics.update(
            preds=digits[part::3], target=labels[part::3], value=torch.ones(()), weight=20
        )
    values = metrics.compute_and_reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that has no images is predicted
        expected = {
            "val/acc": accuracy_score(labels, digits),
            "val/balanced_acc": balanced_accuracy_score(labels, digits),
            "val/f1": f1_score(labels, digits, average="macro"),
            "val/loss": 1.0,
        }
    assert {name: float(value) for name, value in values.items()} == pytest.approx(expected)
    assert metrics.counts == (int((digits == labels).sum()), 60)
