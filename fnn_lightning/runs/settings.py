"""Settings of a run as text, by their names on the command line."""

import inspect
from types import ModuleType
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:  # help comes without importing torch
    from fnn_lightning.training.optim import ClassConfig

DEFAULT = "–"
MAX_EPOCHS = 5  # unless something else ends the run
# of the Trainer, where they are not Lightning's
TRAINER_DEFAULTS = {"num_sanity_val_steps": 0, "enable_model_summary": False}


def dotted(section: str, values: dict[str, Any]) -> dict[str, Any]:
    """Name settings as on the command line, with those of a group on their own.

    Groups within groups stay whole: a damaged checkpoint can nest them without end.

    Example:
        >>> dotted("data", {"batch_size": 100, "augmentation": {"rotation": 15.0}})
        {'data.batch_size': 100, 'data.augmentation.rotation': 15.0}
    """
    named: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            named |= {f"{section}.{name}.{key}": part for key, part in value.items()}
        else:
            named[f"{section}.{name}"] = value
    return named


def class_settings(name: str, config: "ClassConfig | None", module: ModuleType) -> dict[str, Any]:
    """Name the class of an optimiser or a scheduler, and those of its arguments that matter.

    Args:
        name: `optimizer` or `lr_scheduler`.
        config: Its class and arguments; None if there is none.
        module: The module of torch that defines the class.

    Returns:
        The class by `name`, and `lr` and all arguments that are not at their defaults.

    Example:
        >>> import torch
        >>> config = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}
        >>> class_settings("optimizer", config, torch.optim)
        {'optimizer': 'SGD', 'optimizer.lr': 0.001, 'optimizer.momentum': 0.9}
    """
    if config is None:
        return {name: None}
    class_name = config["class_path"].rpartition(".")[2]
    parameters = inspect.signature(getattr(module, class_name)).parameters
    defaults = {
        key: parameter.default
        for key, parameter in parameters.items()
        if parameter.default is not parameter.empty
    }
    arguments = {key: defaults[key] for key in ("lr",) if key in defaults}
    arguments |= config.get("init_args") or {}
    return {name: class_name} | {
        f"{name}.{key}": value
        for key, value in arguments.items()
        if key == "lr" or key not in defaults or to_text(value) != to_text(defaults[key])
    }


def to_text(value: Any) -> str:
    """Write a setting in one line of YAML; equal numbers become the same text.

    Example:
        >>> to_text(1.0), to_text(1), to_text([100, 50]), to_text(None)
        ('1', '1', '[100, 50]', '–')
    """
    if value is None:
        return DEFAULT
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    dumped: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return dumped.removesuffix("\n").removesuffix("\n...")
