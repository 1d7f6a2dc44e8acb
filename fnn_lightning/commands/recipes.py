"""Names the recipe of a run: the config that it was trained with, and what differs from it.

Importing this file must stay quick: no torch.
"""

from collections.abc import Iterable
from functools import cache

import yaml

from fnn_lightning.commands.configs import packaged
from fnn_lightning.commands.help import OPTIONS
from fnn_lightning.runs.records import Loader, flatten
from fnn_lightning.runs.settings import DEFAULT

Settings = dict[str, str]
"""As text, by their names on the command line."""

SECTIONS = ("model", "optimizer", "lr_scheduler", "data")
MAX_CHANGES = 3  # from a packaged config, for a recipe to have its name
# what no result depends on, or what is a run's and not a recipe's
UNNAMED = {
    *("seed_everything", "ckpt_path", "data.data_dir", "data.mirror", "data.bad_files"),
    *("trainer.limit_val_batches", "trainer.check_val_every_n_epoch", "trainer.val_check_interval"),
    *("data.fold", "trainer.limit_test_batches", "trainer.limit_predict_batches"),
    *("trainer.logger", "trainer.log_every_n_steps", "trainer.default_root_dir"),
    *("trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.num_nodes"),
    *("trainer.use_distributed_sampler", "trainer.inference_mode", "trainer.profiler"),
    *("trainer.enable_autolog_hparams", "trainer.enable_checkpointing", "trainer.model_registry"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.detect_anomaly"),
    *("model.num_threads", "model.multi_step", "model.compile"),
    *("checkpoint.every_n_steps", "checkpoint.every_n_minutes", "checkpoint.mode"),
    *("early_stopping.monitor", "early_stopping.mode"),
    *("tensorboard.enabled", "tensorboard.histograms", "tensorboard.projector"),
}
NOTHING = (DEFAULT, "", "0", "false", "[]", "{}")  # the default of what has no other below
# of arguments that the packaged configs leave out, and of settings that `fit --help` does not list
DEFAULTS = {
    **{name: default for group in OPTIONS["fit"].values() for name, (default, _) in group.items()},
    **{
        "model.pixel_std": "1",
        "model.adversarial_steps": "1",
        "trainer.max_steps": "-1",
        "trainer.accumulate_grad_batches": "1",
    },
    **{"optimizer.betas": "[0.9, 0.999]", "optimizer.eps": "1e-08"},
    **{"lr_scheduler.last_epoch": "-1", "lr_scheduler.pct_start": "0.3"},
    **{"lr_scheduler.anneal_strategy": "cos", "lr_scheduler.cycle_momentum": "true"},
    **{"lr_scheduler.base_momentum": "0.85", "lr_scheduler.max_momentum": "0.95"},
    **{"lr_scheduler.div_factor": "25", "lr_scheduler.final_div_factor": "10000"},
}
ADAM_W = {"optimizer.weight_decay": "0.01"}  # Adam and the others have none


def name_recipe(settings: Settings, network: str | None) -> str | None:
    """Name the recipe of a run in a few words.

    Args:
        settings: All settings of the run.
        network: The network in short, if it is known.

    Returns:
        The name of the packaged config that is nearest, with up to three settings that differ from
        it; or the network, and the settings that differ from the defaults. None if nothing is
        known.

    Example:
        >>> name_recipe({"optimizer": "Adam", "optimizer.lr": "0.01"}, "784–10")
        '784–10, Adam, lr 0.01'
    """
    if not settings:
        return None
    changed = off_defaults(settings)
    of_configs = {name: differences(changed, config) for name, config in configs().items()}
    nearest = min(of_configs, key=lambda name: len(of_configs[name]), default="")
    distance = len(of_configs.get(nearest, changed))
    if nearest and (distance == 0 or distance < min(len(changed), MAX_CHANGES + 1)):
        differing = {name: settings.get(name, DEFAULT) for name in of_configs[nearest]}
        return ", ".join([nearest, *map(in_words, differing.items())])
    in_network = ("model.hidden_dims", "model.activation") if network else ()
    shown = {name: changed[name] for name in ordered(changed.keys() - in_network)}
    return ", ".join([network or "defaults", *map(in_words, shown.items())])


def off_defaults(settings: Settings) -> Settings:
    """Return the settings of a run, or of a config, that are not at their defaults."""
    defaults = DEFAULTS | (ADAM_W if settings.get("optimizer") == "AdamW" else {})
    return {
        name: value
        for name, value in settings.items()
        if value != (default := defaults.get(name, ""))
        and not (value in NOTHING and default == "")
        and name not in UNNAMED
    }


def differences(one: Settings, other: Settings) -> list[str]:
    """Return the names of the settings that differ, or that one alone has."""
    return ordered(name for name, _ in one.items() ^ other.items())


def ordered(names: Iterable[str]) -> list[str]:
    """Sort names of settings, each once: those of the network first."""

    def place(name: str) -> tuple[int, str]:
        section = name.partition(".")[0]
        return SECTIONS.index(section) if section in SECTIONS else len(SECTIONS), name

    return sorted({*names}, key=place)


@cache
def configs() -> dict[str, Settings]:
    """Return the settings of the packaged configs that are not the defaults, by their names."""
    texts = {name: path.read_bytes() for name, path in packaged().items()}
    return {name: off_defaults(flatten(yaml.load(text, Loader))) for name, text in texts.items()}


def in_words(setting: tuple[str, str]) -> str:
    """Word a setting.

    >>> in_words(("model.batch_norm", "true")), in_words(("data.augmentation.rotation", "10"))
    ('batch_norm', 'rotation 10')
    """
    name, value = setting
    if name in ("optimizer", "lr_scheduler"):
        return value if value != DEFAULT else f"no {name}"
    section, _, last = name.rpartition(".")
    if last in ("decay", "end", "min_strength"):  # which say too little alone
        last = f"{section.rpartition('.')[2]}.{last}"
    return {"true": last, "false": f"no {last}"}.get(value, f"{last} {value}")
