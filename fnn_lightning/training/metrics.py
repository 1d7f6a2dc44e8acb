"""Loss and accuracy of training: put aside step by step, handed to torchmetrics now and then."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection

from fnn_lightning.errors import DivergenceError

IGNORE_INDEX = -(2**31)  # a label that the loss would pass over; any other than a digit is an error
MAX_PENDING_STEPS = 100  # as many steps' logits are kept until they reach torchmetrics


class StepOutput(NamedTuple):
    """What one step computes from a batch."""

    loss: Tensor
    """Cross-entropy, mean over the batch, shape `()`."""
    logits: Tensor
    """Shape `(B, 10)`."""
    labels: Tensor
    """`int64` of shape `(B,)`."""


class TrainMetrics(nn.Module):
    """The metrics of training since they were last logged, and the loss since validation.

    Metrics computed in every step would cost more time than the step, and a loss read in every
    step would make the host wait for the device. So detached tensors are put aside. When they
    reach torchmetrics depends on the number of steps alone, and so do the sums to the last bit,
    however often the run was stopped and resumed in between.

    Args:
        metrics: Takes `preds`, `target`, `value` and `weight`.
        since_validation: Takes the same losses, and is reset by validation.
    """

    def __init__(self, metrics: MetricCollection, since_validation: MeanMetric) -> None:
        super().__init__()
        self.metrics = metrics
        self.since_validation = since_validation
        self.pending: list[tuple[int, StepOutput]] = []
        self._losses: list[Tensor] = []

    def add(self, step: int, output: StepOutput) -> None:
        """Put a step's output aside."""
        loss, logits, labels = output
        self.pending.append((step, StepOutput(loss.detach(), logits.detach(), labels)))
        if len(self.pending) == MAX_PENDING_STEPS:
            self.update()

    def update(self) -> None:
        """Hand the steps put aside to torchmetrics, all at once.

        Raises:
            DivergenceError: If the loss of one of them is not finite.
        """
        if not self.pending:
            return
        self._losses.append(self._pending_losses())
        _, logits, labels = zip(*(output for _, output in self.pending), strict=True)
        loss = torch.stack([output.loss for _, output in self.pending])
        batch_sizes = torch.tensor([len(batch) for batch in labels], device=loss.device)
        target = torch.cat(labels)
        if len(target):  # of a few small batches this process may have no share
            self.metrics.update(
                preds=torch.cat(logits), target=target, value=loss, weight=batch_sizes
            )
        self.since_validation.update(loss, batch_sizes)
        self.pending.clear()

    def losses(self) -> Tensor:
        """Return the loss of every batch trained on since the run began, over all processes.

        All processes have to ask for it at the same step.

        Returns:
            `float32` of shape `(batches,)`, on the CPU; a step has one batch, or as many as
            gradients are accumulated over.

        Raises:
            DivergenceError: If one of the losses put aside is not finite.
        """
        losses = [*self._losses, *([self._pending_losses()] if self.pending else [])]
        return torch.cat(losses).cpu() if losses else torch.empty(0)

    def _pending_losses(self) -> Tensor:
        """Take the mean over all processes of each loss put aside, and check it."""
        # not in half precision, whose sums would round
        loss = torch.stack([output.loss for _, output in self.pending]).float()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            sizes = loss.new_tensor([len(output.labels) for _, output in self.pending])
            sums = torch.stack([loss * sizes, sizes])
            torch.distributed.all_reduce(sums)
            loss = sums[0] / sums[1]
        if not loss.isfinite().all():
            first = int((~loss.isfinite()).nonzero()[0])
            step = self.pending[first][0]
            self.pending.clear()
            raise DivergenceError(f"The training loss became {loss[first]:g} at step {step}")
        return loss

    def reset(self) -> None:
        """Forget everything."""
        self.pending.clear()
        self._losses.clear()
        self.metrics.reset()
        self.since_validation.reset()

    def kept(self) -> dict[str, Any]:
        """Return what a checkpoint has to keep of this process, as plain tensors.

        Of the logits put aside it is the digits only, which is all that accuracy asks for.
        """
        return {
            "pending": [
                (step, loss, logits.argmax(1).to(torch.uint8), labels.to(torch.uint8))
                for step, (loss, logits, labels) in self.pending
            ],
            "metrics": {name: states(metric) for name, metric in self.metrics.items()},
            "since_validation": states(self.since_validation),
        }

    def restore(
        self,
        kept: Sequence[dict[str, Any]],
        all_losses: Tensor,
        device: torch.device,
        here: bool = True,
    ) -> None:
        """Go on from what one process kept, or several.

        Args:
            kept: Of each process, what `kept` returned.
            all_losses: What `losses` returned.
            device: Where the metrics are.
            here: Whether that is counted in this process; otherwise in another, and this one has
                no share in it.
        """
        self.reset()
        for parts in zip(*(each["pending"] for each in kept), strict=True):
            steps, losses, digits, labels = zip(*parts, strict=True)
            sizes = torch.tensor([len(each) for each in labels])
            loss = losses[0]
            if len(parts) > 1:
                loss = (torch.stack(losses) * sizes).sum() / sizes.sum()
            logits = F.one_hot(torch.cat(digits).long(), 10).float()
            output = StepOutput(loss, logits, torch.cat(labels).long())
            if not here:
                output = StepOutput(torch.zeros_like(loss), output.logits[:0], output.labels[:0])
            self.pending.append((steps[0], StepOutput(*(each.to(device) for each in output))))
        self._losses.append(all_losses[: len(all_losses) - len(self.pending)].to(device))
        if not here:
            return
        for name, metric in self.metrics.items(copy_state=False):
            set_states(metric, [each["metrics"][name] for each in kept])
        set_states(self.since_validation, [each["since_validation"] for each in kept])


def mark_updated(metrics: MetricCollection) -> None:
    """Let metrics be computed although this process has seen no image; others may have."""
    for metric in metrics.values(copy_state=False):
        # torchmetrics has no public way to say so; without it, it warns, and a test fails
        metric._update_count = metric._update_count or 1


def states(metric: Any) -> dict[str, Tensor]:
    """Return the sums that a metric has gathered; none if it was not updated."""
    return dict(metric.metric_state) if metric.update_called else {}


def set_states(metric: Any, kept: Sequence[dict[str, Tensor]]) -> None:
    """Let a metric, just reset, go on from the sums of one process, or several."""
    kept = [each for each in kept if each]
    if not kept:
        return
    for name, value in metric.metric_state.items():
        setattr(metric, name, sum(each[name].to(value).view_as(value) for each in kept))
    # torchmetrics has no public way to say so, and loading a `state_dict` does not; a test resumes
    # between two lines of the log.
    metric._update_count = 1
