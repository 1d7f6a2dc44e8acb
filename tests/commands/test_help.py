import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer

from fnn_lightning.commands.help import OPTIONS
from fnn_lightning.commands.help_formatter import HELP
from fnn_lightning.commands.main import COMMAND, SUBCOMMANDS, WITH_TRAINER, WITHOUT_TRAINER, main
from fnn_lightning.training.hparams import flatten
from tests.support import LAST

Capture = pytest.CaptureFixture[str]
OWN = ("model.", "data.", "checkpoint.", "early_stopping.", "tensorboard.", "ema.")
LEFT_OUT = {
    *("model.multi_step", "checkpoint.mode", "early_stopping.mode"),  # rarely of use
    *("checkpoint.every_n_minutes", "early_stopping.min_delta", "early_stopping.monitor"),
    *("model.compile", "model.matmul_precision", "tensorboard.histograms"),  # likewise
    # of recipes for accuracy
    *("model.adversarial_radius", "model.adversarial_steps", "model.teachers"),
    *("model.pixel_std", "data.fold"),  # beside the one that they belong to
    "tensorboard.projector",  # in the help of `test`, which it is for
}
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


@pytest.mark.parametrize("subcommand", WITH_TRAINER)
def test_help_all_is_plain_text_that_fits_a_terminal(
    subcommand: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = output(capsys, subcommand, "--help_all")
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith(f"usage: {COMMAND} {subcommand} [options]\n")
    for word in ("--trainer.gradient_clip_val", "--ckpt_path", "--ema.decay"):
        assert f"  {word}" in text
    for word in ("<class", "fnn_lightning.", "subclass", ":param", "``", "1000", "--> ", "null)"):
        assert word not in text, word
    words = " ".join(text.split())
    assert "max_time is given. (int; default: 5)" in words
    assert "(default: SGD, lr 0.1) Classes: ASGD, Adadelta, Adafactor, Adagrad, Adam," in words
    assert "GradientAccumulationScheduler, LearningRateMonitor" in words
    assert "-engine |" in words, "no word is divided"
    assert "16 | transformer-engine |" in words


@pytest.mark.parametrize("subcommand", WITHOUT_TRAINER)
def test_help_of_the_other_subcommands_fits_a_terminal(
    subcommand: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = output(capsys, subcommand, "--help")
    assert text.startswith(f"usage: {COMMAND} {subcommand} ")
    assert max(map(len, text.splitlines())) <= 80
    assert "type:" not in text
    assert "null" not in text


def test_every_option_of_the_trainer_is_described_as_it_is_here() -> None:
    described = {name for name in HELP if name.startswith("trainer.")}
    assert described == {f"trainer.{name}" for name in inspect.signature(Trainer).parameters}


def test_help_of_the_command_line_lists_the_subcommands(capsys: Capture) -> None:
    main([])
    text = capsys.readouterr().out
    main(["--help_all"])
    assert capsys.readouterr().out == text
    assert text.startswith(f"usage: {COMMAND} SUBCOMMAND ")
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"  {name} " in text for name in SUBCOMMANDS)


def test_config_of_a_run_says_how_long_it_was(data_dir: str) -> None:
    words = ["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8]", "--run_folder"]
    main([*words, "default"])
    main([*words, "steps", "--trainer.max_steps", "2"])
    lengths = {
        name: yaml.safe_load(Path(name, "config.yaml").read_text())["trainer"]["max_epochs"]
        for name in ("default", "steps")
    }
    assert lengths == {"default": 5, "steps": None}


def test_another_length_takes_the_place_of_the_default_when_a_run_is_resumed(
    data_dir: str, capsys: Capture
) -> None:
    words = ["--data.data_dir", data_dir, "--model.hidden_dims", "[8]"]
    main(["fit", *words])  # 5 epochs of 3 steps
    main(["fit", "--ckpt_path", LAST, "--trainer.max_steps", "20"])
    assert "20 steps in all" in capsys.readouterr().out
