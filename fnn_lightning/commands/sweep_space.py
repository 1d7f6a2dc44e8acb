"""The search space of `sweep`: read from YAML, as distributions of Optuna."""

import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fnn_lightning.errors import InputError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# the options of `fit` that `sweep` sets itself
RESERVED = ("--run_folder", "--ckpt_path", "--print_config", "--checkpoint.monitor")

Space = dict[str, "BaseDistribution"]
"""What each option is drawn from. Choices are strings, as they follow the option."""


def read_space(path: Path) -> Space:
    """Read a search space: a YAML mapping from options of `fit` to the values to draw from.

    The values are `{choices: […]}`, or `{low: …, high: …}` with an optional `log: true` or
    `step: …`; they are integers if both bounds are. `depth` and `width`, the number and width of
    the hidden layers, together stand for `model.hidden_dims`.

    Raises:
        InputError: If the file is not such a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"Expected --space to be a YAML file, but got {str(path)!r}: {error.strerror}"
        ) from error
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"Expected {path} to be a YAML file, but it is not: {error}") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"Expected {path} to map options to values, but got {content!r:.100}")
    space = {str(name): make_distribution(str(name), entry) for name, entry in content.items()}
    for name in space:
        if f"--{name}" in RESERVED or name in ("config", "help", "data.folds", "data.fold"):
            raise InputError(f"Expected no `{name}` in {path}: it cannot be searched")
    check_hidden_dims(space, path)
    return space


def check_hidden_dims(space: Space, path: Path) -> None:
    """Check that `depth` and `width` come together, without `model.hidden_dims`, and fit.

    Raises:
        InputError: If they do not.
    """
    dims = {"depth", "width"} & space.keys()
    if len(dims) == 1 or (dims and "model.hidden_dims" in space):
        raise InputError(
            f"Expected `depth` and `width` together, or `model.hidden_dims` instead, in {path}"
        )
    for name, least in (("depth", 0), ("width", 1)):
        if name in dims and not holds_integers_from(space[name], least):
            raise InputError(f"Expected `{name}` in {path} to be integers from {least} up")


def make_distribution(name: str, entry: Any) -> "BaseDistribution":
    """Make Optuna's distribution from an entry of a search space.

    Args:
        name: The option, for messages.
        entry: The values to draw from, as in the YAML file.

    Raises:
        InputError: If the entry has another form.
    """
    keys = set(entry) if isinstance(entry, dict) else set()
    if keys == {"choices"}:
        return categorical(name, entry["choices"])
    if {"low", "high"} <= keys <= {"low", "high", "log", "step"}:
        return interval(name, entry)
    raise InputError(
        f"Expected `{name}` in the space to be {{choices: […]}} or {{low: …, high: …}}, with "
        f"log: true or step: …, but got {entry!r:.200}"
    )


def categorical(name: str, choices: Any) -> "BaseDistribution":
    """Make the distribution of `{choices: […]}`.

    Raises:
        InputError: If the choices are not a list of different values.
    """
    from optuna.distributions import CategoricalDistribution

    if not isinstance(choices, list) or not choices:
        raise InputError(f"Expected `choices` of `{name}` to be a list, but got {choices!r}")
    texts = [to_argument(choice) for choice in choices]
    if len(set(texts)) < len(texts):
        raise InputError(f"Expected each of `choices` of `{name}` once, but got {choices}")
    return CategoricalDistribution(texts)


def interval(name: str, entry: dict[str, Any]) -> "BaseDistribution":
    """Make the distribution of `{low: …, high: …}`, with `log` or `step` if given.

    Raises:
        InputError: If the numbers do not make a range.
    """
    from optuna.distributions import FloatDistribution, IntDistribution

    low, high = (finite_number(entry[key], f"{key}` of `{name}") for key in ("low", "high"))
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"Expected `log` of `{name}` to be true or false, but got {log!r}")
    if low > high:
        raise InputError(f"Expected `low` of `{name}` to be at most {high}, but got {low}")
    if log and low <= 0:
        raise InputError(f"Expected `low` of `{name}` to be positive with log, but got {low}")
    step = finite_number(entry["step"], f"step` of `{name}") if "step" in entry else None
    if step is not None and (log or step <= 0):
        raise InputError(f"Expected `step` of `{name}` to be positive, and without log")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a step that does not divide the range
            if not (isinstance(low, int) and isinstance(high, int)):
                return FloatDistribution(low, high, log=log, step=step)
            if isinstance(step, float):
                raise ValueError("between integers the step has to be an integer")
            return IntDistribution(low, high, log=log, step=step or 1)
    except (UserWarning, ValueError) as error:
        raise InputError(f"Expected another range of `{name}`: {error}") from error


def finite_number(value: Any, name: str) -> int | float:
    """Return a value from YAML as a number; YAML reads 1e-4, without a dot, as a string.

    Raises:
        InputError: If it is not a finite number.

    Example:
        >>> finite_number("1e-4", "low")
        0.0001
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        result = float(value) if isinstance(value, float | str) else math.nan
    except ValueError:
        result = math.nan
    if not math.isfinite(result):
        raise InputError(f"Expected `{name}` to be a number, but got {value!r}")
    return result


def to_argument(value: Any) -> str:
    """Write a value as it follows an option on the command line.

    Example:
        >>> to_argument("relu"), to_argument([100, 50]), to_argument(None)
        ('relu', '[100, 50]', 'null')
    """
    return value if isinstance(value, str) else json.dumps(value, default=str)


def fit_options(params: dict[str, Any]) -> list[str]:
    """Turn a trial's parameters into options of `fit`.

    Example:
        >>> fit_options({"optimizer.lr": 0.1, "depth": 2, "width": 30})
        ['--optimizer.lr=0.1', '--model.hidden_dims=[30, 30]']
    """
    options = dict(params)
    if "depth" in options:
        options["model.hidden_dims"] = int(options.pop("depth")) * [int(options.pop("width"))]
    return [f"--{name}={to_argument(value)}" for name, value in options.items()]


def first_value(distribution: "BaseDistribution") -> Any:
    """Return the first choice, or the lower bound."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low


def holds_integers_from(distribution: "BaseDistribution", least: int) -> bool:
    """Tell whether all values of a distribution are integers, none of them below `least`."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        choices = map(str, distribution.choices)
        return all(choice.isdecimal() and int(choice) >= least for choice in choices)
    return isinstance(distribution, IntDistribution) and distribution.low >= least


def space_yaml(space: Space) -> str:
    """Describe a search space as YAML, to compare it with another."""
    from optuna.distributions import distribution_to_json

    entries = {
        name: json.loads(distribution_to_json(distribution)) for name, distribution in space.items()
    }
    return str(yaml.safe_dump(entries, sort_keys=False))
