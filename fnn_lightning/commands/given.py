"""What the user gave: on the command line, in config files, and in the run that is resumed."""

import json
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from fnn_lightning.commands.config_checks import (
    check_stored_class,
    is_data,
    plain,
    stored_augmentation,
)
from fnn_lightning.commands.configs import find_config, nearest_config
from fnn_lightning.errors import InputError
from fnn_lightning.runs.checkpoint_io import ema_decay
from fnn_lightning.runs.files import display_path, quote
from fnn_lightning.runs.load import find_checkpoint, newest_checkpoint
from fnn_lightning.runs.run_folder import BEST, CONFIG, LAST, METRICS, run_folder
from fnn_lightning.runs.settings import MAX_EPOCHS
from fnn_lightning.training.hparams import OF_DATA
from fnn_lightning.training.optim import SGD

# in a run's folder before there is a checkpoint, or whatever becomes of it
WRITTEN = (CONFIG, METRICS, BEST, "report.html", "predictions.csv", "loss.png")


def given_options(argv: list[str]) -> dict[str, Any]:
    """Collect the top-level options that the command line and the config files they name give.

    The parser mixes what the user gave with defaults; this tells them apart. The last value wins.

    Raises:
        InputError: If a config file does not exist or is not YAML.
    """
    given: dict[str, Any] = {}
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        option, equals, rest = word.partition("=")
        value = rest if equals else following
        if option in ("-c", "--config"):
            # null is how a saved config says that something was not given
            given |= {key: value for key, value in read_config(value).items() if value is not None}
        elif option.startswith("--"):
            given[option[2:].removesuffix(".class_path")] = value
    return given


def read_config(path: str) -> dict[str, Any]:
    """Read a config file, a YAML mapping, by its path or by its name in the package."""
    try:
        config = yaml.safe_load(find_config(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"Expected --config to be a YAML file, but got {path!r}: {error.strerror}; "
            f"{nearest_config(path)}"
        ) from error
    except (RecursionError, ValueError, yaml.YAMLError) as error:  # a date like 2001-99-99
        raise InputError(f"Expected {path} to be a YAML file, but it is not: {error}") from error
    if not isinstance(config, dict):
        raise InputError(
            f"Expected {path} to hold settings, `name: value`, but got {reprlib.repr(config):.100}"
        )
    for section in (
        *("trainer", "model", "data"),
        *("checkpoint", "early_stopping", "tensorboard", "ema", "optimizer"),
    ):
        accepted = dict | str if section == "optimizer" else dict
        if section in config and not isinstance(config[section], accepted):
            raise InputError(
                f"Expected `{section}` in {path} to hold settings, `name: value`, "
                f"but got {reprlib.repr(config[section]):.100}"
            )
    data = config.get("data", {})
    if "augmentation" in data and not isinstance(data["augmentation"], dict):
        raise InputError(
            f"Expected `data.augmentation` in {path} to hold settings, `name: value`, "
            f"but got {reprlib.repr(data['augmentation']):.100}"
        )
    # linked: the parser would ignore them here
    linked = {"model": ("optimizer", "lr_scheduler"), "data": ("seed",)}
    for section, names in linked.items():
        for name in names:
            if name in config.get(section, {}):
                instead = "seed_everything" if name == "seed" else name
                raise InputError(
                    f"Expected `{instead}` at the top level of {path}, but got {section}.{name}"
                )
    return config


def in_parsing_order(argv: list[str]) -> list[str]:
    """Put config files first, then the classes of optimiser and schedule, then all other options.

    So options win over config files wherever they stand, and in `--optimizer.lr 0.01 --config FILE`
    the parser knows the optimiser before its learning rate.

    Example:
        >>> in_parsing_order(["fit", "--optimizer.lr=1", "--optimizer", "Adam", "-c", "a.yaml"])
        ['fit', '--config=a.yaml', '--optimizer=Adam', '--optimizer.lr=1']
    """
    early: dict[str, list[str]] = {"config": [], "optimizer": [], "lr_scheduler": []}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        name = "config" if option == "-c" else option.removeprefix("--").removesuffix(".class_path")
        if not option.startswith("-") or name not in early:
            rest.append(word)
            continue
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise InputError(f"Expected a value after {option}, but got none")
        early[name].append(f"--{name}={value}")
    return [*rest[:1], *(word for group in early.values() for word in group), *rest[1:]]


def with_config_texts(argv: list[str]) -> list[str]:
    """Replace the name of each config file by its content, in ASCII.

    The parser takes either, but reads a file in the encoding of the locale, not as UTF-8.
    """
    return [
        f"--config={config_text(value)}" if word == "--config" else f"{word}{equals}{value}"
        for word, equals, value in (word.partition("=") for word in argv)
    ]


def config_text(path: str) -> str:
    """Return the content of a config file that `read_config` accepts, written anew in ASCII."""
    content = find_config(path).read_text(encoding="utf-8")
    return str(yaml.serialize(yaml.compose(content, yaml.SafeLoader), Dumper=yaml.SafeDumper))


def names_a_class(value: Any) -> bool:
    """Tell whether what is given for an optimiser or a scheduler says which class it is."""
    return "class_path" in value if isinstance(value, dict) else value is not None


def gather_images(argv: list[str]) -> list[str]:
    """Write the files after --data.images as one list, which is all that the parser takes."""
    option = "--data.images"
    found: list[str] = []
    rest: list[str] = []
    after_it = False
    for word in argv:
        given = word.removeprefix(f"{option}=")
        if word == option:
            after_it = True
        elif given != word and not given.startswith("[") and given != "null":
            found.append(given)
        elif after_it and not word.startswith("-"):
            found.append(word)
        else:
            after_it = False
            rest.append(word)
    named = option in argv or found
    # a character beyond YAML's escapes stays as it is
    return [*rest, f"{option}={json.dumps(found, ensure_ascii=False)}"] if named else argv


def stored_settings(run: Path, given: Iterable[str] = ()) -> dict[str, Any]:
    """Read how a run was trained, as far as its checkpoints do not say so themselves.

    Args:
        run: Folder of the run.
        given: Names of the options that the user gives, whose stored values are of no interest.

    Raises:
        InputError: If the run's config.yaml names code, by which a folder from a stranger could
            run it; given as --config, it may.
    """
    config = read_config(str(run / CONFIG))
    given = {*given}
    # the default length, which gives way to another in a resumed run as in a new one
    is_default = (config.get("trainer") or {}).get("max_epochs") == MAX_EPOCHS
    if is_default and {"trainer.max_steps", "trainer.max_time"} & given:
        given.add("trainer.max_epochs")
    settings = {}
    for section in ("trainer", "checkpoint", "early_stopping", "tensorboard", "ema"):
        for name, value in (config.get(section) or {}).items():
            is_given = any(re.match(rf"{section}\.{name}\b", option) for option in given)
            if is_given or name == "default_root_dir":  # the run has its folder
                continue
            if not is_data(value):
                raise InputError(
                    f"{run / CONFIG} may name code, as {section}.{name}, which is not run for a "
                    f"checkpoint: add --config {quote(run / CONFIG)} if you trust it"
                )
            settings[f"{section}.{name}"] = value
    # in no checkpoint, since a network is tested without it; but it rounds otherwise
    model = config.get("model") or {}
    settings["model.compile"] = model.get("compile") is True
    if "model.teachers" not in given:  # paths, which are opened as data alone
        teachers = model.get("teachers")
        paths = teachers if isinstance(teachers, list) else []
        settings["model.teachers"] = [str(path) for path in paths]
    return settings


def checkpoint_settings(checkpoint: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Collect the settings of a run that its checkpoint stores, under the names of their options.

    Args:
        checkpoint: What `read_checkpoint` returned.
        given: What `given_options` returned. The arguments of a class that the user names are
            left out: they may be of another class.

    Raises:
        InputError: If one of them names code.
    """
    model = dict(checkpoint["hyper_parameters"])
    data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    augmentation = stored_augmentation(data.pop("augmentation", {}))
    settings = {"seed_everything": data.pop("seed", 0), "ema.decay": ema_decay(checkpoint)}
    for name in ("optimizer", "lr_scheduler"):
        config = model.pop(name, None)
        if config and not names_a_class(given.get(name)):
            check_stored_class(name, config)
            settings[name] = config
    settings |= {f"model.{name}": value for name, value in model.items() if name not in OF_DATA}
    settings |= {f"data.{name}": value for name, value in data.items()}
    return settings | {f"data.augmentation.{name}": value for name, value in augmentation.items()}


def keep_found_lr(config: Namespace, checkpoint: dict[str, Any], given: dict[str, Any]) -> None:
    """Let a command with --find_lr that is started anew resume with the rate that it has found.

    Args:
        config: The settings of `fit`, which get the rate.
        checkpoint: What `read_checkpoint` returned.
        given: What `given_options` returned.

    Raises:
        InputError: If --ckpt_path names the checkpoint, and not --run_folder.
    """
    if "ckpt_path" in given:
        raise InputError(
            "Expected --find_lr in a new run only, since a resumed one keeps its learning rate, "
            "but got --ckpt_path too: drop one of them"
        )
    stored = checkpoint["hyper_parameters"].get("optimizer") or SGD
    check_stored_class("optimizer", stored)
    if "lr" in (stored.get("init_args") or {}):
        config.optimizer.init_args.lr = stored["init_args"]["lr"]
    config.model.optimizer = plain(config.optimizer)


def resume_options(ckpt_path: str) -> str:
    """Return the options of `fit` that resume from a checkpoint of a run.

    The run's config is among them if it names code, which is run only if the user says so.
    """
    options = f"--ckpt_path {quote(display_path(ckpt_path))}"
    run = run_folder(ckpt_path)
    if run is not None:
        try:
            stored_settings(run)
        except InputError:
            options += f" --config {quote(display_path(run / CONFIG))}"
    return options


def config_is_given(argv: list[str]) -> bool:
    """Tell whether the command line names a config file.

    >>> config_is_given(["fit", "--config=relu_100.yaml"])
    True
    """
    return any(word.partition("=")[0] in ("-c", "--config") for word in argv)


def find_run(
    subcommand: str, given: dict[str, Any], newest: bool = False
) -> tuple[str | None, Path | None]:
    """Find the checkpoint to load, and the folder of the run to resume in.

    Args:
        subcommand: Only `fit` takes `--run_folder`.
        given: What `given_options` returned.
        newest: Whether the newest run's checkpoint is taken when none is given.

    Returns:
        The checkpoint, None if there is none; the folder, None in a new run and where the
        checkpoint lies in no run.

    Raises:
        InputError: If they cannot be used.
    """
    ckpt_path = given.get("ckpt_path")
    if subcommand == "fit" and None not in (ckpt_path, given.get("init_from")):
        raise InputError(
            "Expected either --ckpt_path, which resumes a run, or --init_from, which starts a new "
            "one from its weights, but got both"
        )
    named = given.get("run_folder") if subcommand == "fit" else None
    if named is None:
        if ckpt_path is None and newest:
            root = given.get("trainer.default_root_dir")
            ckpt_path = newest_checkpoint(str(root or "."))
        if ckpt_path is None:
            return None, None
        found = str(find_checkpoint(str(ckpt_path), resume=subcommand == "fit"))
        return found, run_folder(found)
    if ckpt_path is not None:
        raise InputError(
            "Expected either --run_folder, which resumes from its own last.ckpt, or --ckpt_path, "
            "but got both"
        )
    run = Path(str(named)).expanduser().absolute()
    if run.exists() and not run.is_dir():
        raise InputError(f"Expected --run_folder to be a folder, but got {named}: it is a file")
    if (run / LAST).exists():
        return str(run / LAST), run
    others = [name for name in WRITTEN if (run / name).exists()]
    if others and not (any(run.glob("events*")) and is_config_of_run(run / CONFIG)):
        raise InputError(
            f"Expected --run_folder to be new or the folder of a run, but {named} holds {others[0]}"
            " of something else: name another folder"
        )
    if (run / CONFIG).exists() and given.keys() == {"run_folder"}:
        raise InputError(
            f"Expected a checkpoint in {named}, but it holds none yet: give the settings again, "
            f"as --config {quote(str(Path(str(named)) / CONFIG))}"
        )
    return None, run


def is_config_of_run(path: Path) -> bool:
    """Tell whether a file is the config.yaml of a run: whole, with all the sections of `fit`."""
    try:
        config = read_config(str(path))
    except InputError:
        return False
    return {"seed_everything", "trainer", "model", "data", "checkpoint", "ema"} <= config.keys()


def find_init(subcommand: str, given: dict[str, Any]) -> str | None:
    """Find the checkpoint that a new run takes its first weights from; None if there is none.

    Args:
        subcommand: Only `fit` takes `--init_from`.
        given: What `given_options` returned.

    Raises:
        InputError: If the user names a folder without one.
    """
    named = given.get("init_from") if subcommand == "fit" else None
    return None if named is None else str(find_checkpoint(named))
