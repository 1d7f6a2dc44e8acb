"""The subcommand `compare`: settings, accuracies and significance of trained networks."""

import textwrap
from itertools import combinations, zip_longest
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
import yaml
from torch import Tensor

from fnn_lightning.commands.main import COMMAND
from fnn_lightning.commands.options import make_parser, parse
from fnn_lightning.data.datasets import check_classes
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.stats import holm, mcnemar, wilson_interval
from fnn_lightning.runs.checkpoint_io import ema_decay
from fnn_lightning.runs.load import TrainedNetwork, load_trained, mismatch_error, newest_first
from fnn_lightning.runs.progress import says
from fnn_lightning.runs.run_folder import CONFIG, RUNS, run_folder, runs_in
from fnn_lightning.runs.settings import DEFAULT, class_settings, dotted, to_text

SIGNIFICANCE = 0.05  # a difference with a smaller p-value is more than chance
WIDTH = 80  # characters in a line
MAX_CELL = 400  # characters; a checkpoint from elsewhere can hold settings of any length
UNKNOWN = "?"
# settings that the weights do not depend on, or that are different in every run
UNCOMPARED = (
    *("model.class_names", "model.framing"),  # the data's
    *("data.data_dir", "trainer.barebones", "trainer.default_root_dir"),
    *("trainer.enable_autolog_hparams", "trainer.enable_checkpointing"),
    *("trainer.enable_model_summary", "trainer.enable_progress_bar", "trainer.limit_test_batches"),
    *("trainer.limit_predict_batches", "trainer.log_every_n_steps", "trainer.logger"),
    *("trainer.model_registry", "trainer.profiler"),
    *("checkpoint.every_n_steps", "checkpoint.every_n_minutes"),
)


def main(argv: list[str]) -> None:
    """Print which settings of trained networks differ, their accuracies, and their significance.

    Every network predicts the whole test set again. The p-value of a pair is about these networks
    and these images: it does not tell whether other seeds would reverse the result.

    Args:
        argv: The command line after `compare`.

    Raises:
        InputError: If the networks cannot be compared, or the data set is missing.
    """
    parser = make_parser(
        "compare",
        "Compares runs: settings that differ, accuracies on the test set, and for each pair "
        "whether the difference is more than chance (exact McNemar test).",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=str,
        metavar="RUN",
        help="Checkpoint, or folder of a run: its best.ckpt or, without one, its last.ckpt.",
    )
    parser.add_argument(
        "--data_dir",
        type=str | None,
        default=None,
        help="Folder of the data; by default that of the first run.",
    )
    parser.add_argument(
        "--mirror",
        type=str | None,
        default=None,
        help="Folder or base URL of MNIST's archives, to fetch missing data from.",
    )
    options = parse(parser, argv)
    runs = load_runs(options.runs)
    data = runs["A"].data(data_dir=options.data_dir, mirror=options.mirror, val_size=0)
    settings = {label: collect_settings(run) for label, run in runs.items()}
    data.prepare_data()
    for run in runs.values():
        check_classes(run.module.class_names, data.class_names)
    data.setup("test")
    source = data.predict_dataloader()
    with says(f"measuring {len(runs)} runs"):
        correct = {
            label: run.probabilities(source.images).argmax(dim=1) == source.labels
            for label, run in runs.items()
        }

    lines = [f"{label}  {run.path}" for label, run in runs.items()]
    lines += ["", *settings_lines(settings)]
    lines += ["", f"{len(source.labels):,} test images of {data.dataset}", *accuracy_lines(correct)]
    lines += ["", *pair_lines(correct)]
    for line in lines:
        print("".join(filter(str.isprintable, line)))


def load_runs(paths: list[str]) -> dict[str, TrainedNetwork]:
    """Load the networks to compare, and label them A, B, ….

    Raises:
        InputError: If there are fewer than 2 or more than 26 of them, two of them are the same
            file, or their data sets differ.
    """
    if not 2 <= len(paths) <= len(ascii_uppercase):
        known = runs_in(Path(RUNS))
        raise InputError(
            f"Expected 2 to {len(ascii_uppercase)} runs, but got {len(paths)}: "
            f"{COMMAND} compare RUN_A RUN_B; "
            + (f"the last runs: {newest_first(known)}" if known else f"{RUNS} holds no runs")
        )
    runs = dict(zip(ascii_uppercase, map(load_trained, paths), strict=False))
    for one, other in combinations(runs.values(), 2):
        if one.path.samefile(other.path):
            raise InputError(f"Expected different checkpoints, but got {other.path} twice")
        datasets = one.data().dataset, other.data().dataset
        if datasets[0] != datasets[1]:
            raise InputError(
                "Expected networks of one data set, but got "
                f"{one.path} of {datasets[0]} and {other.path} of {datasets[1]}"
            )
    return runs


def collect_settings(run: TrainedNetwork) -> dict[str, str]:
    """Collect the settings of a run from its checkpoint and the config.yaml beside it.

    Returns:
        Settings as text, by their names on the command line, and `steps`, the number of optimiser
        steps done. Arguments of the optimiser and the scheduler that are at their defaults are
        left out, except `lr`.

    Raises:
        InputError: If a setting is not plain data.
    """
    model = dict(run.checkpoint["hyper_parameters"])
    data = dict(run.checkpoint.get("datamodule_hyper_parameters", {}))
    classes = {
        "optimizer": (run.module.optim.optimizer, torch.optim),
        "lr_scheduler": (run.module.optim.lr_scheduler, torch.optim.lr_scheduler),
    }
    seed = {"seed_everything": data.pop("seed")} if "seed" in data else {}
    try:
        values = dotted("model", {key: model[key] for key in model if key not in classes})
        for name, (config, module) in classes.items():
            values |= class_settings(name, config, module)
        values |= {"ema.decay": ema_decay(run.checkpoint), **seed, **dotted("data", data)}
        values["steps"] = f"{run.checkpoint['global_step']:,}"
        values |= trainer_settings(run.path)
        return {name: to_text(value) for name, value in values.items() if name not in UNCOMPARED}
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise mismatch_error(run.path, error) from error


def trainer_settings(path: Path) -> dict[str, Any]:
    """Read the settings of trainer, checkpoints and early stopping from the run's config.yaml.

    Args:
        path: The checkpoint.

    Returns:
        Empty if there is no readable config.yaml.
    """
    run = run_folder(str(path))
    if run is None:
        return {}
    try:
        config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError, yaml.YAMLError):
        return {}
    sections = {
        section: config.get(section) if isinstance(config, dict) else None
        for section in ("trainer", "checkpoint", "early_stopping")
    }
    return {
        f"{section}.{name}": value
        for section, values in sections.items()
        if isinstance(values, dict)
        for name, value in values.items()
    }


def settings_lines(settings: dict[str, dict[str, str]]) -> list[str]:
    """Lay out the settings that differ, with a column for each network.

    Args:
        settings: For each network's label, what `collect_settings` returns.
    """
    without_config = [
        label
        for label, known in settings.items()
        if not any(name.startswith("trainer.") for name in known)
    ]
    rows = []
    names = dict.fromkeys(name for known in settings.values() for name in known)
    groups = list(dict.fromkeys(name.partition(".")[0] for name in names))
    for name in sorted(names, key=lambda name: groups.index(name.partition(".")[0])):
        is_argument = name.startswith(("optimizer.", "lr_scheduler."))
        missing = DEFAULT if is_argument else UNKNOWN
        row = [known.get(name, missing) for known in settings.values()]
        if len({*row} - {UNKNOWN}) > 1:
            rows.append([name, *row])
    lines = ["settings that differ: none known"]
    if rows:
        lines = align_columns([["settings that differ", *settings], *rows])
        signs = {DEFAULT: "the default, or none", UNKNOWN: "not known"}
        lines += [
            f"{sign}: {meaning}"
            for sign, meaning in signs.items()
            if any(sign in row for row in rows)
        ]
    if without_config:
        labels = ", ".join(without_config)
        lines.append(f"{labels}: no readable config.yaml, so trainer.* is not known")
    return lines


def align_columns(rows: list[list[str]]) -> list[str]:
    """Lay out rows in aligned columns; long cells are wrapped.

    Example:
        >>> align_columns([["", "A", "B"], ["optimizer", "SGD", "Adam"]])
        ['           A    B', 'optimizer  SGD  Adam']
    """
    rows = [
        [cell if len(cell) <= MAX_CELL else f"{cell[:MAX_CELL]} …" for cell in row] for row in rows
    ]
    first_width = max(len(row[0]) for row in rows)
    max_width = max((WIDTH - first_width) // (len(rows[0]) - 1) - 2, 8)
    wrapped = [[[row[0]], *(textwrap.wrap(cell, max_width) for cell in row[1:])] for row in rows]
    widths = [
        max(len(part) for cell in column for part in cell) for column in zip(*wrapped, strict=True)
    ]
    return [
        "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
        for row in wrapped
        for parts in zip_longest(*row, fillvalue="")
    ]


def accuracy_lines(correct: dict[str, Tensor]) -> list[str]:
    """Lay out the accuracy of each network.

    Args:
        correct: For each label, which test images the network classifies correctly: `bool` of
            shape `(N,)`.
    """
    lines = ["   correct  accuracy, %  95 % interval (Wilson)"]
    for label, hits in correct.items():
        count, total = int(hits.sum()), len(hits)
        low, high = wilson_interval(count, total)
        accuracy = 100 * count / total
        lines.append(f"{label}  {count:>7,}  {accuracy:>11.2f}  {100 * low:.2f}–{100 * high:.2f}")
    return lines


def pair_lines(correct: dict[str, Tensor]) -> list[str]:
    """Lay out for each pair of networks whether the difference is more than chance.

    Args:
        correct: For each label, which test images the network classifies correctly: `bool` of
            shape `(N,)`.
    """
    pairs = list(combinations(correct, 2))
    counts = [
        (int((correct[one] & ~correct[other]).sum()), int((correct[other] & ~correct[one]).sum()))
        for one, other in pairs
    ]
    p_values = [mcnemar(*count) for count in counts]
    several = len(pairs) > 1
    lines = ["pair  1st alone  2nd alone  difference, points         p" + "  p (Holm)" * several]
    for (one, other), (first, second), p, adjusted in zip(
        pairs, counts, p_values, holm(p_values), strict=True
    ):
        points = 100 * (first - second) / len(correct[one])
        better = one if first > second else other
        lines.append(
            f"{one}, {other}  {first:>9,}  {second:>9,}  {points:>+18.2f}  {format_p_value(p):>8}"
            + f"  {format_p_value(adjusted):>8}" * several
            + f"  {better} is better, more than chance" * (adjusted < SIGNIFICANCE)
            + "  could be chance" * (adjusted >= SIGNIFICANCE)
        )
    p_meaning = f"below {SIGNIFICANCE}" + f", adjusted for {len(pairs)} pairs by Holm," * several
    return [
        *lines,
        "1st alone: images that only the first network of the pair classifies correctly",
        f"p: exact McNemar test; {p_meaning} the difference is more than chance",
        "This is about these networks on these images. To tell whether a setting is better in",
        "general, compare several seeds of each.",
    ]


def format_p_value(p: float) -> str:
    """Write a p-value in at most eight characters.

    Example:
        >>> format_p_value(0.03125), format_p_value(1e-9)
        ('0.0312', '< 0.0001')
    """
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
