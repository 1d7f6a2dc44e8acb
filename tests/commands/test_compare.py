import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fnn_lightning.commands.compare_settings import collect_settings
from fnn_lightning.commands.compare_tables import pair_lines, settings_lines
from fnn_lightning.commands.main import main
from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.runs.checkpoint_io import ema_decay
from fnn_lightning.runs.load import load_trained
from tests.support import TEST_SIZE, blind_checkpoint

Capture = pytest.CaptureFixture[str]
Save = Callable[..., str]
CHANCE, MORE = "could be chance", "more than chance"


@pytest.fixture
def save(tmp_path: Path, data_dir: str) -> Save:
    """Return a function that writes a checkpoint of a network that is blind to some digits."""

    def write(name: str, blind: tuple[int, ...] = (), **data: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(blind_checkpoint(blind, **{"data_dir": data_dir, **data}), path)
        return str(path)

    return write


def compare(*argv: str) -> None:
    main(["compare", *argv])


def test_accuracies_and_p_value_of_a_pair_are_exact(
    save: Save, data_dir: str, capsys: Capture
) -> None:
    data = MNISTDataModule(data_dir=data_dir)
    data.setup("test")
    zeros, ones, twos = (int((data.predict_dataloader().labels == n).sum()) for n in range(3))
    first, second = save("a.ckpt", blind=(0,)), save("b.ckpt", blind=(0, 1, 2))
    before = {path for path in Path().glob("**/*") if path.is_file()}
    compare(second, first)
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.splitlines()[:3] == [f"A  {second}", f"B  {first}", ""]
    assert f"{TEST_SIZE} test images of mnist" in output.out
    # 100 images: as many per cent as images
    few, many = TEST_SIZE - zeros - ones - twos, TEST_SIZE - zeros
    results = re.findall(r"^([AB]) +(\d+) +(\d+\.\d\d)  ", output.out, re.MULTILINE)
    assert results == [("A", f"{few}", f"{few}.00"), ("B", f"{many}", f"{many}.00")]
    (pair,) = re.findall(r"^A, B +(\d+) +(\d+) +([-+\d.]+) +([\d.< ]+?)  (.*)$", output.out, re.M)
    assert pair[:3] == ("0", f"{ones + twos}", f"-{ones + twos}.00")
    p = 2 * 0.5 ** (ones + twos)
    assert pair[3:] == ("< 0.0001" if p < 1e-4 else f"{p:.4f}", f"B is better, {MORE}")
    assert {path for path in Path().glob("**/*") if path.is_file()} == before


def test_several_pairs_are_judged_by_the_adjusted_values() -> None:
    everything = torch.ones(50, dtype=torch.bool)
    six_wrong = everything.clone()
    six_wrong[:6] = False
    seven_wrong = everything.clone()
    seven_wrong[-7:] = False
    two = pair_lines({"A": everything, "B": six_wrong})
    assert two[1].split() == [
        "A,",
        "B",
        "6",
        "0",
        "+12.00",
        "0.0312",
        *f"A is better, {MORE}".split(),
    ]
    assert not any("Holm" in line for line in two)
    three = pair_lines({"A": everything, "B": six_wrong, "C": seven_wrong})
    # 2/2⁶ and 2/2⁷; 6 against 7 of 13: p is 1. 3 × 2/2⁷ = 0.0469, 2 × 2/2⁶ = 0.0625
    assert [line.split()[2:7] for line in three[1:4]] == [
        ["6", "0", "+12.00", "0.0312", "0.0625"],
        ["7", "0", "+14.00", "0.0156", "0.0469"],
        ["7", "6", "+2.00", "1.0000", "1.0000"],
    ]
    endings = (CHANCE, f"A is better, {MORE}", CHANCE)
    assert all(line.endswith(end) for line, end in zip(three[1:4], endings, strict=True))
    assert any("adjusted for 3 pairs by Holm" in line for line in three)


def test_settings_that_differ_are_shown_and_defaults_are_not(
    data_dir: str, capsys: Capture
) -> None:
    small = ["fit", "--data.data_dir", data_dir, "--trainer.max_epochs", "2"]
    main([*small, "--model.hidden_dims", "[8]", "--run_folder", "a"])
    main([*small, "--model.hidden_dims", "[8, 8]", "--run_folder", "b", "--optimizer", "Adam",
          "--optimizer.betas", "[0.8, 0.999]", "--lr_scheduler", "StepLR",
          "--lr_scheduler.step_size", "1", "--seed_everything", "3", "--data.batch_size", "50",
          "--early_stopping.patience", "9", "--trainer.log_every_n_steps", "2"])  # fmt: skip
    # the first run again, as trained from Python: the defaults, written differently
    checkpoint = torch.load("a/checkpoints/last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["optimizer"] = None
    checkpoint["hyper_parameters"]["pixel_mean"] = 0
    torch.save(checkpoint, "a/checkpoints/best.ckpt")
    main(["test", "--ckpt_path", "b/checkpoints/last.ckpt"])
    tested = re.search(r"Got (\d+) / 100 correct", capsys.readouterr().out)
    assert tested

    compare("a", "b", "a/checkpoints/last.ckpt")
    output = capsys.readouterr().out
    assert re.search(rf"^B +{tested[1]} ", output, re.MULTILINE)
    table = output.split("\n\n")[1].splitlines()
    assert [re.split(" {2,}", line) for line in table] == [
        ["settings that differ", "A", "B", "C"],
        ["model.hidden_dims", "[8]", "[8, 8]", "[8]"],
        ["optimizer", "SGD", "Adam", "SGD"],
        ["optimizer.lr", "0.1", "0.001", "0.1"],
        ["optimizer.betas", "–", "[0.8, 0.999]", "–"],
        ["lr_scheduler", "–", "StepLR", "–"],
        ["lr_scheduler.step_size", "–", "1", "–"],
        ["seed_everything", "0", "3", "0"],
        ["data.batch_size", "100", "50", "100"],
        ["steps", "6", "12", "6"],
        ["early_stopping.patience", "–", "9", "–"],
        ["–: the default, or none"],
    ]


def test_nested_settings_are_compared_one_by_one(save: Save) -> None:
    paths = [save("a.ckpt"), save("b.ckpt")]
    for path, rotation, decay in zip(paths, (0.0, 15.0), (None, 0.99), strict=True):
        trained = load_trained(path)
        augmentation = {"rotation": rotation, "scale": 0.1}
        trained.checkpoint["datamodule_hyper_parameters"]["augmentation"] = augmentation
        if decay is not None:
            trained.checkpoint["callbacks"] = {"EMA": {"decay": decay}}
        settings = collect_settings(trained)
        assert settings["data.augmentation.rotation"] == f"{rotation:g}"
        assert settings["data.augmentation.scale"] == "0.1"
        assert settings["ema.decay"] == f"{decay or 0:g}"
        assert "data.augmentation" not in settings


@pytest.mark.parametrize("callbacks", [None, [], {}, {"EMA": None}, {"EMA": {}}])
def test_without_an_ema_its_decay_is_zero(callbacks: Any) -> None:
    assert ema_decay({"callbacks": callbacks}) == ema_decay({}) == 0.0


@pytest.mark.parametrize(
    "config",
    [
        None,
        "trainer: [1",
        "trainer:\n",
        "- 1\n",
        "&a [*a]: 1\n",
        "trainer: !!python/name:os.system\n",
    ],
)
def test_an_unreadable_config_leaves_the_trainer_unknown(
    save: Save, capsys: Capture, config: str | None
) -> None:
    readable, unreadable = (save(f"{name}/checkpoints/last.ckpt") for name in ("good", "bad"))
    Path("good/config.yaml").write_text("trainer:\n  max_epochs: 3\n")
    if config is not None:
        Path("bad/config.yaml").write_text(config)
    compare(readable, unreadable)
    output = capsys.readouterr().out
    assert "settings that differ: none known" in output
    assert "\nB: no readable config.yaml, so trainer.* is not known\n" in output


def test_teachers_are_among_the_settings(save: Save, tmp_path: Path, capsys: Capture) -> None:
    paths = [save(f"{name}/checkpoints/last.ckpt") for name in "ab"]
    for name, teachers in (("a", ""), ("b", "x, y")):
        text = f"model: {{teachers: [{teachers}]}}\ntrainer: {{max_epochs: 1}}\n"
        (tmp_path / name / "config.yaml").write_text(text)
    compare(*paths)
    assert re.search(r"^model.teachers +\[\] +\[x, y\]$", capsys.readouterr().out, re.MULTILINE)


def test_unknown_settings_are_marked() -> None:
    known = {"A": {"trainer.max_epochs": "3"}, "B": {}, "C": {"trainer.max_epochs": "4"}}
    lines = settings_lines(known)
    assert lines[1].split() == ["trainer.max_epochs", "3", "?", "4"]
    assert lines[2] == "?: not known"
    assert lines[3].startswith("B: no readable config.yaml")


def test_long_settings_stay_within_a_line() -> None:
    dims = "[" + ", ".join(["1024"] * 9) + "]"
    known = {
        label: {
            "model.hidden_dims": f"{dims}{label}",
            "trainer.reload_dataloaders_every_n_epochs": label,
        }
        for label in "ABCDE"
    }
    lines = settings_lines(known)[:-1]
    assert max(map(len, lines)) <= 100
    assert " ".join(lines).count("1024,") == 5 * 8
    assert {f"1024]{label}" for label in "ABCDE"} <= set(" ".join(lines).split())


def test_data_dir_replaces_that_of_the_checkpoints(
    save: Save, data_dir: str, tmp_path: Path, capsys: Capture
) -> None:
    gone = str(tmp_path / "gone")
    paths = [save(name, data_dir=gone) for name in ("a.ckpt", "b.ckpt")]
    compare(*paths, "--data_dir", data_dir)
    assert "A, B          0          0               +0.00    1.0000  could be chance" in (
        capsys.readouterr().out
    )
    assert not Path(gone).exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "Expected 2 to 26 runs, but got 0: python -m fnn_lightning compare"),
        (["a.ckpt"], "Expected 2 to 26 runs, but got 1"),
        (["a.ckpt"], "compare RUN_A RUN_B; the last runs: lightning_logs/mine, "
         "lightning_logs/version_1 (newest first)"),
        (["a.ckpt"] * 27, "Expected 2 to 26 runs, but got 27"),
        (["a.ckpt", "b.ckpt", "./a.ckpt"], "Expected different checkpoints, but got a.ckpt twice"),
        (["a.ckpt", "link.ckpt"], "Expected different checkpoints, but got link.ckpt twice"),
        (["a.ckpt", "digits.ckpt"], "a.ckpt of mnist and digits.ckpt of digits"),
        (["a.ckpt", "missing"], "Expected a checkpoint, but got 'missing'"),
        (["a.ckpt", "tiny"], "but tiny holds no checkpoints/last.ckpt"),
        (["a.ckpt", "~no such user/run"], "Could not determine home directory"),
        (["a.ckpt", "tensor.ckpt"], "What is stored in tensor.ckpt does not fit"),
        (["a.ckpt", "--data_dri", "x"], "Unknown option data_dri; did you mean data_dir?"),
        (["a.ckpt", "--data_dir", "x", "b.ckpt"],
         "Unexpected argument b.ckpt: positional arguments come before options"),
        (["a.ckpt", "b.ckpt", "--data_dir", "none"], "MNIST is incomplete"),
    ],
)  # fmt: skip
def test_bad_arguments_end_in_one_line(
    save: Save, capsys: Capture, argv: list[str], message: str
) -> None:
    for name in ("a.ckpt", "b.ckpt"):
        save(name)
    save("digits.ckpt", dataset="digits")
    save("tensor.ckpt", seed=torch.zeros(2))
    Path("link.ckpt").symlink_to("a.ckpt")
    for seconds, run in enumerate(("version_1", "mine")):
        saved = save(f"lightning_logs/{run}/checkpoints/last.ckpt")
        os.utime(saved, (seconds, seconds))
    with pytest.raises(SystemExit) as stop:
        compare(*argv)
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert message in output.err
    assert output.err.count("\n") == 1


def test_without_any_run_the_message_says_so(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        compare()
    assert capsys.readouterr().err.endswith("RUN_A RUN_B; lightning_logs holds no runs\n")
