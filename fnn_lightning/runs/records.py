"""What is known of a run from its folder: settings and results, read without torch.

Importing this file must stay quick: no torch, no SciPy.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fnn_lightning.evaluation.stats import wilson_interval
from fnn_lightning.runs.run_folder import (
    CONFIG,
    LAST,
    METRICS,
    fit_completed,
    read_metrics,
)
from fnn_lightning.runs.settings import DEFAULT, dotted, to_text

Loader: Any = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # seven times as fast, where it is built
OF_60000 = ("mnist", "fashion_mnist", "kmnist", "qmnist")  # training images
CLASSES = {
    **dict.fromkeys((*OF_60000, "digits", "emnist_digits"), 10),
    **{"emnist_letters": 26, "emnist_balanced": 47, "emnist_byclass": 62, "emnist_bymerge": 47},
}
HELD_OUT = {**dict.fromkeys(OF_60000, 5000), "digits": 119}  # unless the user says: a twelfth
PIXELS = 784
LIMITS = ("limit_val_batches", "overfit_batches")
MAX_LINE = 10_000  # bytes from the end of an output, in which its last line begins
MAX_NUMBER, MAX_DIGITS = 2**53, 15  # any more are damage
SECTION = re.compile(r"^(?=[a-z])", re.MULTILINE)  # where one begins in config.yaml
OUTPUTS = ("errors.txt", "output.txt")  # of runs of `seeds` and `sweep`

Columns = dict[str, Any]
"""Values as JSON has them, by the names of their columns; None for what is not known."""


class RunRecord(NamedTuple):
    """A run, as far as its folder tells."""

    columns: Columns
    settings: dict[str, str]
    """As text, by their names on the command line; empty if there is no readable config."""


def find_runs(root: Path) -> Iterator[Path]:
    """Yield the folders of the runs in a folder and in those below it, sorted by their names.

    Links to folders are followed. A folder that cannot be read is passed over.
    """
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        try:
            status = Path(folder).stat()
        except OSError:  # gone meanwhile
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if is_run(Path(folder), folders, files):
            yield Path(folder)
        folders[:] = sorted(
            (name for name in folders if name != LAST.parent.name and name[0] != "."), key=natural
        )


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key by which names are sorted as people count.

    >>> sorted(["version_10", "version_9"], key=natural)
    ['version_9', 'version_10']
    """
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def is_run(folder: Path, folders: list[str], files: list[str]) -> bool:
    """Tell whether a folder is that of a run, given what it holds."""
    if LAST.parent.name in folders and os.access(folder / LAST, os.R_OK):
        return True  # from Python, too
    begun = {"hparams.yaml", METRICS} & {*files} or LAST.parent.name in folders
    return CONFIG in files and bool(begun)


def read_record(folder: Path, root: Path) -> RunRecord:
    """Read what is known of a run; what is damaged or missing is not known.

    Args:
        folder: Its folder.
        root: The folder to which its name is relative.
    """
    settings = read_settings(folder)
    metrics = read_metrics(folder)
    fit, test = section(metrics, "fit"), section(metrics, "test")
    name = os.path.relpath(folder, root)
    widths = layer_widths(settings, test)
    activation = settings.get("model.activation", "") if len(widths) > 2 else ""
    network = fit.get("network") or f"{'–'.join(map(str, widths))} {activation}".strip()
    when = section(fit or test, "made_with").get("time")
    columns: Columns = {
        "run": folder.absolute().name if name == os.curdir else name,
        "state": state(folder, metrics),
        "dataset": settings.get("data.dataset"),
        "network": str(network) or None,
        "parameters": number(fit.get("parameters")) or parameters(settings, widths),
        "seed": number_in(settings, "seed_everything"),
        **accuracies(settings, metrics),
        "seconds": number(fit.get("seconds")),
        "epochs": number(fit.get("epochs")),
        "steps": number(fit.get("step")),
        "when": when if isinstance(when, str) else None,
    }
    return RunRecord(columns, settings)


def read_settings(folder: Path) -> dict[str, str]:
    """Read the settings of a run's config.yaml; empty if it is missing or damaged."""
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
        try:
            sections = map(flatten_text, SECTION.split(text))
            return {name: value for section in sections for name, value in section.items()}
        except yaml.YAMLError:  # such as an alias of what another section has
            return flatten(yaml.load(text, Loader))
    except (AttributeError, OSError, RecursionError, TypeError, ValueError, yaml.YAMLError):
        return {}


@lru_cache(maxsize=1000)
def flatten_text(text: str) -> dict[str, str]:
    """Read a section of a config; most sections of a thousand runs are the same text."""
    return flatten(yaml.load(text, Loader) or {})


def flatten(config: dict[str, Any]) -> dict[str, str]:
    """Name settings as on the command line, and write them as text.

    Args:
        config: A whole config, or what it changes.

    Example:
        >>> flatten({"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}})
        {'optimizer': 'Adam', 'optimizer.lr': '0.01'}
    """
    named: dict[str, Any] = {}
    for name, value in config.items():
        if not isinstance(value, dict):
            named[name] = value
        elif "class_path" in value:
            named[name] = value["class_path"].rpartition(".")[2]
            named |= dotted(name, value.get("init_args") or {})
        else:
            named |= dotted(name, value)
    return {str(name): to_text(value) for name, value in named.items()}


def state(folder: Path, metrics: dict[str, Any]) -> str:
    """Say whether a run is complete, failed, not finished, damaged or from Python.

    A run that `fit` has not completed may still be training: nothing in its folder tells. Why one
    failed is known of those of `seeds` and `sweep`, whose output is there.
    """
    if fit_completed(metrics):
        return "complete"
    if not metrics and os.access(folder / METRICS, os.F_OK):
        return "damaged"
    if not os.access(folder / CONFIG, os.F_OK):
        return "from Python"  # which writes no results
    for name in OUTPUTS:
        with contextlib.suppress(OSError), (folder / name).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LINE))
            if file.read().rstrip().rpartition(b"\n")[2].startswith(b"error: "):
                return "failed"
    return "not finished"


def accuracies(settings: dict[str, str], metrics: dict[str, Any]) -> Columns:
    """Return validation and test accuracy, each with its 95 % interval (Wilson).

    Validation that watched the test set is no validation, and left out.
    """
    fit, test = section(metrics, "fit"), section(metrics, "test")
    best, val = section(fit, "best"), fit.get("val/acc")
    if best.get("monitor") == "val/acc":
        val = best.get("score")
    if settings.get("data.val_size") == "0":
        val = None
    images = number(fit.get("val_images")) or val_images(settings)
    # of another checkpoint than the result, it is not the run's
    is_result = not fit or test.get("checkpoint") == fit.get("checkpoint")
    total = number(test.get("total")) if is_result else None
    return {
        **interval("val", number(val), images),
        **interval("test", number(test.get("accuracy")) if is_result else None, total),
    }


def interval(split: str, accuracy: float | None, images: float | None) -> Columns:
    """Return the columns of an accuracy and its interval, as far as they are known.

    >>> interval("val", 0.5, None)
    {'val_acc': 0.5, 'val_low': None, 'val_high': None}
    """
    low = high = None
    if accuracy is not None and not 0 <= accuracy <= 1:
        accuracy = None
    if accuracy is not None and images and images >= 1:
        low, high = wilson_interval(round(accuracy * images), int(images))
    return {f"{split}_acc": accuracy, f"{split}_low": low, f"{split}_high": high}


def val_images(settings: dict[str, str]) -> int | None:
    """Return how many images validated, if the settings of a run tell."""
    if not {settings.get(f"trainer.{name}", DEFAULT) for name in LIMITS} <= {
        DEFAULT,
        "0",
        "false",
        "1",
    }:
        return None
    if size := number_in(settings, "data.val_size"):
        return int(size)
    if settings.get("data.folds", DEFAULT) != DEFAULT:
        return None
    return HELD_OUT.get(settings.get("data.dataset", ""))


def layer_widths(settings: dict[str, str], test: dict[str, Any]) -> list[int]:
    """Return the widths of a network's layers, from the pixels on; empty if they are not known."""
    dataset, classes = settings.get("data.dataset"), test.get("classes")
    count = len(classes) if isinstance(classes, list) else CLASSES.get(str(dataset))
    hidden = re.findall(rf"\d{{1,{MAX_DIGITS}}}", settings.get("model.hidden_dims", ""))
    if count is None or "model.hidden_dims" not in settings:
        return []
    return [PIXELS, *map(int, hidden), count]


def parameters(settings: dict[str, str], widths: list[int]) -> int | None:
    """Count the parameters of a network; None if its widths are not known."""
    layers = sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))
    norms = 2 * sum(widths[1:-1]) if settings.get("model.batch_norm") == "true" else 0
    return layers + norms or None


def section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a part of a JSON object that is an object; empty if it is something else."""
    value = values.get(name)
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | int | None:
    """Return a number of any size that a run can have; None for anything else.

    >>> number(3), number(True), number("3"), number(float("nan")), number(10**400)
    (3, None, None, None, None)
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < MAX_NUMBER else None


def number_in(settings: dict[str, str], name: str) -> int | None:
    """Return a setting that is a whole number from 0; None if it is none."""
    text = settings.get(name, "")
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else None
