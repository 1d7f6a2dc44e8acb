"""Describes a run to its loggers: all its settings, under the same names in every run."""

import json
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.loggers import TensorBoardLogger

from fnn_lightning.data.datasets import DIGITS
from fnn_lightning.runs.loggers import event_writer
from fnn_lightning.training.ema import EMA
from fnn_lightning.training.optim import SGD

NOT_SETTINGS = ("data_dir",)  # of a machine, not of a run
# what the data say about the network, and the default: that of MNIST; no settings of their own
OF_DATA: dict[str, Any] = {"class_names": list(DIGITS), "framing": "mnist"}


class HParams(callbacks.Callback):
    """Logs the settings of the run, for TensorBoard's HParams tab and the like.

    They are those of the module and the data module, the learning rate, and the decay of the EMA.
    Nested settings get dotted names. Every run has the same names, defaults included, so that what
    differs from a default shows as a difference.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        settings = collect_settings(trainer, pl_module)
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings)
                continue
            logger.log_hyperparams(settings, {})  # {} instead of None: no `hp_metric: -1`
            from torch.utils.tensorboard.summary import hparams as hparams_summary  # slow

            # Without the description of the experiment that comes first, TensorBoard works it out
            # of all runs, and the settings that differ are the first columns. The tab shows the
            # newest value of each scalar, so a run can be compared while it trains, and the figures
            # of a later `test` appear too.
            _, *session = hparams_summary(settings, {})  # type: ignore[no-untyped-call]
            for summary in session:
                event_writer(logger.experiment).add_summary(summary)


def collect_settings(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Collect the settings of a run as numbers and texts, under the same names in every run."""
    settings = {name: value for name, value in module.hparams.items() if name not in OF_DATA}
    hidden_dims = list(settings.get("hidden_dims", ()))
    for name in ("optimizer", "lr_scheduler"):
        config = settings.get(name) or (SGD if name == "optimizer" else {})
        if not isinstance(config, Mapping):  # an argument of a derived module
            continue
        settings[name] = str(config.get("class_path", "none")).rpartition(".")[2]
        # one text, since another class has other arguments
        settings[f"{name}_args"] = json.dumps(config.get("init_args") or {})
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    data = {} if datamodule is None else dict(datamodule.hparams)
    averaging = [each for each in trainer.callbacks if isinstance(each, EMA)]  # type: ignore[attr-defined]
    return {
        "depth": len(hidden_dims),
        "width": max(hidden_dims, default=0),
        "lr": trainer.optimizers[0].defaults.get("lr", "none"),
        "ema.decay": averaging[0].decay if averaging else 0.0,
        **flatten_settings(settings),
        **flatten_settings(
            {name: value for name, value in data.items() if name not in NOT_SETTINGS}
        ),
    }


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names; tuples become lists, as in a checkpoint.

    >>> flatten({"augmentation": {"shift": 0.5}, "size": (3, 4)}, "data.")
    {'data.augmentation.shift': 0.5, 'data.size': [3, 4]}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def flatten_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested settings to dotted names, and turn what is no number or text into a text.

    >>> flatten_settings({"a": {"b": 1}, "dims": [3, 4], "c": None})
    {'a.b': 1, 'dims': '[3, 4]', 'c': 'none'}
    """

    def as_scalar(value: Any) -> Any:
        if value is None:
            return "none"
        return value if isinstance(value, bool | int | float | str) else str(value)

    return {name: as_scalar(value) for name, value in flatten(settings).items()}
