"""Shows in TensorBoard what the net has learned, and where it is wrong."""

import io
import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.datamodule import validates_on_test_set
from fnn_lightning.evaluation import plots
from fnn_lightning.evaluation.predictions import (
    PredictionCollector,
    Predictions,
    first_test_dataloader,
)
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.network import FNN, NUM_CLASSES
from fnn_lightning.runs.files import write_atomic
from fnn_lightning.runs.loggers import event_writer

MAX_SHARE = 0.02  # of the time since training began that pictures may take before it ends
FIRST_SECONDS = 0.5  # assumed for the first drawing
LAYOUT = {
    "train and validation": {
        name: ["Multiline", [f"{split}/{name}" for split in ("train", "val", "test")]]
        for name in ("loss", "acc")
    },
    "accuracy of each digit": {
        split: ["Multiline", [f"{split}_acc_of_digit/{digit}" for digit in range(NUM_CLASSES)]]
        for split in ("val", "test")
    },
}


class TensorBoardPlots(PredictionCollector):
    """Shows in TensorBoard what the net has learned, and where it is wrong.

    Every validation and test logs the accuracy of each digit. The pictures are the confusion
    matrix, the 25 most confident mistakes, and the weights of the first layer's first 100 units.
    They are drawn at the end of training and of `test`, and after other validations as long as
    they take at most 2 % of the time. The network's graph, a layout with training and validation
    in one chart and, with augmentation, the first augmented images are logged once. When training
    ends, `loss.png` in the run's folder shows the loss of every batch.

    Args:
        enabled: Whether to do any of this.
        histograms: Whether to add histograms of weights and gradients.
    """

    acts_every_n_steps = 0  # the Trainer itself takes the step before each validation

    def __init__(self, enabled: bool = True, histograms: bool = False) -> None:
        super().__init__()
        self.enabled = enabled
        self.histograms = histograms
        self._pending: tuple[Predictions, int] | None = None
        self._gradients: tuple[int, dict[str, Tensor]] = (0, {})
        self._spent = self._last = self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FNNLitModule)
        self._gradients = (0, {})
        self._pending, self._began = None, time.monotonic()
        self._spent, self._last = 0.0, FIRST_SECONDS
        board = tensorboard(trainer)
        if board is None or trainer.global_step:  # a resumed run has shown it
            return
        board.add_custom_scalars(LAYOUT)
        if validates_on_test_set(trainer.datamodule):  # type: ignore[attr-defined]
            board.add_text("val", "`val/…` is measured on the test set, since `val_size` is 0.")
        event_writer(board).add_event(graph_event(pl_module.network))
        source = trainer.train_dataloader
        if isinstance(source, InMemoryDataLoader) and source.augments:
            images, _ = source.peek()
            board.add_image("train/augmented", plots.image_grid(images), 0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.histograms:  # validation begins with setting them to None
            assert isinstance(pl_module, FNNLitModule)
            named = pl_module.network.named_parameters()
            gradients = {name: each.grad for name, each in named if each.grad is not None}
            self._gradients = (trainer.global_step, gradients)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        predictions = None if trainer.sanity_checking else self.predictions(trainer.val_dataloaders)
        if predictions is None or not predictions.probabilities.isfinite().all():
            return
        assert isinstance(pl_module, FNNLitModule)
        log_digits(trainer, predictions, "val", pl_module.step_count)
        self._pending = predictions, pl_module.step_count
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
        predictions = self.predictions(first_test_dataloader(trainer))
        if predictions is not None and predictions.probabilities.isfinite().all():
            assert isinstance(pl_module, FNNLitModule)
            log_digits(trainer, predictions, "test", pl_module.step_count)
            self._draw(trainer, pl_module, predictions, "test", pl_module.step_count)

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
        board.add_figure(
            f"{split}/confusion", plots.confusion_figure(predictions), step, close=False
        )
        board.add_figure(f"{split}/mistakes", plots.mistakes_figure(predictions), step, close=False)
        if split == "val" and module.step_count == step:  # the weights are still the same
            first = next(each for each in module.network.layers if isinstance(each, nn.Linear))
            board.add_image("first_layer", plots.first_layer_grid(first.weight), step)
            if self.histograms:
                for name, parameter in module.network.named_parameters():
                    board.add_histogram(f"weights/{name}", parameter, step)
                gradients_step, gradients = self._gradients
                for name, gradient in gradients.items() if gradients_step == step else ():
                    board.add_histogram(f"gradients/{name}", gradient, step)


@rank_zero_only
def log_digits(trainer: Trainer, predictions: Predictions, split: str, step: int) -> None:
    """Log the accuracy of each digit that has images."""
    digits, labels = predictions.digits, predictions.labels
    right = labels[digits == labels].bincount(minlength=NUM_CLASSES)
    recall = (right / labels.bincount(minlength=NUM_CLASSES)).tolist()
    # not val/acc_of_…: TensorBoard would show ten charts more in the group of val/acc
    shares = {
        f"{split}_acc_of_digit/{digit}": share
        for digit, share in enumerate(recall)
        if not math.isnan(share)
    }
    for logger in trainer.loggers:
        logger.log_metrics(shares, step)


def tensorboard(trainer: Trainer) -> Any:
    """Return the TensorBoard writer; None on other ranks and with other loggers."""
    loggers = [each for each in trainer.loggers if isinstance(each, TensorBoardLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None


def graph_event(network: FNN) -> Any:
    """Describe a network for TensorBoard's tab Graphs, one node per layer.

    PyTorch's own `SummaryWriter.add_graph` uses `torch.jit.trace`, which is deprecated and does not
    support Python 3.14.

    Returns:
        A `tensorboard.compat.proto.event_pb2.Event`.
    """
    # slow to import, and not needed before training
    from tensorboard.compat.proto.attr_value_pb2 import AttrValue
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    graph = GraphDef()
    graph.versions.producer = 22  # of the format; TensorBoard asks for it
    graph.node.add(name="pixels", op="Placeholder")
    scale = graph.node.add(name="scale", op="Scale", input=["pixels"])
    scale.attr["pixel_mean"].CopyFrom(AttrValue(f=network.pixel_mean))
    scale.attr["pixel_std"].CopyFrom(AttrValue(f=network.pixel_std))
    for number, layer in enumerate(network.layers):
        kind = type(layer).__name__
        before = graph.node[-1].name
        node = graph.node.add(name=f"{number}_{kind}", op=kind, input=[before])
        if layer.extra_repr():
            node.attr["arguments"].CopyFrom(AttrValue(s=layer.extra_repr().encode()))
    graph.node.add(name="logits", op="Identity", input=[graph.node[-1].name])
    return Event(graph_def=graph.SerializeToString())
