"""Shows in TensorBoard what the net has learned, and where it is wrong."""

import io
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.datamodule import validates_on_test_set
from fnn_lightning.evaluation import plots
from fnn_lightning.evaluation.class_names import tag_names
from fnn_lightning.evaluation.network_summary import add_projector, graph_event, layers_table
from fnn_lightning.evaluation.predictions import (
    PredictionCollector,
    Predictions,
    first_test_dataloader,
    seen,
)
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.runs.files import write_atomic
from fnn_lightning.runs.loggers import BEHIND, event_writer, read_curves, tag_metadata

MAX_SHARE = 0.02  # of the time since training began that pictures may take before it ends
FIRST_SECONDS = 0.5  # assumed for the first drawing
EITHER = f"({BEHIND})?"  # charts name tags by regular expressions; a logger may have plain ones
MAX_CURVES = 100  # classes whose accuracies are logged; more charts would bury the others
PICTURES = {
    "confusion": "Images of each class (rows) by the class they were taken for (columns).",
    "mistakes": "The mistakes of highest confidence: the class, what it was taken for, and how "
    "confident the net was.",
    "acc_of_class": "Share of the images of each class classified correctly, over the steps.",
    "augmented": "The first batch of training, as augmentation distorts it.",
    "first_layer": "Weights of the first layer's first 100 units, as 28×28 images. Grey is 0; "
    "white or black is the unit's largest weight by absolute value.",
}
"""What TensorBoard says of a picture."""


class TensorBoardPlots(PredictionCollector):
    """Shows in TensorBoard what the net has learned, and where it is wrong.

    Every validation and test logs the accuracy of each class, of up to 100. The pictures are the
    confusion matrix of up to 50 classes, the 25 most confident mistakes, the accuracy of each of up
    to 20 classes over the steps, and the weights of the first layer's first 100 units. They are
    drawn at the end of training and of
    `test`, and after other validations as long as they take at most 2 % of the time. The network's
    graph, a table of its layers, a layout with training and validation in one chart and, with
    augmentation, the first augmented images are logged once. When training ends, `loss.png` in the
    run's folder shows the loss of every batch.

    Args:
        enabled: Whether to do any of this.
        histograms: Whether to add histograms of weights and gradients.
        projector: Whether `test` adds the activations of the last hidden layer on the test images,
            for TensorBoard's projector.
    """

    acts_every_n_steps = 0  # the Trainer itself takes the step before each validation

    def __init__(
        self, enabled: bool = True, histograms: bool = False, projector: bool = False
    ) -> None:
        super().__init__()
        self.enabled = enabled
        self.histograms = histograms
        self.projector = projector
        self._class_curves: dict[int, list[tuple[int, float]]] = {}
        self._pending: tuple[Predictions, int] | None = None
        self._gradients: tuple[int, dict[str, Tensor]] = (0, {})
        self._spent = self._last = self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FNNLitModule)
        self._gradients = (0, {})
        self._pending, self._began = None, time.monotonic()
        self._spent, self._last = 0.0, FIRST_SECONDS
        self._class_curves = {}
        board = tensorboard(trainer)
        if board is None:
            return
        if trainer.global_step:  # a resumed run has shown the rest
            self._class_curves = read_class_curves(
                Path(board.log_dir), trainer.global_step, pl_module.class_names
            )
            return
        board.add_custom_scalars(layout(pl_module.class_names))
        board.add_text("layers", layers_table(pl_module.network), 0)
        notes = notes_on_curves(trainer, pl_module)
        if notes:
            board.add_text("notes", notes, 0)
        event_writer(board).add_event(graph_event(pl_module.network))
        source = trainer.train_dataloader
        if isinstance(source, InMemoryDataLoader) and source.augments:
            images, _ = source.peek()
            add_picture(board, "augmented", plots.image_grid(seen(images, pl_module.framing)), 0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.histograms:  # validation begins with setting them to None
            assert isinstance(pl_module, FNNLitModule)
            named = pl_module.network.named_parameters()
            gradients = {name: each.grad for name, each in named if each.grad is not None}
            self._gradients = (trainer.global_step, gradients)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, FNNLitModule)
        predictions = self.predictions(trainer.val_dataloaders, pl_module)
        if predictions is None or not predictions.probabilities.isfinite().all():
            return
        step = pl_module.step_count
        shares = class_accuracies(predictions)
        log_classes(trainer, shares, pl_module.class_names, "val", step)
        for k, share in shares.items():
            self._class_curves.setdefault(k, []).append((step, share))
        self._pending = predictions, step
        elapsed = time.monotonic() - self._began
        if trainer.state.fn != "fit" or self._spent + self._last <= MAX_SHARE * elapsed:
            self._draw_pending(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FNNLitModule)
        self._draw_pending(trainer, pl_module)
        self.save_losses(trainer, pl_module)

    def save_losses(self, trainer: Trainer, module: FNNLitModule) -> None:
        """Draw the loss of every batch into `loss.png` of the run's folder."""
        losses = module.train_metrics.losses()
        folder = trainer.log_dir if trainer.loggers else None
        fast_dev_run = trainer.fast_dev_run  # type: ignore[attr-defined]
        if trainer.is_global_zero and folder and len(losses) and not fast_dev_run:
            picture = io.BytesIO()
            plots.loss_figure(losses, trainer.global_step).savefig(picture)
            write_atomic(Path(folder) / "loss.png", picture.getbuffer())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FNNLitModule)
        predictions = self.predictions(first_test_dataloader(trainer), pl_module)
        if predictions is not None and predictions.probabilities.isfinite().all():
            step = pl_module.step_count
            shares = class_accuracies(predictions)
            log_classes(trainer, shares, pl_module.class_names, "test", step)
            self._draw(trainer, pl_module, predictions, "test", step)
            board = tensorboard(trainer)
            if self.projector and board is not None:
                add_projector(board, pl_module.network, predictions, step)

    def _draw_pending(self, trainer: Trainer, module: FNNLitModule) -> None:
        """Draw the last validation, unless that was done."""
        if self._pending is None:
            return
        began = time.monotonic()
        predictions, step = self._pending
        self._pending = None
        self._draw(trainer, module, predictions, "val", step)
        self._last = time.monotonic() - began
        self._spent += self._last

    def _draw(
        self,
        trainer: Trainer,
        module: FNNLitModule,
        predictions: Predictions,
        split: str,
        step: int,
    ) -> None:
        board = tensorboard(trainer)
        if board is None:
            return
        figures = {}
        if len(module.class_names) <= plots.MAX_NAMES:
            figures["confusion"] = plots.confusion_figure(predictions)
        figures["mistakes"] = plots.mistakes_figure(predictions)
        drawable = len(module.class_names) <= plots.MAX_COLOURS
        if drawable and split == "val" and trainer.state.fn == "fit":
            figures["acc_of_class"] = plots.class_curves_figure(
                self._class_curves, module.class_names
            )
        for name, figure in figures.items():
            add_picture(board, f"{split}_{name}", plots.rasterize(figure), step)
        if split == "val" and module.step_count == step:  # the weights are still the same
            first = next(each for each in module.network.layers if isinstance(each, nn.Linear))
            add_picture(board, "first_layer", plots.first_layer_grid(first.weight), step)
            if self.histograms:
                for name, parameter in module.network.named_parameters():
                    board.add_histogram(f"{BEHIND}weights/{name}", parameter, step)
                gradients_step, gradients = self._gradients
                for name, gradient in gradients.items() if gradients_step == step else ():
                    board.add_histogram(f"{BEHIND}gradients/{name}", gradient, step)


def layout(class_names: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Lay out TensorBoard's Custom Scalars: curves put together in one chart."""
    splits = ("train", "val", "test")
    charts: dict[str, dict[str, list[Any]]] = {
        "train and validation": {
            name: ["Multiline", [f"{EITHER}{split}/{name}" for split in splits]]
            for name in ("loss", "acc")
        }
    }
    if len(class_names) <= MAX_CURVES:
        # the whole tag: one name can begin with another
        tags = [f"{re.escape(tag)}$" for tag in tag_names(class_names)]
        charts["accuracy of each class"] = {
            split: ["Multiline", [f"{EITHER}{split}_acc_of_class/{tag}" for tag in tags]]
            for split in ("val", "test")
        }
    return charts


def add_picture(board: Any, name: str, pixels: Tensor, step: int) -> None:
    """Show a picture behind the curves, with its description.

    Args:
        board: A `SummaryWriter`.
        name: A key of `PICTURES`, after `val_` or `test_` if there is one of each split.
        pixels: Values from 0 to 1, shape `(3, H, W)`.
        step: Number of optimiser steps.
    """
    # slow to import; `SummaryWriter.add_image` takes no description
    from torch.utils.tensorboard.summary import image

    summary = image(f"{BEHIND}pictures/{name}", pixels, dataformats="CHW")  # type: ignore[no-untyped-call]
    description = PICTURES[name.removeprefix("val_").removeprefix("test_")]
    summary.value[0].metadata.CopyFrom(tag_metadata(name, description, "images"))
    event_writer(board).add_summary(summary, step)


def notes_on_curves(trainer: Trainer, module: FNNLitModule) -> str:
    """Say what the curves of this run do not tell by themselves, as Markdown; may be empty."""
    notes = []
    if validates_on_test_set(trainer.datamodule):  # type: ignore[attr-defined]
        notes.append("- `val/…` is measured on the test set, since `val_size` is 0.")
    if smoothing := module.training_loss.label_smoothing:
        notes.append(
            "- `train/loss` is not comparable with `val/loss`: it is that of smoothed targets "
            f"(`label_smoothing` is {smoothing:g}), which no net brings to 0."
        )
    return "\n".join(notes)


def read_class_curves(
    run: Path, last_step: int, class_names: Sequence[str]
) -> dict[int, list[tuple[int, float]]]:
    """Read the accuracy of each class in validation that a run logged up to a step."""
    curves = read_curves(run)
    names = {k: f"val_acc_of_class/{tag}" for k, tag in enumerate(tag_names(class_names))}
    return {
        k: [(step, share) for step, share in curves[name] if step <= last_step]
        for k, name in names.items()
        if name in curves
    }


def class_accuracies(predictions: Predictions) -> dict[int, float]:
    """Compute the accuracy of each class that has images, by its index."""
    labels, count = predictions.labels, len(predictions.class_names)
    right = labels[predictions.is_correct].bincount(minlength=count)
    recall = (right / labels.bincount(minlength=count)).tolist()
    return {k: share for k, share in enumerate(recall) if not math.isnan(share)}


@rank_zero_only
def log_classes(
    trainer: Trainer, shares: dict[int, float], class_names: Sequence[str], split: str, step: int
) -> None:
    """Log the accuracy of each class, unless there are too many to look at."""
    if len(class_names) > MAX_CURVES:
        return
    # not val/acc_of_…: TensorBoard would show ten charts more in the group of val/acc
    tags = tag_names(class_names)
    values = {f"{split}_acc_of_class/{tags[k]}": share for k, share in shares.items()}
    for logger in trainer.loggers:
        logger.log_metrics(values, step)


def tensorboard(trainer: Trainer) -> Any:
    """Return the TensorBoard writer; None on other ranks and with other loggers."""
    loggers = [each for each in trainer.loggers if isinstance(each, TensorBoardLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None
