"""Loss and accuracy: of a whole split, and of training since they were last logged."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassStatScores

from fnn_lightning.errors import DivergenceError
from fnn_lightning.network import NUM_CLASSES

IGNORE_INDEX = -(2**31)  # no label has it: cross_entropy refuses wrong labels instead of skipping
MAX_PENDING_BATCHES = 100  # their logits stay in memory until torchmetrics gets them


class StepOutput(NamedTuple):
    """What one step computes from a batch."""

    loss: Tensor
    """Cross-entropy, mean over the batch, shape `()`."""
    logits: Tensor
    """Shape `(B, classes)`."""
    labels: Tensor
    """`int64` of shape `(B,)`."""


class SplitMetrics(MetricCollection):
    """Loss and accuracy of a split, over all ranks.

    A metric added here has to be a scalar, with a state of sums, and computed from the predicted
    classes: checkpoints keep no more of the batches that training has not logged yet.

    `update` takes `preds`, logits of shape `(B, classes)` or classes of shape `(B,)`, `target`,
    labels of shape `(B,)`, `value`, a mean loss, and `weight`, the number of images it is the mean
    of.

    Args:
        prefix: Put before `loss` and `acc`, such as `val/`.
        num_classes: Number of classes.
    """

    def __init__(self, prefix: str, num_classes: int = NUM_CLASSES) -> None:
        # The loss has refused labels that are no class before the metrics see them.
        super().__init__(
            {
                "loss": mean_metric(),
                "acc": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
                "stats": MulticlassStatScores(num_classes, average="micro", validate_args=False),
            },
            prefix=prefix,
        )
        self.counts: tuple[int, int] | None = None
        """Images classified correctly and images in all, as last measured; None before that."""

    def means(self) -> dict[str, Tensor]:
        """Compute loss and accuracy over all ranks, and keep the counts.

        Returns:
            `{prefix}loss` and `{prefix}acc`, each of shape `()`.
        """
        mark_updated(self)
        values: dict[str, Tensor] = self.compute()
        correct, _, _, _, total = values.pop(f"{self.prefix}stats").tolist()
        self.counts = (correct, total)
        return values

    def compute_and_reset(self) -> dict[str, Tensor]:
        """Return `means`, and reset."""
        values = self.means()
        self.reset()
        return values


class EvaluationMetrics(SplitMetrics):
    """Loss, accuracy, and two scores in which every class counts the same, over all ranks.

    `balanced_acc` is the mean over the classes that have images of the share of them classified
    correctly; `f1`, macro F1, the mean of each class's F1, the harmonic mean of precision and
    recall, over the classes that have images or are predicted. Both as scikit-learn has them.

    Args:
        prefix: Put before the names, such as `val/`.
        num_classes: Number of classes.
    """

    def __init__(self, prefix: str, num_classes: int = NUM_CLASSES) -> None:
        super().__init__(prefix, num_classes)
        self["stats"] = MulticlassStatScores(num_classes, average=None, validate_args=False)

    def means(self) -> dict[str, Tensor]:
        """Compute loss and scores over all ranks, and keep the counts.

        Returns:
            `{prefix}loss`, `{prefix}acc`, `{prefix}balanced_acc` and `{prefix}f1`, each of shape
            `()`.
        """
        mark_updated(self)
        values: dict[str, Tensor] = self.compute()
        # of each class, with the predictions of it that are wrong, and its images that are missed
        correct, wrong, _, missed, images = values.pop(f"{self.prefix}stats").T
        self.counts = (int(correct.sum()), int(images.sum()))
        recall = (correct / images)[images > 0]
        f1 = (2 * correct / (2 * correct + wrong + missed))[images + wrong > 0]
        scores = {"balanced_acc": recall.mean(), "f1": f1.mean()}
        return values | {f"{self.prefix}{name}": score for name, score in scores.items()}


class TrainMetrics:
    """Loss and accuracy of training since they were last logged, and since validation.

    Computing metrics in every step would take longer than the step, and reading a loss in every
    step would make the host wait for the device. So detached tensors are kept, and handed to
    torchmetrics many at a time. When that happens depends on the number of batches alone. So do
    the sums, to the last bit, however often the run was interrupted and resumed.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int = NUM_CLASSES) -> None:
        self.num_classes = num_classes
        self.split = SplitMetrics("train/", num_classes)
        """Loss and accuracy since they were last logged."""
        self._offset = torch.zeros(3, dtype=torch.float64)
        """What to add to `_sums`, those not logged yet, to get those since the last validation."""
        self._pending: list[StepOutput] = []
        self._losses: list[Tensor] = []
        self._batches = 0

    def to(self, device: torch.device) -> None:
        """Move the sums to a device."""
        self.split.to(device)

    @property
    def empty(self) -> bool:
        """Whether the run has measured no batch, as with a `training_step` that never adds one."""
        return self._batches == 0

    def update(self, output: StepOutput) -> None:
        """Add a batch."""
        loss, logits, labels = output
        self._pending.append(StepOutput(loss.detach(), logits.detach(), labels))
        self._batches += 1
        if len(self._pending) == MAX_PENDING_BATCHES:
            self.flush()

    def flush(self) -> None:
        """Hand the pending batches to torchmetrics, all at once.

        Raises:
            DivergenceError: If the loss of one of them is not finite.
        """
        if not self._pending:
            return
        self._losses.append(self._pending_losses())
        _, logits, labels = zip(*self._pending, strict=True)
        loss = torch.stack([output.loss for output in self._pending])
        batch_sizes = torch.tensor([len(batch) for batch in labels], device=loss.device)
        target = torch.cat(labels)
        if len(target):  # with small batches a rank may have no images
            classes = torch.cat(logits).argmax(dim=1)
            self.split.update(preds=classes, target=target, value=loss, weight=batch_sizes)
        self._pending.clear()

    def compute_and_reset(self) -> dict[str, Tensor]:
        """Compute `train/loss` and `train/acc` since the last call, over all ranks."""
        means = self._means()
        self._offset = self._offset + self._sums(means)
        self.split.reset()
        return means

    def means_since_validation(self) -> tuple[float, float] | None:
        """Compute loss and accuracy since the last validation, over all ranks.

        Returns:
            None if no batch was measured since then.
        """
        loss, correct, images = (self._offset + self._sums(self._means())).tolist()
        return (loss / images, correct / images) if images else None

    def end_validation(self) -> None:
        """Let `means_since_validation` measure from here."""
        self._offset = -self._sums(self._means())

    def _means(self) -> dict[str, Tensor]:
        """Compute the means since they were last logged, over all ranks; none in an empty run."""
        self.flush()
        return {} if self.empty else self.split.means()

    def _sums(self, means: dict[str, Tensor]) -> Tensor:
        """Compute the sums that belong to the means, over all ranks.

        Returns:
            Sum of the loss over the images, number of correct ones and of all: `float64` of shape
            `(3,)`, on the CPU.
        """
        correct, images = self.split.counts or (0, 0)
        loss = means["train/loss"].item() * images if images else 0
        return torch.tensor([loss, correct, images], dtype=torch.float64)

    def losses(self) -> Tensor:
        """Return the loss of every batch trained on since the run began, over all ranks.

        A collective operation: all ranks have to call it at the same step.

        Returns:
            `float32` of shape `(batches,)`, on the CPU. With gradient accumulation a step has
            several batches.

        Raises:
            DivergenceError: If a pending loss is not finite.
        """
        losses = [*self._losses, *([self._pending_losses()] if self._pending else [])]
        return torch.cat(losses).cpu() if losses else torch.empty(0)

    def _pending_losses(self) -> Tensor:
        """Take the mean over all ranks of each pending loss, and check that it is finite."""
        # not in half precision, whose sums would round
        loss = torch.stack([output.loss for output in self._pending]).float()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            sizes = loss.new_tensor([len(output.labels) for output in self._pending])
            sums = torch.stack([loss * sizes, sizes])
            torch.distributed.all_reduce(sums)
            loss = sums[0] / sums[1]
        if not loss.isfinite().all():
            first = int((~loss.isfinite()).nonzero()[0])
            batch = self._batches - len(self._pending) + first + 1
            self._pending.clear()
            raise DivergenceError(f"The training loss became {loss[first]:g} in batch {batch:,}")
        return loss

    def reset(self) -> None:
        """Forget everything."""
        self._pending.clear()
        self._losses.clear()
        self._batches = 0
        self.split.reset()
        self.split.counts = None
        self._offset = torch.zeros(3, dtype=torch.float64)

    def state_dict(self, validated: bool) -> dict[str, Any]:
        """Return this rank's sums and pending batches, as plain tensors.

        Of the pending logits it keeps the predicted classes, which is all that accuracy needs.

        Args:
            validated: Whether a validation has just ended, but `end_validation` may be yet to come.
        """
        return {
            "pending": [
                (loss, logits.argmax(1).to(torch.int16), labels.to(torch.int16))
                for loss, logits, labels in self._pending
            ],
            "split": {name: metric_state(metric) for name, metric in self.split.items()},
            "offset": -self._sums(self._means()) if validated else self._offset.clone(),
        }

    def load_state_dict(
        self,
        states: Sequence[dict[str, Any]],
        losses: Tensor,
        device: torch.device,
        holds_sums: bool,
    ) -> None:
        """Continue from what `state_dict` returned on each rank.

        Args:
            states: This rank's own, or those of all ranks, to be added up.
            losses: What `losses` returned.
            device: Where the metrics are.
            holds_sums: Whether this rank holds the sums. If not, another one does, and this rank
                continues with empty ones.
        """
        self.reset()
        for parts in zip(*(state["pending"] for state in states), strict=True):
            batch_losses, classes, labels = zip(*parts, strict=True)
            sizes = torch.tensor([len(each) for each in labels])
            loss = batch_losses[0]
            if len(parts) > 1:
                loss = (torch.stack(batch_losses) * sizes).sum() / sizes.sum()
            logits = F.one_hot(torch.cat(classes).long(), self.num_classes).float()
            output = StepOutput(loss, logits, torch.cat(labels).long())
            if not holds_sums:
                output = StepOutput(torch.zeros_like(loss), output.logits[:0], output.labels[:0])
            self._pending.append(StepOutput(*(each.to(device) for each in output)))
        self._batches = len(losses)
        self._losses.append(losses[: len(losses) - len(self._pending)].to(device))
        # over all ranks, so the same on each; an earlier version kept none, and then only the first
        # row of the terminal counts from the last line of the log
        offset = states[0].get("offset", torch.zeros(3, dtype=torch.float64))
        self._offset = offset.view(3)
        if holds_sums:
            for name, metric in self.split.items(copy_state=False):
                load_metric_state(metric, [state["split"][name] for state in states])


def mean_metric() -> MeanMetric:
    """Make a weighted mean that is NaN if one of its values is."""
    # "disable" would let a NaN through too, but drops the weights (torchmetrics issue 3434).
    return MeanMetric(nan_strategy=math.nan)


# torchmetrics has no public way to say that a metric was updated. A test resumes between two lines
# of the log, and one runs with ranks that have no images: without `_update_count` they fail.


def mark_updated(metrics: MetricCollection) -> None:
    """Let metrics be computed on a rank that has seen no image, since others may have."""
    for metric in metrics.values(copy_state=False):
        metric._update_count = metric._update_count or 1


def metric_state(metric: Any) -> dict[str, Tensor]:
    """Return the sums of a metric; none if it was not updated."""
    return dict(metric.metric_state) if metric.update_called else {}


def load_metric_state(metric: Any, states: Sequence[dict[str, Tensor]]) -> None:
    """Let a metric that was just reset continue from the sums of one rank, or of several."""
    states = [state for state in states if state]
    if not states:
        return
    for name, value in metric.metric_state.items():
        setattr(metric, name, sum(state[name].to(value).view_as(value) for state in states))
    metric._update_count = 1
