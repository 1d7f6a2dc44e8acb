"""Compares trained networks: settings that differ, results, and whether they differ by chance."""

import inspect
import textwrap
from itertools import combinations, zip_longest
from pathlib import Path
from string import ascii_uppercase
from types import ModuleType
from typing import Any

import torch
import yaml
from torch import Tensor

from fnn_lightning.commands.options import make_parser, parse
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.stats import holm, mcnemar, wilson_interval
from fnn_lightning.runs.load import TrainedNetwork, load_trained, misfit
from fnn_lightning.runs.run_folder import CONFIG, run_folder
from fnn_lightning.training.optim import ClassConfig

LIMIT = 0.05  # a p-value below it is taken for more than chance
WIDTH = 100  # characters in a line
MAX_TEXT = 400  # characters of a setting; what a file holds can be shown
DEFAULT, UNKNOWN = "–", "?"
# what weights do not depend on, or every run has for itself
UNCOMPARED = (
    *("data.data_dir", "data.test_train_set", "trainer.barebones", "trainer.default_root_dir"),
    *("trainer.enable_autolog_hparams", "trainer.enable_checkpointing"),
    *("trainer.enable_model_summary", "trainer.enable_progress_bar", "trainer.limit_test_batches"),
    *("trainer.limit_predict_batches", "trainer.log_every_n_steps", "trainer.logger"),
    *("trainer.model_registry", "trainer.profiler"),
    *("checkpoint.every_n_steps", "checkpoint.every_n_minutes"),
)


def main(argv: list[str]) -> None:
    """Print which settings of trained networks differ, and how their results do.

    Every network predicts all test images anew. The p-value of a pair is about these networks and
    these images: it does not tell whether another seed would have turned the result round.

    Args:
        argv: What follows `compare` on the command line.

    Raises:
        InputError: If the networks cannot be compared, or the data are not to be had.
    """
    parser = make_parser(
        "compare",
        "Shows which settings of trained networks differ, their accuracies on the test set, and of "
        "each pair whether the difference is more than chance (exact McNemar test).",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=str,
        metavar="RUN",
        help="A run's folder, of which best.ckpt is taken or else last.ckpt, or a checkpoint.",
    )
    parser.add_argument(
        "--data_dir",
        type=str | None,
        default=None,
        help="Where the data lives, if it is not where the first checkpoint says.",
    )
    parser.add_argument(
        "--mirror",
        type=str | None,
        default=None,
        help="Folder or base URL with MNIST's archives, for data that is not there yet.",
    )
    options = parse(parser, argv)
    runs = load_runs(options.runs)
    data = runs["A"].data(
        data_dir=options.data_dir, mirror=options.mirror, val_size=0, test_train_set=False
    )
    described = {label: settings(run) for label, run in runs.items()}
    data.prepare_data()
    data.setup("test")
    source = data.predict_dataloader()
    right = {
        label: run.probabilities(source.images).argmax(dim=1) == source.labels
        for label, run in runs.items()
    }

    lines = [f"{label}  {run.path}" for label, run in runs.items()]
    lines += ["", *settings_lines(described)]
    lines += ["", f"{len(source.labels):,} test images of {data.dataset}", *result_lines(right)]
    lines += ["", *pair_lines(right)]
    for line in lines:
        print("".join(filter(str.isprintable, line)))


def load_runs(paths: list[str]) -> dict[str, TrainedNetwork]:
    """Load what is to be compared, each under a letter.

    Raises:
        InputError: If there are fewer than two or more than 26, or one is there twice, or they are
            not of one data set.
    """
    if not 2 <= len(paths) <= len(ascii_uppercase):
        raise InputError(
            f"Expected from 2 to {len(ascii_uppercase)} runs, but got {len(paths)}: "
            "python -m fnn_lightning compare RUN_A RUN_B"
        )
    runs = dict(zip(ascii_uppercase, map(load_trained, paths), strict=False))
    for one, other in combinations(runs.values(), 2):
        if one.path.samefile(other.path):
            raise InputError(f"Expected different checkpoints, but got {other.path} twice")
        sets = one.data().dataset, other.data().dataset
        if sets[0] != sets[1]:
            raise InputError(
                "Expected networks of one data set, but got "
                f"{one.path} of {sets[0]} and {other.path} of {sets[1]}"
            )
    return runs


def settings(run: TrainedNetwork) -> dict[str, str]:
    """Collect how a network was trained, as far as its checkpoint and the run's config.yaml tell.

    Returns:
        Settings by their names on the command line, as text, and `steps`, the number of optimiser
        steps done. Of the arguments of optimiser and scheduler only `lr` and those that are not
        at their defaults.

    Raises:
        InputError: If a setting is not plain data.
    """
    stored = dict(run.checkpoint["hyper_parameters"])
    data = dict(run.checkpoint.get("datamodule_hyper_parameters", {}))
    parts = {
        "optimizer": (run.module.optim.optimizer, torch.optim),
        "lr_scheduler": (run.module.optim.lr_scheduler, torch.optim.lr_scheduler),
    }
    values = {f"model.{name}": value for name, value in stored.items() if name not in parts}
    for name, (config, module) in parts.items():
        values |= flattened(name, config, module)
    if "seed" in data:
        values["seed_everything"] = data.pop("seed")
    values |= {f"data.{name}": value for name, value in data.items()}
    values["steps"] = f"{run.checkpoint['global_step']:,}"
    values |= trainer_settings(run.path)
    try:
        return {name: text(value) for name, value in values.items() if name not in UNCOMPARED}
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise misfit(run.path, error) from error


def flattened(name: str, config: ClassConfig | None, module: ModuleType) -> dict[str, Any]:
    """Name the class of an optimiser or a scheduler, and each argument on its own."""
    if config is None:
        return {name: None}
    class_name = config["class_path"].rpartition(".")[2]
    parameters = inspect.signature(getattr(module, class_name)).parameters
    defaults = {
        key: parameter.default
        for key, parameter in parameters.items()
        if parameter.default is not parameter.empty
    }
    given = {key: defaults[key] for key in ("lr",) if key in defaults}
    given |= config.get("init_args") or {}
    return {name: class_name} | {
        f"{name}.{key}": value
        for key, value in given.items()
        if key == "lr" or key not in defaults or text(value) != text(defaults[key])
    }


def trainer_settings(path: Path) -> dict[str, Any]:
    """Read what the run's config.yaml, as data, says of trainer, checkpoints and early stopping.

    Args:
        path: The checkpoint.

    Returns:
        Nothing if there is no config.yaml beside it that can be read.
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
        for section, given in sections.items()
        if isinstance(given, dict)
        for name, value in given.items()
    }


def text(value: Any) -> str:
    """Write a setting as a config file does, in one line; the same numbers as the same text."""
    if value is None:
        return DEFAULT
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    dumped: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return dumped.removesuffix("\n").removesuffix("\n...")


def settings_lines(described: dict[str, dict[str, str]]) -> list[str]:
    """Lay out the settings that differ, a column for each network.

    Args:
        described: What `settings` returns of each network, by its letter.
    """
    unknown = [
        label
        for label, known in described.items()
        if not any(name.startswith("trainer.") for name in known)
    ]
    rows = []
    names = dict.fromkeys(name for known in described.values() for name in known)
    groups = list(dict.fromkeys(name.partition(".")[0] for name in names))
    for name in sorted(names, key=lambda name: groups.index(name.partition(".")[0])):
        argument = name.startswith(("optimizer.", "lr_scheduler."))
        absent = DEFAULT if argument else UNKNOWN
        row = [known.get(name, absent) for known in described.values()]
        if len({*row} - {UNKNOWN}) > 1:
            rows.append([name, *row])
    lines = ["settings that differ: none that is known"]
    if rows:
        lines = align_columns([["settings that differ", *described], *rows])
        signs = {DEFAULT: "the default, or none", UNKNOWN: "not known"}
        lines += [
            f"{sign}: {meaning}"
            for sign, meaning in signs.items()
            if any(sign in row for row in rows)
        ]
    if unknown:
        lines.append(
            f"{', '.join(unknown)}: no config.yaml that can be read, so trainer.* is not known"
        )
    return lines


def align_columns(rows: list[list[str]]) -> list[str]:
    """Lay out rows in aligned columns; a long cell goes on in the next line."""
    shown = [
        [cell if len(cell) <= MAX_TEXT else f"{cell[:MAX_TEXT]} …" for cell in row] for row in rows
    ]
    first = max(len(row[0]) for row in shown)
    widest = max((WIDTH - first) // (len(rows[0]) - 1) - 2, 8)
    wrapped = [[[row[0]], *(textwrap.wrap(cell, widest) for cell in row[1:])] for row in shown]
    widths = [
        max(len(part) for cell in column for part in cell) for column in zip(*wrapped, strict=True)
    ]
    return [
        "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
        for row in wrapped
        for parts in zip_longest(*row, fillvalue="")
    ]


def result_lines(right: dict[str, Tensor]) -> list[str]:
    """Lay out the accuracy of each network.

    Args:
        right: Which test images each network classifies correctly, `bool` of shape `(N,)`.
    """
    lines = ["   correct  accuracy, %  95 % interval (Wilson)"]
    for label, hits in right.items():
        correct, total = int(hits.sum()), len(hits)
        low, high = wilson_interval(correct, total)
        accuracy = 100 * correct / total
        lines.append(f"{label}  {correct:>7,}  {accuracy:>11.2f}  {100 * low:.2f}–{100 * high:.2f}")
    return lines


def pair_lines(right: dict[str, Tensor]) -> list[str]:
    """Lay out for each pair of networks whether they differ by more than chance.

    Args:
        right: Which test images each network classifies correctly, `bool` of shape `(N,)`.
    """
    pairs = list(combinations(right, 2))
    counts = [
        (int((right[one] & ~right[other]).sum()), int((right[other] & ~right[one]).sum()))
        for one, other in pairs
    ]
    p_values = [mcnemar(*count) for count in counts]
    adjusted = holm(p_values)
    several = len(pairs) > 1
    lines = ["pair  1st alone  2nd alone  difference, points         p" + "  p (Holm)" * several]
    for (one, other), (first, second), p, judged in zip(
        pairs, counts, p_values, adjusted, strict=True
    ):
        points = 100 * (first - second) / len(right[one])
        better = one if first > second else other
        lines.append(
            f"{one}, {other}  {first:>9,}  {second:>9,}  {points:>+18.2f}  {p_text(p):>8}"
            + f"  {p_text(judged):>8}" * several
            + f"  {better} is better, more than chance" * (judged < LIMIT)
            + "  could be chance" * (judged >= LIMIT)
        )
    adjustment = f", adjusted for {len(pairs)} pairs by Holm," * several
    return [
        *lines,
        "1st alone: images that only the first of the pair classifies correctly",
        f"p: exact McNemar test; below {LIMIT}{adjustment} the difference is more than chance",
        "This is about these networks on these images; whether a setting is better in general,",
        "only several seeds of each can tell.",
    ]


def p_text(p: float) -> str:
    """Write a p-value in eight characters or fewer."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
