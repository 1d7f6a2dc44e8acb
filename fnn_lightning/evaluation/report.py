"""What `test` leaves in a run's folder: `report.html`, `predictions.csv` and `metrics.json`."""

import base64
import csv
import io
import json
import os
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
from fnn_lightning.evaluation.predictions import PredictionCollector, Predictions, test_loader
from fnn_lightning.evaluation.stats import wilson_interval
from fnn_lightning.lit_module import CLASSES, FNNLitModule
from fnn_lightning.runs.files import write_atomic
from fnn_lightning.runs.loggers import read_curves
from fnn_lightning.runs.run_folder import CONFIG, read_metrics, write_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT, PREDICTIONS = "report.html", "predictions.csv"
MISTAKES = 50


class Report(PredictionCollector):
    """Writes what a test found: a page to look at, a table of predictions, figures to compute with.

    Args:
        folder: Where to write.
        run: The folder of the run that the checkpoint lies in, for what is known of its training.
        ckpt_path: The checkpoint tested.
        checkpoint: What it holds.

    Raises:
        DivergenceError: When testing ends, if a prediction is not a finite number.
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
        predictions = self.predictions(test_loader(trainer))
        if predictions is None or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, FNNLitModule)
        lost = int((~predictions.probabilities.isfinite().all(dim=1)).sum())
        if lost:
            raise DivergenceError(
                f"Of {lost:,} of {len(predictions.labels):,} images the network's outputs are not "
                "finite numbers; no report was written"
            )
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        found = {
            **measure(predictions),
            "dataset": getattr(datamodule, "dataset", None),
            "checkpoint": Path(os.path.relpath(self.ckpt_path, self.folder)).as_posix(),
            "step": pl_module.step_count,
        }
        if "test/train_set_" in pl_module.counts:
            correct, total = pl_module.counts["test/train_set_"]
            found["train_set"] = {"correct": correct, "total": total}
        write_atomic(self.folder / PREDICTIONS, predictions_csv(predictions).encode())
        in_run = self.run is not None and self.run.samefile(self.folder)
        write_metrics(self.folder, "test", found, keep_other_stage=in_run)
        write_atomic(self.folder / REPORT, self._page(predictions, found).encode())
        self.written = True
        print(f"report     {os.path.relpath(self.folder / REPORT)}")

    def _page(self, predictions: Predictions, found: dict[str, Any]) -> str:
        # used here alone, and slow to import
        from jinja2 import Environment, StrictUndefined

        template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        wrong = predictions.digits != predictions.labels
        return environment.from_string(template).render(
            title="/".join((self.run or self.ckpt_path).absolute().parts[-2:]),
            test=found,
            curves=[as_svg(each) for each in self._curves()],
            confusion=as_svg(plots.confusion_figure(predictions)),
            reliability=as_svg(plots.reliability_figure(predictions)),
            bins=plots.BINS,
            mistakes=[
                {
                    "index": index,
                    "label": int(predictions.labels[index]),
                    "digit": int(predictions.digits[index]),
                    "probability": float(predictions.confidence[index]),
                    "png": as_png(predictions.image(index)),
                }
                for index in predictions.most_confident_mistakes(MISTAKES)
            ],
            wrong=int(wrong.sum()),
            fit=read_metrics(self.run).get("fit") if self.run else None,
            made_with=read_metrics(self.folder)["test"]["made_with"],
            config=self._config(),
        )

    def _curves(self) -> "list[Figure]":
        drawn = []
        curves = read_curves(self.run) if self.run else {}
        for name, ylabel in (("loss", "loss"), ("acc", "accuracy")):
            shown = {f"{split}/{name}": curves.get(f"{split}/{name}") for split in ("train", "val")}
            given = {tag: points for tag, points in shown.items() if points}
            if given:
                drawn.append(plots.curves_figure(given, ylabel))
        progress = self.checkpoint.get("progress")
        losses = progress.get("losses") if isinstance(progress, dict) else None
        if isinstance(losses, torch.Tensor) and losses.dim() == 1 and losses.is_floating_point():
            drawn.append(plots.loss_figure(losses.float(), self.checkpoint["global_step"]))
        return drawn

    def _config(self) -> str:
        """Return the run's config.yaml, or else the settings that the checkpoint holds."""
        if self.run:
            return (self.run / CONFIG).read_text(encoding="utf-8", errors="replace")
        settings = {
            "model": self.checkpoint["hyper_parameters"],
            "data": self.checkpoint.get("datamodule_hyper_parameters", {}),
        }
        plain = json.loads(json.dumps(settings, default=str))
        return str(yaml.safe_dump(plain, sort_keys=False))


def measure(predictions: Predictions) -> dict[str, Any]:
    """Measure a test: shares from 0 to 1, as plain data for JSON.

    The precision of a digit that is never predicted is None, and so is the recall of one that no
    image shows.
    """
    digits, labels, probabilities = (
        predictions.digits,
        predictions.labels,
        predictions.probabilities,
    )
    correct, total = int((digits == labels).sum()), len(labels)
    precision = multiclass_precision(digits, labels, CLASSES, average=None)
    recall = multiclass_recall(digits, labels, CLASSES, average=None)
    error = multiclass_calibration_error(probabilities, labels, CLASSES, plots.BINS, norm="l1")
    return {
        "accuracy": correct / total,
        "correct": correct,
        "total": total,
        "interval_95": list(wilson_interval(correct, total)),
        "expected_calibration_error": float(error),
        "classes": [
            {
                "digit": digit,
                "images": int((labels == digit).sum()),
                "precision": float(precision[digit]) if (digits == digit).any() else None,
                "recall": float(recall[digit]) if (labels == digit).any() else None,
            }
            for digit in range(CLASSES)
        ],
    }


def predictions_csv(predictions: Predictions) -> str:
    """List what was predicted: index in the test set, truth, prediction, its probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "truth", "prediction", "probability"])
    confidence = [f"{p:.6f}" for p in predictions.confidence.tolist()]
    columns = predictions.labels.tolist(), predictions.digits.tolist(), confidence
    writer.writerows(zip(range(len(confidence)), *columns, strict=True))
    return text.getvalue()


def as_svg(figure: "Figure") -> str:
    """Turn a figure into an SVG element for a page."""
    import matplotlib

    text = io.StringIO()
    # text as text, and the same file for the same figure
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fnn_lightning"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def as_png(image: torch.Tensor) -> str:
    """Turn an image of `(28, 28)` bytes into a PNG, dark ink on white, in base64."""
    content = io.BytesIO()
    Image.fromarray(255 - image.numpy()).save(content, "png")
    return base64.b64encode(content.getvalue()).decode()
