"""What `fit` and `test` write into a run's folder of what the net gets right and wrong."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.evaluation.measures import check_finite, measure
from fnn_lightning.evaluation.page import GENERATOR, Tested, make_page
from fnn_lightning.evaluation.predictions import (
    PredictionCollector,
    Predictions,
    first_test_dataloader,
)
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.runs.files import display_path, relative_path, write_atomic
from fnn_lightning.runs.load import TrainedNetwork, load_trained
from fnn_lightning.runs.run_folder import read_metrics, write_metrics
from fnn_lightning.training.console import heading

REPORT, PREDICTIONS = "report.html", "predictions.csv"


class Report(PredictionCollector):
    """Writes the report of a test: a page, a table of the predictions, and the results as JSON.

    The page takes the place of the one that `fit` wrote.

    Args:
        folder: Folder to write into.
        run: Folder of the run that the checkpoint belongs to, whose training the page shows; None
            if the checkpoint stands alone.
        ckpt_path: The tested checkpoint.
        checkpoint: Content of the tested checkpoint.

    Raises:
        DivergenceError: When testing ends, if a probability is not finite.
    """

    def __init__(
        self, folder: Path, run: Path | None, ckpt_path: Path, checkpoint: dict[str, Any]
    ) -> None:
        super().__init__()
        self.folder = folder
        self.run = run
        self.written = False
        self.ckpt_path = ckpt_path
        self.checkpoint = checkpoint

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FNNLitModule)
        predictions = self.predictions(first_test_dataloader(trainer), pl_module)
        if predictions is None or not trainer.is_global_zero:
            return
        check_finite(predictions)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        results = {
            **measure(predictions),
            "dataset": getattr(datamodule, "dataset", None),
            "checkpoint": Path(relative_path(self.ckpt_path, self.folder)).as_posix(),
            "step": pl_module.step_count,
        }
        if "test/train_set_" in pl_module.counts:
            correct, total = pl_module.counts["test/train_set_"]
            results["train_set"] = {"correct": correct, "total": total}
        in_run = self.run is not None and self.folder.is_dir() and self.run.samefile(self.folder)
        # first, as the mark by which the folder is known as one of a report
        write_metrics(self.folder, "test", results, keep_other_stage=in_run)
        write_atomic(self.folder / PREDICTIONS, predictions_csv(predictions))
        tested = Tested(self.run, self.ckpt_path, self.checkpoint, pl_module)
        made_with = read_metrics(self.folder)["test"]["made_with"]
        page = make_page(tested, predictions, results, "test", made_with)
        write_atomic(self.folder / REPORT, page.encode())
        self.written = True
        print(f"{heading('report')}{display_path(self.folder / REPORT)}")


def remove_report(run: Path) -> None:
    """Remove the page and the predictions of a run that has been trained further."""
    if is_replaceable(run / REPORT):
        (run / REPORT).unlink(missing_ok=True)
    if "test" in read_metrics(run):  # which wrote them
        (run / PREDICTIONS).unlink(missing_ok=True)


def report_fit(
    run: Path, ckpt_path: Path, datamodule: MNISTDataModule, limit_val_batches: int | float
) -> None:
    """Write the page of a run that `fit` has completed, and print where it is.

    It shows what the run's result, its best or last checkpoint, makes of the validation images.
    The checkpoint is loaded and predicts them again: it may be older than the last validation, or
    than the last resume.

    Args:
        run: Folder of the run, whose `metrics.json` has the results of `fit`.
        ckpt_path: The checkpoint.
        datamodule: Set up for `fit`.
        limit_val_batches: The Trainer's limit.

    Raises:
        DivergenceError: If a probability is not finite.
    """
    path = run / REPORT
    if not is_replaceable(path):
        print(f"{heading('report')}none: {display_path(path)} is of another origin, and is kept")
        return
    trained = load_trained(ckpt_path)
    predictions = predict_val_images(trained, datamodule.val_dataloader(), limit_val_batches)
    check_finite(predictions)
    results = {
        **measure(predictions),
        "dataset": datamodule.dataset,
        "checkpoint": ckpt_path.relative_to(run).as_posix(),
        "step": trained.checkpoint["global_step"],
    }
    tested = Tested(run, ckpt_path, trained.checkpoint, trained.module)
    made_with = read_metrics(run)["fit"]["made_with"]
    write_atomic(path, make_page(tested, predictions, results, "fit", made_with).encode())
    print(f"{heading('report')}{display_path(path)}")


def predict_val_images(
    trained: TrainedNetwork, dataloader: InMemoryDataLoader, limit: int | float
) -> Predictions:
    """Predict the images that validation has seen, on the device that they are on.

    Args:
        trained: The network; it is moved to that device.
        dataloader: Serves the validation images.
        limit: The Trainer's: a number of batches, or a fraction of them.
    """
    indices = dataloader.indices_within(limit)
    trained.module.to(dataloader.images.device)
    return Predictions.of_logits(
        dataloader.images.cpu(),
        indices.cpu(),
        dataloader.labels[indices].cpu(),
        trained.logits(dataloader.images[indices]),
        trained.module,
    )


def is_replaceable(path: Path) -> bool:
    """Tell whether a run's page is missing, or one that this project has written."""
    if not path.exists():
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begins_as_ours = GENERATOR.encode() in file.read(1000)
    return begins_as_ours or "test" in read_metrics(path.parent)  # pages were not always marked


def predictions_csv(predictions: Predictions) -> bytes:
    """List index in the test set, true class, predicted class and its probability as CSV.

    Example:
        >>> import torch
        >>> images = torch.zeros(1, 28, 28, dtype=torch.uint8)
        >>> probabilities = torch.eye(10)[[7]]
        >>> one = Predictions(images, torch.tensor([0]), torch.tensor([2]), probabilities)
        >>> print(predictions_csv(one).decode(), end="")
        index,label,class,probability
        0,2,7,1.000000
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "label", "class", "probability"])
    confidence = [f"{p:.6f}" for p in predictions.confidence.tolist()]
    names = predictions.class_names
    labels = (names[k] for k in predictions.labels.tolist())
    classes = (names[k] for k in predictions.classes.tolist())
    writer.writerows(zip(range(len(confidence)), labels, classes, confidence, strict=True))
    return text.getvalue().encode(errors="surrogateescape")  # a folder's name can be any bytes
