"""What a run was, for its report: network, optimiser, recipe, and settings off the defaults."""

import inspect
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer

from fnn_lightning.datamodule import NO_AUGMENTATION, MNISTDataModule
from fnn_lightning.evaluation.tensorboard import TensorBoardPlots
from fnn_lightning.lit_module import NETWORK_DEFAULTS, FNNLitModule
from fnn_lightning.runs.checkpoint_io import ema_decay
from fnn_lightning.runs.run_folder import CONFIG
from fnn_lightning.runs.settings import DEFAULT, TRAINER_DEFAULTS, class_settings, dotted, to_text
from fnn_lightning.training.checkpointing import RunCheckpoint, RunEarlyStopping
from fnn_lightning.training.hparams import OF_DATA
from fnn_lightning.training.optim import SGD

MAX_LENGTH = 300  # characters; a config from elsewhere can hold settings of any length
# how the card words settings of the model that are not at their defaults
TECHNIQUES = {
    "batch_norm": "batch normalisation",
    "dropout": "dropout {}",
    "input_dropout": "input dropout {}",
    "label_smoothing": "label smoothing {}",
    "keep_hardest": "steps on the hardest {} of each batch",
    "adversarial_radius": "adversarial examples at a distance of {}",
    "adversarial_steps": "found in {} steps",
}


def config_text(run: Path | None, checkpoint: dict[str, Any]) -> str:
    """Return the run's config.yaml or, without one, the checkpoint's hyperparameters as YAML."""
    if run is not None and (run / CONFIG).is_file():  # some loggers have a folder of their own
        return (run / CONFIG).read_text(encoding="utf-8", errors="replace")
    stored = checkpoint["hyper_parameters"]
    model = {name: value for name, value in stored.items() if name not in OF_DATA}
    data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    settings = {
        "seed_everything": data.pop("seed", 0),
        "optimizer": model.pop("optimizer", None),
        "lr_scheduler": model.pop("lr_scheduler", None),
        "model": model,
        "data": data,
        "ema": {"decay": ema_decay(checkpoint)},
    }
    plain = json.loads(json.dumps(settings, default=str))
    return str(yaml.safe_dump(plain, sort_keys=False))


def run_card(
    module: FNNLitModule, checkpoint: dict[str, Any], fit: dict[str, Any]
) -> dict[str, str]:
    """Describe a trained network and how it was trained, in a few lines.

    Args:
        module: The network.
        checkpoint: Its checkpoint.
        fit: What `metrics.json` holds of the run's `fit`; empty if that is not known.

    Returns:
        Lines of the card, by their names.
    """
    optim = module.optim
    optimizer = {"optimizer": "", "optimizer.lr": optim.lr}
    optimizer |= class_settings("optimizer", optim.optimizer, torch.optim)
    if optim.replaces_lr:
        del optimizer["optimizer.lr"]  # the schedule has another
    schedule = "constant learning rate"
    if optim.lr_scheduler:
        settings = class_settings("schedule", optim.lr_scheduler, torch.optim.lr_scheduler)
        schedule = f"{in_words(settings)}, counted in {optim.lr_interval}s"
    if optim.warmup:
        unit = "steps" if optim.warmup >= 1 else "of the run"
        schedule += f", after a warm-up of {optim.warmup:g} {unit}"
    card = {
        "network": module.network.summary,
        "parameters": f"{sum(each.numel() for each in module.parameters()):,}",
        "optimizer": in_words(optimizer),
        "schedule": schedule,
        "recipe": recipe(module, checkpoint),
    }
    if isinstance(fit.get("step"), int):
        epochs = fit.get("epochs")
        counted = f"{epochs:,} complete, " if isinstance(epochs, int) else ""
        card["epochs"] = f"{counted}{fit['step']:,} steps"
    if isinstance(fit.get("seconds"), int | float):
        card["time"] = f"{fit['seconds']:,} s, since the start or the last resume"
    return {name: text[:MAX_LENGTH] for name, text in card.items()}


def recipe(module: FNNLitModule, checkpoint: dict[str, Any]) -> str:
    """Word what else shaped the training: batches, regularisation, augmentation, EMA."""
    defaults = model_defaults()
    data = checkpoint.get("datamodule_hyper_parameters", {})
    parts = [f"batches of {data['batch_size']}"] if "batch_size" in data else []
    for name, words in TECHNIQUES.items():
        value = module.hparams.get(name, defaults[name])
        if name == "adversarial_steps" and not module.adversarial_examples:
            continue
        if value != defaults[name]:
            parts.append(words.format(to_text(value)))
    augmentation = data.get("augmentation") or {}
    changed = {
        name: augmentation[name]
        for name, default in asdict(NO_AUGMENTATION).items()
        if augmentation.get(name, default) != default
    }
    if changed:
        words = ", ".join(f"{name} {to_text(value)}" for name, value in changed.items())
        parts.append(f"augmentation ({words})")
    if decay := ema_decay(checkpoint):
        parts.append(f"EMA of the weights (decay {decay:g})")
    if "seed" in data:
        parts.append(f"seed {data['seed']}")
    return ", ".join(parts)


def in_words(settings: dict[str, Any]) -> str:
    """Word a class with its arguments.

    Example:
        >>> in_words({"optimizer": "Adam", "optimizer.lr": 0.003, "optimizer.amsgrad": True})
        'Adam, lr 0.003, amsgrad true'
    """
    (_, class_name), *arguments = settings.items()
    words = [f"{name.partition('.')[2]} {to_text(value)}" for name, value in arguments]
    return ", ".join([class_name, *words])


def changed_settings(config: str) -> dict[str, str] | None:
    """Return the settings of a run that differ from the defaults, as text.

    Args:
        config: What `config_text` returned.

    Returns:
        Settings by their names on the command line; None if the config cannot be read.

    Example:
        >>> changed_settings("{data: {batch_size: 32, val_size: null}, model: {dropout: 0.0}}")
        {'data.batch_size': '32'}
    """
    try:
        settings = yaml.safe_load(config)
        if not isinstance(settings, dict):
            return None
        values: dict[str, Any] = {}
        for name, module, default in (
            ("optimizer", torch.optim, SGD),
            ("lr_scheduler", torch.optim.lr_scheduler, None),
        ):
            if (given := settings.get(name, default)) is not None:
                found = class_settings(name, given, module)
                known = class_settings(name, default, module)
                values |= {key: found[key] for key in found if found[key] != known.get(key)}
        for section, defaults in section_defaults().items():
            given = settings.get(section)
            flat = dotted(section, given) if isinstance(given, dict) else {}
            values |= {
                key: value
                for key, value in flat.items()
                if to_text(value) != to_text(defaults.get(key))
            }
        if settings.get("seed_everything", 0) != 0:
            values["seed_everything"] = settings["seed_everything"]
        texts = {str(name): to_text(value)[:MAX_LENGTH] for name, value in values.items()}
        return {name: "null" if text == DEFAULT else text for name, text in texts.items()}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError, yaml.YAMLError):
        return None  # of another version, or not of this project


def section_defaults() -> dict[str, dict[str, Any]]:
    """Return the defaults of each section of a config, by the names of its settings."""
    sections = {
        "model": model_defaults(),
        "data": {
            **arguments_of(MNISTDataModule),
            "augmentation": asdict(NO_AUGMENTATION),
        },
        "trainer": arguments_of(Trainer) | TRAINER_DEFAULTS,
        "checkpoint": arguments_of(RunCheckpoint),
        "early_stopping": arguments_of(RunEarlyStopping),
        "tensorboard": arguments_of(TensorBoardPlots),
        "ema": {"decay": 0.0},
    }
    return {section: dotted(section, defaults) for section, defaults in sections.items()}


def model_defaults() -> dict[str, Any]:
    """Return the defaults of the model's settings, those of the network among them."""
    return {**arguments_of(FNNLitModule), **NETWORK_DEFAULTS}


def arguments_of(kind: type) -> dict[str, Any]:
    """Return the defaults of a class's arguments."""
    parameters = inspect.signature(kind).parameters
    return {name: parameter.default for name, parameter in parameters.items()}
