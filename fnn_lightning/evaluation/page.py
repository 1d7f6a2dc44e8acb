"""The page of a report: one HTML file that loads nothing, with or without a network."""

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from fnn_lightning.evaluation.attribution import (
    AGAINST,
    FOR,
    attribute,
    css_colour,
    draw_attribution,
)
from fnn_lightning.evaluation.charts import Chart, line_chart, reliability_chart
from fnn_lightning.evaluation.class_names import short_name
from fnn_lightning.evaluation.html_template import html_template
from fnn_lightning.evaluation.measures import CALIBRATION_BINS, confusions, reliability
from fnn_lightning.evaluation.predictions import Predictions
from fnn_lightning.evaluation.run_card import changed_settings, config_text, run_card
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.runs.checkpoint_io import read_losses
from fnn_lightning.runs.loggers import read_curves
from fnn_lightning.runs.run_folder import read_metrics

GENERATOR = '<meta name="generator" content="fnn_lightning">'
"""What tells a report from a page of another origin; at its beginning."""

MAX_LARGE = 12  # mistakes shown at first
MAX_MISTAKES = 1000  # shown in all: a net that has learned nothing makes thousands
MAX_PAIRS = 5  # that are put in words
MAX_MATRIX = 50  # classes; the confusions of more are listed, the most frequent
MAX_LISTED = 100


class Tested(NamedTuple):
    """A trained network whose predictions a page shows."""

    run: Path | None
    """Folder of its run; None if the checkpoint stands alone."""
    ckpt_path: Path
    """The checkpoint's file."""
    checkpoint: dict[str, Any]
    """Its content."""
    module: FNNLitModule
    """The network."""


def make_page(
    tested: Tested,
    predictions: Predictions,
    results: dict[str, Any],
    stage: str,
    made_with: dict[str, str],
) -> str:
    """Fill in the template `report.html`.

    Args:
        tested: The network.
        predictions: Of the images that the page is about.
        results: What `measure` returns of them, with `dataset`, `checkpoint` and `step`.
        stage: `fit`, of which the page shows the validation images, or `test`.
        made_with: Versions and hardware of this stage.
    """
    fit = read_metrics(tested.run).get("fit") if tested.run else None
    fit = fit if isinstance(fit, dict) else {}
    data = tested.checkpoint.get("datamodule_hyper_parameters", {})
    config = config_text(tested.run, tested.checkpoint)
    matrix = predictions.confusion.tolist()
    pairs = confusions(matrix)
    names = [short_name(name) for name in predictions.class_names]
    mistakes = describe_mistakes(predictions)
    explain(mistakes[:MAX_LARGE], tested.module, predictions)
    best = fit.get("best")
    return html_template("report.html").render(
        title="/".join((tested.run or tested.ckpt_path).absolute().parts[-2:]),
        stage=stage,
        results=results,
        watches_test_set=data.get("val_size") == 0,
        selected_by=best.get("monitor") if isinstance(best, dict) else None,
        label_smoothing=tested.module.training_loss.label_smoothing,
        card=run_card(tested.module, tested.checkpoint, fit),
        changed=changed_settings(config),
        config=config,
        charts=training_charts(tested, data.get("val_size") == 0),
        names=names,
        long_names=max(map(len, names)) > 3,
        matrix=matrix if len(names) <= MAX_MATRIX else None,
        most_confused=max((each.times for each in pairs), default=0),
        pairs=pairs,
        max_pairs=MAX_PAIRS,
        max_listed=MAX_LISTED,
        reliability=reliability_chart(reliability(predictions)),
        bins=CALIBRATION_BINS,
        large=mistakes[:MAX_LARGE],
        for_colour=css_colour(FOR),
        against_colour=css_colour(AGAINST),
        mistakes=mistakes,
        mistakes_of_pair=by_pair(mistakes),
        made_with=made_with,
        made_fit_with=fit.get("made_with") if stage == "test" else None,
    )


def training_charts(tested: Tested, watches_test_set: bool) -> list[Chart]:
    """Lay out the curves in the run's folder, and the losses that the checkpoint keeps."""
    curves = read_curves(tested.run) if tested.run else {}
    charts = []
    watched = " (on the test set)" if watches_test_set else ""
    for name, ylabel in (("loss", "loss"), ("acc", "accuracy")):
        labels = {f"train/{name}": f"train/{name}", f"val/{name}": f"val/{name}{watched}"}
        logged = {label: curves[tag] for tag, label in labels.items() if curves.get(tag)}
        charts.append(line_chart(logged, "step", ylabel, from_zero=name == "loss"))
    losses = read_losses(tested.checkpoint)
    if losses is not None and len(losses):
        # fewer steps than batches if gradients were accumulated
        steps_per_batch = tested.checkpoint["global_step"] / len(losses)
        curve = [((i + 1) * steps_per_batch, loss) for i, loss in enumerate(losses.tolist())]
        name = "training loss of the batch"
        charts.append(line_chart({name: curve}, "step", name, from_zero=True))
    return [chart for chart in charts if chart is not None]


def by_pair(mistakes: list[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Group mistakes by what they are and what they were taken for."""
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for each in mistakes:
        groups.setdefault((each["label"], each["predicted"]), []).append(each)
    return groups


def describe_mistakes(predictions: Predictions) -> list[dict[str, Any]]:
    """Describe the `MAX_MISTAKES` most confident mistakes for the page, images included."""
    return [
        {
            "index": int(predictions.indices[position]),
            "label": int(predictions.labels[position]),
            "predicted": int(predictions.classes[position]),
            "probability": float(predictions.confidence[position]),
            "of_truth": float(
                predictions.probabilities[position, int(predictions.labels[position])]
            ),
            "png": as_png(predictions.image_as_seen(position)),
            "why": None,
        }
        for position in predictions.most_confident_mistakes(MAX_MISTAKES)
    ]


def explain(mistakes: list[dict[str, Any]], module: FNNLitModule, predictions: Predictions) -> None:
    """Add to mistakes a picture of why: which pixels speak for the answer, which for the truth.

    Args:
        mistakes: A few of `describe_mistakes`; of all, a page would grow by half.
        module: The network that made them.
        predictions: Its predictions.
    """
    if not mistakes:
        return
    columns = [[each[name] for each in mistakes] for name in ("index", "predicted", "label")]
    indices, predicted, labels = (torch.tensor(column) for column in columns)
    contributions = attribute(module, predictions.images[indices], predicted, labels)
    for each, contribution in zip(mistakes, contributions, strict=True):
        each["why"] = draw_attribution(contribution)


def as_png(image: torch.Tensor) -> str:
    """Convert an image to a base64-encoded PNG.

    Args:
        image: Pixels 0–255, `uint8` of shape `(28, 28)`.
    """
    content = io.BytesIO()
    Image.fromarray(image.numpy()).save(content, "png")
    return base64.b64encode(content.getvalue()).decode()
