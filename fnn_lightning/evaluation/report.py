"""What `test` writes into a run's folder: `report.html`, `predictions.csv`, `metrics.json`."""

import base64
import csv
import io
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_precision,
    multiclass_recall,
)

from fnn_lightning.errors import DivergenceError
from fnn_lightning.evaluation import plots
from fnn_lightning.evaluation.predictions import (
    PredictionCollector,
    Predictions,
    first_test_dataloader,
)
from fnn_lightning.evaluation.stats import wilson_interval
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.network import NUM_CLASSES
from fnn_lightning.runs.checkpoint_io import read_losses
from fnn_lightning.runs.files import display_path, relative_path, write_atomic
from fnn_lightning.runs.loggers import read_curves
from fnn_lightning.runs.run_folder import CONFIG, read_metrics, write_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT, PREDICTIONS = "report.html", "predictions.csv"
MAX_MISTAKES = 50  # shown in the report


class Report(PredictionCollector):
    """Writes the report of a test: a page, a table of the predictions, and the results as JSON.

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
        predictions = self.predictions(first_test_dataloader(trainer))
        if predictions is None or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, FNNLitModule)
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
        write_atomic(self.folder / PREDICTIONS, predictions_csv(predictions).encode())
        write_atomic(self.folder / REPORT, self._page(predictions, results).encode())
        self.written = True
        print(f"report     {display_path(self.folder / REPORT)}")

    def _page(self, predictions: Predictions, results: dict[str, Any]) -> str:
        return render(
            title="/".join((self.run or self.ckpt_path).absolute().parts[-2:]),
            test=results,
            curves=[as_svg(figure) for figure in self._training_figures()],
            confusion=as_svg(plots.confusion_figure(predictions)),
            reliability=as_svg(plots.reliability_figure(predictions)),
            bins=plots.CALIBRATION_BINS,
            mistakes=describe_mistakes(predictions),
            fit=read_metrics(self.run).get("fit") if self.run else None,
            made_with=read_metrics(self.folder)["test"]["made_with"],
            config=self._config(),
        )

    def _training_figures(self) -> "list[Figure]":
        """Draw the curves in the run's folder, and the losses that the checkpoint keeps."""
        figures = []
        curves = read_curves(self.run) if self.run else {}
        data = self.checkpoint.get("datamodule_hyper_parameters", {})
        watched = " (on the test set)" if data.get("val_size") == 0 else ""
        for name, ylabel in (("loss", "loss"), ("acc", "accuracy")):
            labels = {f"train/{name}": f"train/{name}", f"val/{name}": f"val/{name}{watched}"}
            logged = {label: curves[tag] for tag, label in labels.items() if curves.get(tag)}
            if logged:
                figures.append(plots.curves_figure(logged, ylabel))
        losses = read_losses(self.checkpoint)
        if losses is not None:
            figures.append(plots.loss_figure(losses, self.checkpoint["global_step"]))
        return figures

    def _config(self) -> str:
        """Return the run's config.yaml or, without a run, the checkpoint's hyperparameters."""
        if self.run:
            return (self.run / CONFIG).read_text(encoding="utf-8", errors="replace")
        settings = {
            "model": self.checkpoint["hyper_parameters"],
            "data": self.checkpoint.get("datamodule_hyper_parameters", {}),
        }
        plain = json.loads(json.dumps(settings, default=str))
        return str(yaml.safe_dump(plain, sort_keys=False))


def check_finite(predictions: Predictions) -> None:
    """Refuse predictions with probabilities that are not finite.

    Raises:
        DivergenceError: If there are any.
    """
    affected = int((~predictions.probabilities.isfinite().all(dim=1)).sum())
    if affected:
        raise DivergenceError(
            f"Expected finite outputs of the network, but got infinity or NaN for {affected:,} of "
            f"{len(predictions.labels):,} images: no report was written"
        )


def measure(predictions: Predictions) -> dict[str, Any]:
    """Compute the results of a test, as plain data for JSON; ratios are from 0 to 1.

    The precision of a digit that is never predicted is None, and so is the recall of a digit
    without images.

    Example:
        >>> images = torch.zeros(4, 28, 28, dtype=torch.uint8)
        >>> probabilities = torch.eye(10)[[7, 2, 1, 0]]
        >>> labels = torch.tensor([7, 2, 1, 6])
        >>> results = measure(Predictions(images, torch.arange(4), labels, probabilities))
        >>> results["accuracy"], results["classes"][0]
        (0.75, {'digit': 0, 'images': 0, 'precision': 0.0, 'recall': None})
    """
    digits, labels = predictions.digits, predictions.labels
    correct, total = int(predictions.is_correct.sum()), len(labels)
    precision = multiclass_precision(digits, labels, NUM_CLASSES, average=None).tolist()
    recall = multiclass_recall(digits, labels, NUM_CLASSES, average=None).tolist()
    predicted = digits.bincount(minlength=NUM_CLASSES).tolist()
    images = labels.bincount(minlength=NUM_CLASSES).tolist()
    calibration_error = multiclass_calibration_error(
        predictions.probabilities, labels, NUM_CLASSES, plots.CALIBRATION_BINS, norm="l1"
    )
    return {
        "accuracy": correct / total,
        "correct": correct,
        "total": total,
        "interval_95": list(wilson_interval(correct, total)),
        "expected_calibration_error": float(calibration_error),
        "classes": [
            {
                "digit": digit,
                "images": images[digit],
                "precision": precision[digit] if predicted[digit] else None,
                "recall": recall[digit] if images[digit] else None,
            }
            for digit in range(NUM_CLASSES)
        ],
    }


def predictions_csv(predictions: Predictions) -> str:
    """List index in the test set, true digit, predicted digit and its probability as CSV.

    Example:
        >>> images = torch.zeros(1, 28, 28, dtype=torch.uint8)
        >>> probabilities = torch.eye(10)[[7]]
        >>> one = Predictions(images, torch.tensor([0]), torch.tensor([2]), probabilities)
        >>> print(predictions_csv(one), end="")
        index,truth,prediction,probability
        0,2,7,1.000000
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "truth", "prediction", "probability"])
    confidence = [f"{p:.6f}" for p in predictions.confidence.tolist()]
    columns = predictions.labels.tolist(), predictions.digits.tolist(), confidence
    writer.writerows(zip(range(len(confidence)), *columns, strict=True))
    return text.getvalue()


def describe_mistakes(predictions: Predictions) -> list[dict[str, Any]]:
    """Describe the `MAX_MISTAKES` most confident mistakes for the page, images included."""
    return [
        {
            "index": index,
            "label": int(predictions.labels[index]),
            "digit": int(predictions.digits[index]),
            "probability": float(predictions.confidence[index]),
            "png": as_png(predictions.image(index)),
        }
        for index in predictions.most_confident_mistakes(MAX_MISTAKES)
    ]


def render(**values: Any) -> str:
    """Fill in the template `report.html`."""
    # slow to import, and only needed here
    from jinja2 import Environment, StrictUndefined

    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(values)


def as_svg(figure: "Figure") -> str:
    """Convert a figure to an SVG element for the page."""
    import matplotlib

    text = io.StringIO()
    # keep text selectable, and give the same figure the same bytes
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fnn_lightning"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def as_png(image: torch.Tensor) -> str:
    """Convert an image to a base64-encoded PNG, dark ink on white.

    Args:
        image: Pixels 0–255, `uint8` of shape `(28, 28)`.
    """
    content = io.BytesIO()
    Image.fromarray(255 - image.numpy()).save(content, "png")
    return base64.b64encode(content.getvalue()).decode()
