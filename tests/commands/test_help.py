from typing import Any

import pytest
import yaml

from fnn_lightning.commands.help import OPTIONS
from fnn_lightning.commands.main import WITH_TRAINER, main
from fnn_lightning.training.hparams import flatten

Capture = pytest.CaptureFixture[str]
OWN = ("model.", "data.", "checkpoint.", "early_stopping.", "tensorboard.", "ema.")
LEFT_OUT = {"model.multi_step", "checkpoint.mode", "early_stopping.mode"}  # rarely of use
NOT_SETTINGS = {"config", "print_config", "run_folder", "init_from", "find_lr"}


def shown(subcommand: str) -> dict[str, str]:
    """Return the options in the help of a subcommand, with their defaults."""
    groups = OPTIONS[subcommand].values()
    return {name: default for group in groups for name, (default, _) in group.items()}


def output(capsys: Capture, *words: str) -> str:
    with pytest.raises(SystemExit, match="0"):
        main(list(words))
    return capsys.readouterr().out


@pytest.mark.parametrize("subcommand", WITH_TRAINER)
def test_help_fits_a_terminal(subcommand: str, capsys: Capture) -> None:
    text = output(capsys, subcommand, "--help")
    assert len(text.splitlines()) <= 70
    assert max(map(len, text.splitlines())) <= 80
    for name in shown(subcommand):
        assert f"  --{name} " in text
    assert output(capsys, subcommand, "--trainer.max_epochs", "3", "-h") == text


@pytest.mark.parametrize("subcommand", WITH_TRAINER)
def test_help_names_options_that_there_are_and_their_defaults(
    subcommand: str, capsys: Capture
) -> None:
    settings: dict[str, Any] = flatten(yaml.safe_load(output(capsys, subcommand, "--print_config")))
    settings |= {"optimizer": "SGD", "optimizer.lr": settings["optimizer.init_args.lr"]}
    settings |= {"trainer.max_epochs": 5}  # if nothing else ends the run
    own = {name for name in settings if name.startswith(OWN)}
    options = shown(subcommand)
    assert options.keys() - NOT_SETTINGS <= settings.keys()
    if subcommand == "fit":
        assert own - options.keys() == LEFT_OUT
        assert settings["optimizer.class_path"] == "torch.optim.SGD"
    for name, default in options.items():
        if default and name not in NOT_SETTINGS:
            assert settings[name] == yaml.safe_load(default), name


def test_help_all_lists_the_trainers_options_too(capsys: Capture) -> None:
    text = output(capsys, "fit", "--help_all")
    assert "--trainer.gradient_clip_val" in text
    assert text.startswith("usage: python -m fnn_lightning ")
