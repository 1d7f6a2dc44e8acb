import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from fnn_lightning import FNNLitModule, __version__
from fnn_lightning.commands.given import resume_options
from fnn_lightning.commands.hints import ANSWERS
from fnn_lightning.commands.lightning_cli import FNNCLI
from fnn_lightning.commands.main import SUBCOMMANDS, main
from fnn_lightning.training.checkpointing import RunCheckpoint
from fnn_lightning.training.train_log import TrainLog
from tests.forks import StartFork
from tests.support import LAST, RUN, TEST_SIZE, ended, fit, refused, scalars, write_tiny_files

Capture = pytest.CaptureFixture[str]


def files() -> set[Path]:
    return {path for path in Path().glob("**/*") if path.is_file()}


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train once with the defaults, in a folder of which each test gets a copy."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit(write_tiny_files(folder / "tiny"))
    return folder


@pytest.fixture
def trained(trained_once: Path) -> None:
    """Put a run of its own into the working folder, as `fit` leaves it."""
    shutil.copytree(trained_once / "lightning_logs", "lightning_logs")


def test_fit_prints_and_writes_a_run(data_dir: str, capsys: Capture) -> None:
    cli = fit(data_dir, "--checkpoint.monitor", "val/acc", "--trainer.log_every_n_steps", "1")
    output = capsys.readouterr()
    assert output.err == ""
    lines = output.out.splitlines()
    assert lines[:2] == [
        "data       mnist: 275 images to train, 25 to validate, batches of 100",
        "network    784–8–10 relu, 6,370 parameters",
    ]
    values = cli.trainer.callback_metrics
    rows = [line.split() for line in lines if "/2 " in line]
    assert [row[:2] for row in rows] == [["1/2", "3"], ["2/2", "6"]]
    assert rows[-1][5:8] == [f"{values['val/loss']:.4f}", f"{100 * values['val/acc']:.2f}", "%"]
    assert [row[-1] == "*" for row in rows] == [True, True]
    # between validations, the mean loss of the epoch: 100 + 100 + 75 images
    epoch = [value for _, value in scalars(str(RUN))["train/loss"]][3:]
    mean = (100 * epoch[0] + 100 * epoch[1] + 75 * epoch[2]) / 275
    assert float(rows[-1][2]) == pytest.approx(mean, abs=6e-5)
    keeper = cli.trainer.checkpoint_callback
    assert isinstance(keeper, RunCheckpoint)
    best = 100 * float(keeper.best_score or 0)
    assert f"best val/acc {best:.2f} %, 6 steps in all" in lines[-5]
    assert lines[-4:] == [
        f"checkpoint {RUN}/checkpoints/best.ckpt",
        f"report     {RUN}/report.html",
        f"test it    python -m fnn_lightning test --ckpt_path {RUN}/checkpoints/best.ckpt",
        "look at it tensorboard --logdir lightning_logs",
    ]
    names = {path.name for path in files() if RUN in path.parents}
    named = {"config.yaml", "hparams.yaml", "best.ckpt", "last.ckpt", "loss.png"}
    named |= {"metrics.json", "report.html"}
    assert named < names
    assert len(names) == 8  # and one file of events
    found = json.loads((RUN / "metrics.json").read_text())["fit"]
    assert found.pop("seconds") > 0
    assert found.pop("made_with")["fnn_lightning"] == __version__
    assert found == {
        "step": 6,
        "epochs": 2,
        **{
            name: pytest.approx(float(values[name]))
            for name in ("val/acc", "val/loss", "val/balanced_acc", "val/f1")
        },
        "best": {"monitor": "val/acc", "score": keeper.best_score},
        "checkpoint": "checkpoints/best.ckpt",
        "network": "784–8–10 relu",
        "parameters": 785 * 8 + 9 * 10,
        "val_images": 25,
    }


def test_a_saved_config_runs_again_as_it_is(data_dir: str) -> None:
    first = fit(data_dir, "--optimizer", "Adam", "--lr_scheduler", "StepLR",
                "--lr_scheduler.step_size", "1", "--seed_everything", "7")  # fmt: skip
    main(["fit", "--config", str(RUN / "config.yaml")])
    again = torch.load("lightning_logs/version_1/checkpoints/last.ckpt", weights_only=True)
    for name, weight in first.model.state_dict().items():
        assert torch.equal(again["state_dict"][name], weight)
    saved = [Path(f"lightning_logs/version_{n}/config.yaml").read_text() for n in (0, 1)]
    assert saved[0] == saved[1]


def test_a_saved_config_fits_every_subcommand(data_dir: str, capsys: Capture) -> None:
    fit(data_dir, "--run_folder", "run")
    config = ["--config", "run/config.yaml"]
    for name in ("validate", "test", "predict", "fit"):
        FNNCLI([name, *config, "--ckpt_path", "run/checkpoints/last.ckpt"])
    # what `seeds` and `sweep` do with it
    main(["fit", *config, "--run_folder", "again", "--seed_everything", "1"])
    assert Path("again/metrics.json").is_file()
    saved = yaml.safe_load(Path("run/config.yaml").read_text())
    assert saved.keys().isdisjoint({"run_folder", "ckpt_path", "init_from"})
    Path("given.yaml").write_text("run_folder: run\n")
    capsys.readouterr()
    last = "run/checkpoints/last.ckpt"
    message = refused(["test", "--config", "given.yaml", "--ckpt_path", last], capsys)
    assert "only `fit` takes it; drop it, from the config too" in message


def test_another_optimizer_does_not_inherit_the_learning_rate(
    data_dir: str, tmp_path: Path
) -> None:
    def lr(*words: str) -> float:
        cli = fit(data_dir, "--trainer.fast_dev_run", "1", *words)
        return float(cli.trainer.optimizers[0].param_groups[0]["lr"])

    assert lr() == 0.1
    assert lr("--optimizer.lr", "0.2") == 0.2
    assert lr("--optimizer", "Adam") == 0.001
    assert lr("--optimizer=Adam", "--optimizer.lr", "0.1") == 0.1
    assert lr("--optimizer.class_path", "Adam") == 0.001
    (tmp_path / "adam.yaml").write_text("optimizer:\n  class_path: torch.optim.Adam\n")
    assert lr("--config", "adam.yaml") == 0.001


def test_test_needs_nothing_but_the_checkpoint(data_dir: str, capsys: Capture) -> None:
    trained = fit(data_dir, "--model.activation", "tanh", "--model.pixel_mean", "0.3",
                  "--data.val_size", "0")  # fmt: skip
    before = files()
    capsys.readouterr()
    for command, prefix in (("test", "test/"), ("validate", "val/")):
        cli = FNNCLI([command, "--ckpt_path", LAST])
        assert cli.model.counts[prefix] == trained.model.counts["val/"]
        output = capsys.readouterr()
        correct, total = trained.model.counts["val/"]
        assert output.err == ""
        assert f"Got {correct} / {total} correct ({100 * correct / total:.2f} %)" in output.out
    new = files() - before
    assert {path.parent for path in new} == {RUN}  # into the folder of the run, and no other
    written = {path.name for path in new if not path.name.startswith("events")}
    assert written == {"predictions.csv"}  # metrics.json and report.html are there already
    ((step, accuracy),) = scalars(str(RUN))["z_test/acc"]
    assert step == 6
    assert accuracy == pytest.approx(correct / total)


def test_without_a_checkpoint_the_newest_run_is_taken(data_dir: str, capsys: Capture) -> None:
    fit(data_dir, "--model.activation", "tanh")
    fit(data_dir, "--model.activation", "sigmoid")
    first, second = (Path(f"lightning_logs/version_{number}") for number in (0, 1))
    for run, time in ((first, 2e9), (second, 1e9)):  # as if the first had been resumed
        os.utime(run / "checkpoints" / "last.ckpt", (time, time))
    capsys.readouterr()
    for command in ("test", "validate", "predict"):
        cli = FNNCLI([command])
        assert cli.model.hparams["activation"] == "tanh"
        said = f"checkpoint {first}/checkpoints/last.ckpt, of the newest run\n"
        assert capsys.readouterr().err == said
    main(["export", "--output", "net.pt2"])
    assert capsys.readouterr().err == said
    Path("my.yaml").write_text("data: {val_size: 0}\n")  # of another run
    capsys.readouterr()
    assert "Expected --ckpt_path" in refused(["test", "--config", "my.yaml"], capsys)
    Path("elsewhere", "lightning_logs").mkdir(parents=True)
    second.rename("elsewhere/lightning_logs/version_0")
    cli = FNNCLI(["test", "--trainer.default_root_dir=elsewhere"])
    assert cli.model.hparams["activation"] == "sigmoid"
    shutil.rmtree("lightning_logs")
    capsys.readouterr()
    for words in (["test"], ["export", "--output", "net.onnx"]):
        assert "or a run in lightning_logs, but got neither in this folder: train first" in refused(
            words, capsys
        )


@pytest.mark.usefixtures("trained")
def test_a_picture_without_an_option_is_answered_with_the_option(capsys: Capture) -> None:
    assert "use --data.images seven.png" in refused(["predict", "seven.png"], capsys)


@pytest.mark.usefixtures("trained")
def test_a_checkpoint_outside_a_run_writes_nothing() -> None:
    shutil.copy(LAST, "alone.ckpt")
    before = files()
    FNNCLI(["test", "--ckpt_path", "alone.ckpt"])
    assert files() == before


def test_flags_win_over_the_checkpoint(data_dir: str, tmp_path: Path) -> None:
    fit(data_dir, "--data.batch_size", "50")
    (tmp_path / "given.yaml").write_text("model:\n  pixel_std: 0.5\n")
    cli = FNNCLI(["test", "--ckpt_path", LAST, "--model.activation", "tanh",
                  "--config", "given.yaml", "--data.val_size", "7"])  # fmt: skip
    assert cli.model.hparams["activation"] == "tanh"
    assert cli.model.network.pixel_std == 0.5
    assert (cli.datamodule.val_size, cli.datamodule.batch_size) == (7, 50)


@pytest.mark.usefixtures("trained")
def test_test_measures_the_training_set_on_request(capsys: Capture) -> None:
    main(["test", "--ckpt_path", LAST, "--data.test_train_set", "true"])
    output = capsys.readouterr().out
    assert re.search(rf"^test set: Got \d+ / {TEST_SIZE} correct", output, re.MULTILINE)
    assert re.search(r"^training set: Got \d+ / 275 correct", output, re.MULTILINE)


def test_predict_prints_csv(data_dir: str, capsys: Capture) -> None:
    trained = fit(data_dir)
    capsys.readouterr()
    main(["predict", "--ckpt_path", LAST])
    output = capsys.readouterr()
    rows = list(csv.DictReader(output.out.splitlines()))
    assert [int(row["index"]) for row in rows] == list(range(TEST_SIZE))
    trained.datamodule.setup("predict")
    images, _ = next(iter(trained.datamodule.predict_dataloader()))
    temperature = torch.load(LAST, weights_only=True)["temperature"]
    with torch.no_grad():
        probabilities = (trained.model(images) / temperature).softmax(1)
    assert [int(row["class"]) for row in rows] == probabilities.argmax(1).tolist()
    assert float(rows[3]["p_7"]) == pytest.approx(float(probabilities[3, 7]), abs=1e-6)


def test_fit_resumes_from_a_checkpoint(data_dir: str) -> None:
    straight = fit(data_dir, "--trainer.max_epochs", "3")
    fit(data_dir)
    last = "lightning_logs/version_1/checkpoints/last.ckpt"
    main(["fit", "--ckpt_path", last, "--trainer.max_epochs", "3"])
    resumed = torch.load(last, weights_only=True)  # in its own folder
    assert resumed["global_step"] == 9
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(resumed["state_dict"][name], weight)


def test_the_result_is_that_of_the_last_step(data_dir: str, capsys: Capture) -> None:
    # 6 steps an epoch, validated after 5 and 10 of 12
    cli = fit(data_dir, "--data.val_size", "0", "--data.batch_size", "50",
              "--trainer.val_check_interval", "5",
              "--trainer.check_val_every_n_epoch", "null")  # fmt: skip
    output = capsys.readouterr().out
    assert cli.trainer.global_step == 12
    main(["test", "--ckpt_path", LAST])
    tested = re.search(r"\((.*) %\)", capsys.readouterr().out)
    assert tested
    assert f"result     val/acc (on the test set) {tested[1]} %, 12 steps in all" in output


def test_without_validation_the_test_set_is_not_looked_at(data_dir: str, capsys: Capture) -> None:
    cli = fit(data_dir, "--data.val_size", "0", "--trainer.limit_val_batches", "0")
    output = capsys.readouterr().out
    assert "validation none\n" in output
    assert "result     6 steps in all\n" in output
    assert set(cli.model.counts) == {"train/"}
    assert not any(tag.startswith("val/") for tag in scalars(str(RUN)))


@pytest.mark.parametrize("option", [["--trainer.logger", "false"], ["--trainer.fast_dev_run", "2"]])
def test_no_run_folder_on_request(data_dir: str, option: list[str]) -> None:
    before = files()
    fit(data_dir, *option)
    assert files() == before


def test_no_checkpoints_on_request(data_dir: str) -> None:
    fit(data_dir, "--trainer.enable_checkpointing", "false")
    assert not list(Path().glob("**/*.ckpt"))
    assert (RUN / "config.yaml").is_file()


def test_overfit_batches_repeats_the_same_batches(data_dir: str) -> None:
    cli = fit(data_dir, "--trainer.overfit_batches", "1", "--trainer.max_epochs", "30",
              "--trainer.log_every_n_steps", "1", "--optimizer.lr", "0.01")  # fmt: skip
    losses = [value for _, value in scalars(str(RUN))["train/loss"]]
    assert len(losses) == cli.trainer.global_step == 30
    # on one and the same batch, small steps lower the loss in every step
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.usefixtures("trained")
def test_checkpoints_are_read_as_data(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load, calls = torch.load, []

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs.get("weights_only"))
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", spy)
    FNNCLI([command, "--ckpt_path", LAST, "--trainer.max_epochs", "3"])
    assert len(calls) >= 2  # once by the command line, once by the Trainer
    assert all(weights_only is True for weights_only in calls)


def test_a_diverging_run_keeps_the_last_good_checkpoint(data_dir: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--data.data_dir", data_dir, "--data.batch_size", "50",
              "--optimizer.lr", "1e4", "--lr_scheduler", "ExponentialLR",
              "--lr_scheduler.gamma", "1e20", "--trainer.max_epochs", "9"])  # fmt: skip
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    found = re.search(
        r"became (nan|inf) in batch (\d+); the last good checkpoint is (\S+)\. ", error
    )
    assert found
    checkpoint = torch.load(found[3], weights_only=True)
    assert checkpoint["global_step"] < int(found[2])
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())


def test_print_config_shows_the_defaults(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--print_config"])
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["hidden_dims"] == [100]
    assert config["optimizer"]["init_args"]["lr"] == 0.1
    assert config["data"]["dataset"] == "mnist"


def test_version_needs_no_torch() -> None:
    code = "import sys; from fnn_lightning.commands.main import main; main(); "
    code += "print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["fnn_lightning", __version__, "False"]


BAD = {
    "--epochs 3": r"Unknown option epochs: use --trainer.max_epochs",
    "--lr 0.1": r"Unknown option lr: use --optimizer.lr",
    "--model.lr 0.1": r"Unknown option model.lr: use --optimizer.lr",
    "--optimizer.learning_rate 0.1": r"; did you mean optimizer.lr\?",
    "--data.num_workers 4": r"Unknown option data.num_workers: drop it; all images are in memory",
    "--trainer.gpus 1": r"use --trainer.accelerator gpu --trainer.devices 1",
    "--batch_size 3": r"did you mean data.batch_size\?",
    "--batch-size=3": r"did you mean data.batch_size\?",
    "--hidden_dims [3]": r"did you mean model.hidden_dims\?",
    "--activation relu": r"did you mean model.activation\?",
    "--monitor val/acc": r"did you mean checkpoint.monitor or early_stopping.monitor\?",
    "--seed 1": r"Unknown option seed: use --seed_everything",
    "--name a": r"use --run_folder",
    "--data.dataset MNIST": r"but got MNIST; did you mean mnist\?",
    "--model.initialization zeros": r"'xavier', but got zeros$",
    "--optimizer adam": r"to be a class of torch.optim, but got adam; did you mean Adam\?",
    "--optimizer torch.optim.adamw": r"did you mean AdamW\?",
    "--optimizer Adam --optimizer.momentum 0.9": r"optimizer.momentum: Adam takes lr, betas, eps",
    "--lr_scheduler cosine": r"did you mean CosineAnnealingLR\?",
    "--lr_scheduler.step_size 2": r"add --lr_scheduler StepLR$",
    "--lr_scheduler.gamma 2": r"add --lr_scheduler StepLR, or MultiStepLR, ExponentialLR",
    "--lr_scheduler.foo 2": r"Unknown option lr_scheduler.foo; --lr_scheduler says of which class",
    "extra": r"Unexpected argument extra: write --NAME before a value",
    "lr 0.1": r"Unexpected argument lr: use --optimizer.lr",
    "ckpt_path a": r"an option begins with two dashes, --ckpt_path",
    "-ckpt_path a": r"Expected two dashes before an option, but got -ckpt_path: use --ckpt_path",
    "a.ckpt": r"Unexpected argument a.ckpt: use --ckpt_path a.ckpt",
    "a.yaml": r"Unexpected argument a.yaml: use --config a.yaml",
    "--optimizer --model.hidden_dims [8]": r"a value after --optimizer, but got none",
    "--trainer.max_epochs 3 --config": r"a value after --config, but got none",
    "--trainer.fast_dev_run": r"a value after --trainer.fast_dev_run, but got none; a switch takes",
    "--trainer.logger WandbLogger": r"WandbLogger needs wandb, but .*: pip install wandb$",
    "--trainer.logger+=CometLogger": r"CometLogger needs comet-ml, .*: pip install comet-ml$",
    "--trainer.logger wandb": r"did you mean WandbLogger\?",
    "--trainer.callbacks+=EarlyStoping": r"did you mean EarlyStopping\?",
    "--model.activation rleu": r"one of .*'relu'.* got rleu; did you mean relu\?",
    "--model.hidden_dims [100,0]": r"`hidden_dims` to be positive integers, but got \[100, 0\]",
    "--model.hidden_dims [-5]": r"positive integers, but got \[-5\]",
    "--model.hidden_dims [1.5]": "`model.hidden_dims` to be int, but got 1.5",
    "--model.hidden_dims 100": r"to be a list, but got 100: write '\[100, 50\]'",
    "--model.pixel_std 0": "`pixel_std` to be positive",
    "--data.batch_size 0": "`batch_size` to be 1 or more, but got 0",
    "--data.batch_size many": "`data.batch_size` to be int, but got many",
    "--data.val_size 60000": "`val_size` to be from 0 to 59,999, .* got 60000",
    "--data.val_size -1": "`val_size` to be from 0 to 59,999, .* got -1",
    "--data.dataset minst": r"one of mnist, .* but got minst; did you mean mnist\?",
    "--data.data_dir file": "`data_dir` to be a folder that can be written, but got 'file'",
    "--data.data_dir empty": "--data.mirror",
    "--optimizer.lr 0": "`lr` to be positive, but got 0",
    "--optimizer.lr -0.1": "`lr` to be positive, but got -0.1",
    "--optimizer.momentum -1": "torch.optim.SGD cannot be made: Invalid momentum value",
    "--optimizer Sgd": "`optimizer` to be a class of torch.optim, but got Sgd",
    "--optimizer torch.nn.Linear": "`optimizer` to be a class of torch.optim, but got",
    "--lr_scheduler StepLR": "StepLR as lr_scheduler: .* required: step_size",
    "--model.hiden_dims [3]": r"Unknown option model.hiden_dims; did you mean model.hidden_dims\?",
    "--optimizer.lrr 1": r"Unknown option optimizer.lrr; did you mean optimizer.lr\?",
    "--trainer.max_epoch 1": r"trainer.max_epoch; did you mean trainer.max_epochs\?",
    "--dta.batch_size 1": r"Unknown option dta.batch_size; did you mean data.batch_size\?",
    "--checkpoint.monitor val/auc": "one of 'val/acc', .* got val/auc",
    "--data.val_size 0 --checkpoint.monitor val/acc": "nothing may be selected: give --data.val",
    "--data.val_size 0 --early_stopping.patience 2": "nothing may be selected: give --data.val",
    "--data.val_size 0 --lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor val/loss": (
        "nothing may be selected: give --data.val"
    ),
    "--seed_everything -1": "`seed_everything` to be from 0 to 4294967295, but got -1",
    "--trainer.max_epochs -2": "max_epochs",
    "--trainer.accelerator warp": "warp",
    "--config nothing.yaml": "'nothing.yaml': No such file or directory",
    "--config .": "Is a directory",
    "--config unclosed.yaml": "unclosed.yaml to be a YAML file, but it is not: .* line 1",
    "--config binary.yaml": "binary.yaml to be a YAML file, but it is not",
    "--config text.yaml": "text.yaml to hold settings, .* got 'just a text'",
    "--config unknown.yaml": r"modell.hidden_dims; did you mean model.hidden_dims\?",
    "--config unknown_deep.yaml": r"model.hiden_dims; did you mean model.hidden_dims\?",
    "--ckpt_path nothing.ckpt": "'nothing.ckpt': there is no such file",
    "--ckpt_path empty.ckpt": "empty.ckpt: it is empty",
    "--ckpt_path text.yaml": "text.yaml: it is damaged or something else",
    "--ckpt_path other.ckpt": "other.ckpt: it holds something else",
}


BAD |= {
    "--optimizer.lr fast": "`optimizer.lr` cannot be fast",
    "--optimizer.lr null": "`lr` to be positive, but got None",
    "--lr_scheduler LambdaLR --lr_scheduler.lr_lambda math.sqrt": "`lr_lambda` to be a number",
    "--lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor val/auc": "one of val/acc, val/loss",
    "--lr_scheduler torch.optim.lr_scheduler.ReduceLROnPlateau": "one of val/acc, val/loss",
    "--trainer.accumulate_grad_batches -2": "accumulate_grad_batches` to be 1 or more, but got -2",
    "--trainer.check_val_every_n_epoch 0": "check_val_every_n_epoch` to be 1 or more, but got 0",
    "--trainer.val_check_interval 0": "val_check_interval` to be positive, but got 0",
    "--trainer.strategy ddp_spawn": "Expected --trainer.strategy ddp, but got ddp_spawn, whose",
    "--trainer.strategy ddp_fork_find_unused_parameters_true": "but got ddp_fork_find_unused",
    "--trainer.strategy ddp_notebook": "but got ddp_notebook",
    "--trainer.strategy DDPStrategy --trainer.strategy.start_method spawn": "start_method spawn",
    "--trainer.val_check_interval 00:00:00:00": "to be positive, but got 00:00:00:00",
    "--trainer.gradient_clip_val -1": "gradient_clip_val` to be 0 or more, but got -1",
    "--trainer.limit_val_batches 0 --checkpoint.monitor val/acc": "limit_val_batches 0",
    "--trainer.limit_val_batches 0 --early_stopping.patience 1": "limit_val_batches 0",
    "--trainer.logger false --checkpoint.monitor val/acc": "needs checkpoints",
    "--model.hidden_dims [1000000000000]": "memory",
    "--model.pixel_mean .nan": "`pixel_mean` to be a finite number",
    "--config null.yaml": "`trainer` in null.yaml to hold settings, .* got None",
    "--config linked.yaml": "Expected `optimizer` at the top level .* got model.optimizer",
    "--config list.yaml": r"`model` in list.yaml to hold settings, .* got \[300\]",
}


@pytest.fixture
def bad_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "unclosed.yaml").write_text("model: [1")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x9f")
    (tmp_path / "text.yaml").write_text("just a text")
    (tmp_path / "unknown.yaml").write_text("modell: {hidden_dims: [3]}")
    (tmp_path / "unknown_deep.yaml").write_text("model: {hiden_dims: [3]}")
    (tmp_path / "null.yaml").write_text("trainer:\n  # max_epochs: 3\n")
    (tmp_path / "linked.yaml").write_text("model: {optimizer: {class_path: torch.optim.Adam}}")
    (tmp_path / "list.yaml").write_text("model: [300]")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")


@pytest.mark.parametrize("words", BAD)
@pytest.mark.usefixtures("bad_files")
def test_bad_input_is_refused_in_one_line(words: str, capsys: Capture) -> None:
    assert re.search(BAD[words], refused(["fit", *words.split()], capsys))


def test_every_answer_names_an_option(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    config["optimizer"] |= config["optimizer"]["init_args"]
    config["run_folder"] = None  # left out of a config
    for answer, words in ANSWERS.items():
        for option in re.findall(r"--([\w.]+)", answer):
            group, _, name = option.partition(".")
            assert group in config
            assert not name or name in config[group]
        assert not config.keys() & set(words.split()) - {"checkpoint", "optimizer"}
    every = " ".join(ANSWERS.values()).split()
    assert len(set(every)) == len(every)


def test_digits_without_scikit_learn_say_what_to_install(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    error = refused(["fit", "--data.dataset", "digits"], capsys)
    assert "pip install -e '.[quickstart]'" in error


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_untrained_network_is_not_measured(command: str, capsys: Capture) -> None:
    assert "Expected --ckpt_path" in refused([command], capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "some.yaml", "fit"], "Expected the subcommand before its options"),
        (["fti"], "but got fti; did you mean fit?"),
        (["--data.val_size", "3"], "but got --data.val_size; python -m fnn_lightning --help"),
    ],
)
def test_a_missing_subcommand_is_refused(words: list[str], message: str, capsys: Capture) -> None:
    assert message in refused(words, capsys)


def test_help_lists_every_subcommand(capsys: Capture) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()[4:]] == list(SUBCOMMANDS)
    main([])
    assert capsys.readouterr().out == text
    for name in SUBCOMMANDS:
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert name in capsys.readouterr().out.splitlines()[0]


@pytest.mark.usefixtures("trained")
def test_a_checkpoint_of_another_network_is_refused(capsys: Capture) -> None:
    words = ["test", "--ckpt_path", LAST, "--model.hidden_dims", "[9]"]
    assert "do not fit the network" in refused(words, capsys)


@pytest.mark.usefixtures("trained")
def test_a_truncated_checkpoint_is_refused(capsys: Capture) -> None:
    whole = Path(LAST).read_bytes()
    for tenth in range(10):
        Path("cut.ckpt").write_bytes(whole[: len(whole) * tenth // 10])
        assert "cut.ckpt: it is" in refused(["test", "--ckpt_path", "cut.ckpt"], capsys)


@pytest.mark.usefixtures("trained")
def test_settings_of_another_version_are_refused(capsys: Capture) -> None:
    checkpoint = torch.load(LAST, weights_only=True)
    checkpoint["hyper_parameters"]["whatever"] = 3
    torch.save(checkpoint, "other.ckpt")
    assert "do not fit fnn_lightning" in refused(["test", "--ckpt_path", "other.ckpt"], capsys)


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize(
    "config",
    [
        {"optimizer": {"class_path": "evil.Optimizer"}},
        {
            "optimizer": {
                "class_path": "torch.optim.SGD",
                "init_args": {"x": {"class_path": "evil.A"}},
            }
        },
        {
            "lr_scheduler": {
                "class_path": "torch.optim.lr_scheduler.LambdaLR",
                "init_args": {"lr_lambda": "evil.function"},
            }
        },
        {
            "lr_scheduler": {
                "class_path": "torch.optim.lr_scheduler.LambdaLR",
                "init_args": {"lr_lambda": ["evil.function"]},
            }
        },
        {"lr_scheduler": "evil.Schedule"},
    ],
)
@pytest.mark.usefixtures("trained")
def test_code_that_a_checkpoint_names_is_not_imported(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str, config: Any
) -> None:
    checkpoint = torch.load(LAST, weights_only=True)
    checkpoint["hyper_parameters"] |= config
    torch.save(checkpoint, "evil.ckpt")
    Path("evil.py").write_text("open('it-ran', 'w')\nfunction = Optimizer = Schedule = A = print")
    monkeypatch.syspath_prepend(".")
    assert "names code" in refused([command, "--ckpt_path", "evil.ckpt"], capsys)
    assert "evil" not in sys.modules


@pytest.mark.parametrize("config_first", [True, False])
@pytest.mark.usefixtures("trained")
def test_a_saved_config_may_accompany_a_checkpoint(config_first: bool) -> None:
    words = [["--ckpt_path", LAST], ["--config", str(RUN / "config.yaml")]]
    words = words[::-1] if config_first else words
    cli = FNNCLI(["fit", *words[0], *words[1], "--trainer.max_epochs", "3"])
    assert cli.trainer.global_step == 9
    (log,) = (each for each in cli.trainer.callbacks if isinstance(each, TrainLog))  # type: ignore[attr-defined]
    assert log.validated_step == 9
    assert torch.load(LAST, weights_only=True)["global_step"] == 9


def test_a_run_with_times_resumes(data_dir: str) -> None:
    times = ["--trainer.max_time", "{hours: 1}", "--trainer.val_check_interval", "00:00:00:30"]
    fit(data_dir, *times, "--data.batch_size", "100")
    resumed = FNNCLI(["fit", "--ckpt_path", LAST, "--trainer.max_epochs", "3"])
    assert resumed.trainer.global_step == 9
    assert resumed.trainer.val_check_batch is None


def test_an_option_wins_over_a_config_wherever_it_stands(data_dir: str) -> None:
    text = "# –\noptimizer:\n  class_path: torch.optim.Adam\n  init_args:\n    lr: 1e-2\n"
    Path("adam.yaml").write_text(text, encoding="utf-8")
    Path("seed.yaml").write_text("seed_everything: 3\n", encoding="utf-8")
    cli = fit(data_dir, "--trainer.fast_dev_run", "1", "--optimizer.lr", "0.5",
              "--config", "adam.yaml", "--seed_everything=4", "-c", "seed.yaml")  # fmt: skip
    (optimizer,) = cli.trainer.optimizers
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert cli.datamodule.seed == 4


def test_best_can_be_resumed_with_early_stopping(data_dir: str) -> None:
    options = ["--checkpoint.monitor", "val/acc", "--early_stopping.patience", "9"]
    fit(data_dir, *options)
    best = str(RUN / "checkpoints" / "best.ckpt")
    step = torch.load(best, weights_only=True)["global_step"]
    cli = FNNCLI(["fit", "--ckpt_path", best, "--trainer.max_epochs", "5", *options])
    assert step % 3 == 0
    assert cli.trainer.global_step == 15


@pytest.mark.usefixtures("trained")
def test_a_finished_run_says_how_to_train_longer(capsys: Capture) -> None:
    before = scalars(str(RUN))
    main(["fit", "--ckpt_path", LAST])  # the run's own limits
    assert "done       all 6 steps already; to train longer, raise" in capsys.readouterr().out
    assert scalars(str(RUN)) == before
    Path("alone.ckpt").write_bytes(Path(LAST).read_bytes())
    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path", "alone.ckpt", "--trainer.max_epochs", "2"])
    assert "more than the 6 steps that the checkpoint has seen" in capsys.readouterr().err


@pytest.mark.parametrize(
    "limits",
    [["--trainer.max_steps", "5"], ["--trainer.max_epochs", "2"]],
    ids=["in an epoch", "at the end of one"],
)
def test_a_run_interrupted_after_its_last_step_is_finished(
    data_dir: str, monkeypatch: pytest.MonkeyPatch, limits: list[str]
) -> None:
    words = ["fit", "--data.data_dir", data_dir, "--model.hidden_dims=[8]", *limits]
    words += ["--trainer.log_every_n_steps", "4"]
    main([*words, "--run_folder", "straight"])
    with monkeypatch.context() as patch:
        patch.delattr(TrainLog, "on_train_end")
        patch.setattr(Trainer, "validate", lambda *_, **__: None)
        main([*words, "--run_folder", "killed"])
    assert scalars("killed") != scalars("straight")
    for _ in range(2):
        main([*words, "--run_folder", "killed"])
        assert scalars("killed") == scalars("straight")


def test_a_run_folder_without_a_checkpoint_needs_its_settings(
    data_dir: str, capsys: Capture
) -> None:
    fit(data_dir, "--run_folder", "some run")
    shutil.rmtree("some run/checkpoints")
    with pytest.raises(SystemExit):
        main(["fit", "--run_folder", "some run"])
    assert "give the settings again, as --config 'some run/config.yaml'" in capsys.readouterr().err
    main(["fit", "--run_folder", "some run", "--config", "some run/config.yaml"])
    both = ["fit", "--run_folder", "some run", "--ckpt_path", "some run/checkpoints/last.ckpt"]
    with pytest.raises(SystemExit):
        main(both)
    assert "either --run_folder" in capsys.readouterr().err


def test_a_moved_run_finds_its_best_checkpoint(data_dir: str, capsys: Capture) -> None:
    fit(data_dir, "--checkpoint.monitor", "val/loss")
    RUN.rename("moved")
    main(["fit", "--ckpt_path", "moved/checkpoints/last.ckpt"])
    assert "checkpoint moved/checkpoints/best.ckpt\n" in capsys.readouterr().out


def test_max_steps_alone_ends_the_run(data_dir: str) -> None:
    cli = FNNCLI(["fit", "--data.data_dir", data_dir, "--trainer.max_steps", "40"])
    assert cli.trainer.global_step == 40  # more than five epochs


def test_early_stopping_from_the_command_line(data_dir: str) -> None:
    cli = fit(data_dir, "--early_stopping.patience", "1", "--early_stopping.min_delta", "2",
              "--trainer.max_epochs", "9")  # fmt: skip
    assert cli.trainer.global_step == 6  # the first epoch sets the mark, the second misses it


def test_a_single_callback_is_accepted(data_dir: str) -> None:
    cli = fit(data_dir, "--trainer.callbacks", "LearningRateMonitor")
    assert cli.trainer.global_step == 6


@pytest.mark.parametrize("name", lightning.pytorch.callbacks.__all__)
def test_callbacks_are_found_by_their_short_names(name: str) -> None:
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=lightning.pytorch.Callback)
    try:
        found = parser.parse_args(["--callback", name]).callback.class_path
    except ArgumentError as error:  # for want of arguments
        found = str(error)
    assert re.search(rf"\blightning\.(\w+\.)*{name}\b", found)


OWN_CALLBACKS = """
trainer:
  callbacks:
  - class_path: EarlyStopping
    init_args: {monitor: val/loss, patience: 9}
  - class_path: ModelCheckpoint
    init_args: {monitor: val/acc, mode: max, filename: mine}
"""


def test_callbacks_of_the_user_work_beside_ours_and_resume(data_dir: str) -> None:
    Path("own.yaml").write_text(OWN_CALLBACKS)
    ours = ["--config", "own.yaml", "--early_stopping.patience", "9",
            "--checkpoint.monitor", "val/loss"]  # fmt: skip
    whole = fit(data_dir, *ours, "--run_folder", "whole", "--trainer.max_epochs", "4")
    fit(data_dir, *ours, "--run_folder", "parts")
    saved = ["--config", "parts/config.yaml"]
    parts = FNNCLI(["fit", *saved, "--ckpt_path", "parts", "--trainer.max_epochs", "4"])
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], weight)
    for run in ("whole", "parts"):
        names = {path.name for path in Path(run, "checkpoints").iterdir()}
        assert names == {"best.ckpt", "last.ckpt", "mine.ckpt"}
    states = [
        torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["callbacks"]
        for run in ("whole", "parts")
    ]
    stoppers = [key for key in states[0] if "EarlyStopping" in key]
    assert len(stoppers) == 2
    assert [states[0][key] for key in stoppers] == [states[1][key] for key in stoppers]
    for command in ("validate", "test"):
        FNNCLI([command, *saved, "--ckpt_path", "parts"])


@pytest.mark.parametrize("name", ["RichProgressBar", "TQDMProgressBar"])
def test_a_progress_bar_of_the_user_takes_the_place_of_ours(data_dir: str, name: str) -> None:
    for options in ([], ["--trainer.enable_progress_bar", "true"]):
        bar = fit(data_dir, f"--trainer.callbacks+={name}", *options).trainer.progress_bar_callback
        assert type(bar).__name__ == name
    cli = FNNCLI(["test", "--ckpt_path", LAST, f"--trainer.callbacks+={name}"])
    assert type(cli.trainer.progress_bar_callback).__name__ == name


BAREBONES = ["--trainer.barebones", "true"]


def test_a_barebones_trainer_trains_and_writes_nothing(data_dir: str, capsys: Capture) -> None:
    before = files()
    bare = fit(data_dir, *BAREBONES)
    assert files() == before
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.count("val set: Got ") == 2
    whole = fit(data_dir)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(bare.model.state_dict()[name], weight)
    FNNCLI(["test", "--ckpt_path", LAST, *BAREBONES])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--run_folder a", "--run_folder"),
        ("--checkpoint.monitor val/acc", "--checkpoint.monitor"),
        ("--checkpoint.every_n_steps 3", "--checkpoint.every_n_steps"),
        ("--early_stopping.patience 3", "--early_stopping.patience"),
        ("--trainer.logger true", "logger=True"),
        ("--trainer.enable_checkpointing true", "enable_checkpointing=True"),
        ("--trainer.enable_progress_bar true", "enable_progress_bar=True"),
        ("--trainer.log_every_n_steps 5", "log_every_n_steps=5"),
        ("--trainer.callbacks+=TQDMProgressBar", "TQDMProgressBar"),
    ],
)
def test_what_a_barebones_trainer_lacks_is_refused_by_name(
    data_dir: str, capsys: Capture, words: str, named: str
) -> None:
    options = ["--data.data_dir", data_dir, *BAREBONES, *words.split()]
    assert named in refused(["fit", *options], capsys)


def test_ctrl_c_saves_and_says_how_to_resume(data_dir: str, fork: StartFork) -> None:
    run = fork("fit", "--data.data_dir", data_dir, "--trainer.max_epochs", "100000")
    for line in run.stdout:
        if "         6  " in line:  # the first epoch was saved by now
            break
    run.send_signal(signal.SIGINT)
    status, _, err = ended(run)
    assert status == 130
    assert err == (
        f"stopped by SIGINT, saved; resume with: python -m fnn_lightning fit --ckpt_path {LAST}\n"
    )
    assert torch.load(LAST, weights_only=True)["global_step"] > 0


def test_the_python_api_trains_and_tests(data_dir: str) -> None:
    import fnn_lightning

    data = fnn_lightning.MNISTDataModule(data_dir=data_dir, batch_size=50)
    model = fnn_lightning.FNNLitModule(hidden_dims=[16, 16], activation="gelu")
    trainer = Trainer(max_epochs=1, logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.fit(model, datamodule=data)
    (result,) = trainer.test(model, datamodule=data, verbose=False)
    assert set(result) == {"test/loss", "test/acc", "test/balanced_acc", "test/f1", "step"}
    assert isinstance(model, FNNLitModule)
    assert isinstance(model.network, fnn_lightning.FNN)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fnn_lightning.nothing  # noqa: B018


@pytest.mark.parametrize(
    "change",
    [
        ["--trainer.max_epochs", "3"],  # the schedule has the run's length
        ["--trainer.max_epochs", "1"],  # fewer than are done
        ["--data.batch_size", "50"],
        ["--optimizer.lr", "0.7"],
    ],
)
def test_a_refused_resume_leaves_the_run_as_it_was(
    data_dir: str, capsys: Capture, change: list[str]
) -> None:
    fit(data_dir, "--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", "0",
        "--model.lr_interval", "step")  # fmt: skip
    before = (RUN / "config.yaml").read_text(), Path(LAST).read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--ckpt_path", LAST, *change])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert ((RUN / "config.yaml").read_text(), Path(LAST).read_bytes()) == before


@pytest.mark.usefixtures("trained")
def test_the_options_to_resume_name_a_config_that_names_code() -> None:
    assert resume_options(LAST) == f"--ckpt_path {LAST}"
    config = RUN / "config.yaml"
    text = config.read_text().replace("callbacks: null", "callbacks: LearningRateMonitor")
    config.write_text(text)
    assert resume_options(LAST) == f"--ckpt_path {LAST} --config {config}"
