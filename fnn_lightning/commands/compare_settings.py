"""The settings of a trained network that `compare` shows where they differ."""

from pathlib import Path
from typing import Any

import torch
import yaml

from fnn_lightning.runs.checkpoint_io import ema_decay
from fnn_lightning.runs.load import TrainedNetwork, mismatch_error
from fnn_lightning.runs.run_folder import CONFIG, run_folder
from fnn_lightning.runs.settings import class_settings, dotted, to_text

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
    """Read the settings that no checkpoint holds, the Trainer's above all, from config.yaml.

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
        for section in ("trainer", "checkpoint", "early_stopping", "model")
    }
    model = sections.pop("model")
    teachers = model.get("teachers", []) if isinstance(model, dict) else []
    return {"model.teachers": teachers} | {
        f"{section}.{name}": value
        for section, values in sections.items()
        if isinstance(values, dict)
        for name, value in values.items()
    }
