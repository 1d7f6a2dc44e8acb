import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fnn_lightning.commands.recipes import name_recipe, off_defaults
from fnn_lightning.evaluation.run_card import section_defaults
from fnn_lightning.runs.records import flatten
from fnn_lightning.runs.settings import to_text
from fnn_lightning.training.hparams import OF_DATA
from fnn_lightning.training.optim import SGD
from tests.support import CONFIGS


def all_settings(config: dict[str, Any]) -> dict[str, str]:
    """Return the settings of a run with a config, as its config.yaml holds them all."""
    values: dict[str, Any] = {"seed_everything": 7, "trainer.max_epochs": 5}
    for section in section_defaults().values():
        values = {**section, **values}
    values = {name: value for name, value in values.items() if value is not inspect.Parameter.empty}
    for linked in ("data.seed", *(f"model.{name}" for name in OF_DATA)):
        values.pop(linked, None)
    settings = {
        name: to_text(list(value) if isinstance(value, tuple) else value)
        for name, value in values.items()
    }
    config = {"optimizer": SGD, **config}
    for name, module in (("optimizer", torch.optim), ("lr_scheduler", torch.optim.lr_scheduler)):
        if config.get(name):
            class_name = config[name]["class_path"].rpartition(".")[2]
            parameters = inspect.signature(getattr(module, class_name)).parameters.items()
            arguments = {
                key: list(each.default) if isinstance(each.default, tuple) else each.default
                for key, each in parameters
                if each.default is not each.empty
            }
            settings |= flatten({name: {"class_path": class_name, "init_args": arguments}})
    return {**settings, **flatten(config)}


def test_no_setting_is_off_its_default_in_a_run_without_options() -> None:
    assert off_defaults(all_settings({})) == {}
    digits = all_settings({"data": {"dataset": "digits"}})
    assert name_recipe(digits, "784–100–10 relu") == "784–100–10 relu, dataset digits"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_run_with_a_packaged_config_has_its_name(path: Path) -> None:
    settings = all_settings(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert name_recipe(settings, "784–10") == path.stem
    if len(off_defaults(settings)) > 2:
        changed = {**settings, "model.dropout": "0.7", "data.train_size": "100"}
        assert name_recipe(changed, "784–10") == f"{path.stem}, dropout 0.7, train_size 100"


def test_what_no_config_is_near_is_described() -> None:
    config = {
        "model": {"hidden_dims": [30], "batch_norm": True, "dropout": 0.5, "warmup": 0.1},
        "optimizer": {"class_path": "torch.optim.RMSprop", "init_args": {"lr": 0.01}},
        "ema": {"decay": 0.9},
    }
    assert name_recipe(flatten(config), "784–30–10 relu") == (
        "784–30–10 relu, batch_norm, dropout 0.5, warmup 0.1, RMSprop, lr 0.01, ema.decay 0.9"
    )
    assert name_recipe({}, None) is None
