"""The scripts, and what a real bash makes of one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fnn_lightning.commands.completion import actions_of
from fnn_lightning.commands.main import SUBCOMMANDS, main
from fnn_lightning.data.datasets import NAMES
from fnn_lightning.network import ACTIVATIONS
from fnn_lightning.training.optim import MONITORED
from tests.support import CONFIGS, refused

# what bash does at TAB; where the function is, it has from `complete` itself
TAB = """
source script
function_of() { while [ "$1" != -F ]; do shift; done; echo "$2"; }
completer=$(function_of $(complete -p fnn))
while IFS= read -r line; do
  COMP_WORDS=($line)
  case $line in *" ") COMP_WORDS+=("") ;; esac
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  $completer 2>/dev/null
  echo "${COMPREPLY[*]}"
done
"""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    main(["completion", shell])
    return capsys.readouterr().out


def test_bash_completes_without_starting_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    Path("script").write_text(script("bash", capsys))
    Path("runs/one").mkdir(parents=True)
    Path("my.yaml").touch()
    Path("notes.txt").touch()
    Path("flowers.npz").touch()
    names = {config.stem for config in CONFIGS.glob("*.yaml")}
    cases = {
        "fnn ": {*SUBCOMMANDS},
        "fnn se": {"seeds"},
        "fnn fit --config ": {*names, "my.yaml", "runs"},
        "fnn fit -c relu_100x": {"relu_100x2", "relu_100x3"},
        "fnn fit --config mnist --model.act": {"--model.activation"},
        "fnn fit --model.activation ": {*ACTIVATIONS},
        "fnn fit --model.batch_norm ": {"true", "false"},
        "fnn fit --checkpoint.monitor ": {*MONITORED},
        "fnn fit --optimizer Ada": {"Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax"},
        "fnn fit --optimizer.mom": {"--optimizer.momentum", "--optimizer.momentum_decay"},
        "fnn fit --data.dataset ": {*NAMES, "flowers.npz", "runs"},
        "fnn seeds 3 --data.dataset emnist_b": {
            "emnist_balanced",
            "emnist_byclass",
            "emnist_bymerge",
        },
        "fnn fit --print_config --find": {"--find_lr"},
        "fnn fit --trainer.callbacks Early": {"EarlyStopping"},
        "fnn fit --run_folder ": {"runs"},
        "fnn test --ckpt_path ": {"runs", "my.yaml", "notes.txt", "flowers.npz", "script"},
        "fnn test --report": {"--report_folder"},
        "fnn validate --help": {"--help", "--help_all"},
        "fnn predict --data.images notes.txt my": {"my.yaml"},
        "fnn compare runs/one runs/": {"runs/one"},
        "fnn seeds 3 --te": {
            "--test",
            "--tensorboard.enabled",
            "--tensorboard.histograms",
            "--tensorboard.projector",
        },
        "fnn seeds 3 --run_f": set(),  # of `fit`, but not for `seeds`
        "fnn sweep --find": set(),
        "fnn sweep --s": {"--space", "--storage", "--seed_everything"},
        "fnn runs ru": {"runs"},
        "fnn runs runs --sort val": {"val_acc"},
        "fnn runs --f": {"--filter"},
        "fnn export --o": {"--output"},
        "fnn configs log": {"logistic"},
        "fnn completion ": {"bash", "zsh"},
    }
    run = subprocess.run(
        [bash, "--norc", "-c", TAB],
        input="".join(f"{line}\n" for line in cases),
        env={"PATH": "/nowhere"},  # there is no program to start
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    answers = [set(line.split(" ")) - {""} for line in run.stdout.splitlines()]
    assert dict(zip(cases, answers, strict=True)) == cases


def test_zsh_gets_a_script_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    text = script("zsh", capsys)
    assert text.startswith("#compdef fnn\n")
    assert '"--config"' in text or "{-c,--config}" in text
    assert ":_fnn_config_files" in text
    assert ":_fnn_dataset_files" in text
    zsh = shutil.which("zsh")
    if zsh is not None:
        subprocess.run([zsh, "-n"], input=text, text=True, check=True)


def test_nothing_internal_is_completed() -> None:
    options = [option for action in actions_of("fit") for option in action.option_strings]
    assert "--model.hidden_dims" in options
    assert not [option for option in options if " " in option]
    assert not {"--model", "--trainer", "--model.optimizer", "--help"} & {*options}


def test_another_shell_or_no_shtab_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Expected `shell` to be one of 'bash', 'zsh', but got fish" in refused(
        ["completion", "fish"], capsys
    )
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "pip install -e '.[completion]'" in refused(["completion", "bash"], capsys)
