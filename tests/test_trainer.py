import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import TorchCheckpointIO

from fnn_lightning import FNNLitModule, MNISTDataModule, Trainer, load
from fnn_lightning.commands.main import main
from fnn_lightning.errors import InputError
from fnn_lightning.runs.checkpoint_io import AtomicCheckpointIO
from fnn_lightning.runs.loggers import read_curves
from fnn_lightning.training.checkpointing import RunCheckpoint
from fnn_lightning.training.console import Console
from tests.support import LAST, RUN

MakeModel = Callable[..., FNNLitModule]
MakeData = Callable[..., MNISTDataModule]


def callbacks(trainer: LightningTrainer, kind: type[Callback]) -> list[Callback]:
    return [each for each in trainer.callbacks if isinstance(each, kind)]  # type: ignore[attr-defined]


def lines(text: str) -> list[str]:
    """Split what a run has printed, without the times in its table, whose rows begin with n/N."""
    row = re.compile(r" *\d+/\d+ .*%")
    return [found[0] if (found := row.match(line)) else line for line in text.splitlines()]


def test_a_run_is_that_of_the_command_line(
    data_dir: str, make_data: MakeData, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    there = ["--trainer.default_root_dir", str(tmp_path / "b")]
    main(["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8]",
          "--trainer.max_epochs", "2", *there])  # fmt: skip
    theirs = capsys.readouterr()
    seed_everything(0, verbose=False)
    trainer = Trainer(max_epochs=2)
    trainer.fit(FNNLitModule(hidden_dims=[8]), make_data())
    ours = capsys.readouterr()
    header_and_table = lines(theirs.out)[:9]
    assert {"length", "device"} <= {line.partition(" ")[0] for line in header_and_table}
    assert lines(ours.out) == [*header_and_table, f"checkpoint {Path(LAST)}"]
    assert ours.err == theirs.err == ""
    expected = load(tmp_path / "b" / RUN).state_dict()
    for name, weight in load(str(trainer.log_dir)).state_dict().items():
        assert torch.equal(weight, expected[name])
    assert {path.name for path in RUN.iterdir()} >= {"checkpoints", "loss.png", "hparams.yaml"}


def test_it_prints_a_line_for_each_evaluation(
    make_data: MakeData, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, model, data = Trainer(max_epochs=1), make_model(), make_data(val_size=50)
    trainer.fit(model, data)
    capsys.readouterr()
    results = [trainer.test(model, data), trainer.test(datamodule=data)]
    trainer.validate(model, datamodule=data)
    output = capsys.readouterr()
    kinds = [line.partition(":")[0] for line in output.out.splitlines()]
    assert kinds == ["test set", "test set", "val set"]
    assert output.err == ""
    assert results[0] == results[1]
    assert len(trainer.predict(datamodule=data) or []) == 1
    trainer.test(model, data.test_dataloader(), None, True)
    assert "Test metric" in capsys.readouterr().out


def test_defaults_are_those_of_the_command_line() -> None:
    trainer: Any = Trainer()
    assert trainer.max_epochs == 5
    assert trainer.num_sanity_val_steps == 0
    assert trainer.progress_bar_callback is None  # without a terminal
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert Trainer(max_steps=7).max_epochs is None
    assert not Path("lightning_logs").exists()
    with pytest.raises(TypeError, match="'epochs'"):
        Trainer(epochs=3)


def test_what_the_user_gives_takes_the_place_of_ours() -> None:
    class MyConsole(Console):
        pass

    own = [MyConsole(), ModelCheckpoint(), TQDMProgressBar()]
    logger, plugin = CSVLogger("logs"), TorchCheckpointIO()
    trainer: Any = Trainer(callbacks=own, logger=logger, plugins=plugin)
    assert callbacks(trainer, Console) == own[:1]
    assert trainer.checkpoint_callbacks == own[1:2]
    assert trainer.progress_bar_callback is own[2]
    assert trainer.loggers == [logger]
    assert trainer.strategy.checkpoint_io is plugin
    checkpoint = RunCheckpoint(monitor="val/acc")
    assert Trainer(callbacks=checkpoint).checkpoint_callbacks == [checkpoint]


@pytest.mark.parametrize(
    "settings",
    [{"logger": False}, {"enable_checkpointing": False}, {"fast_dev_run": True}, {"barebones": 1}],
)
def test_it_writes_no_checkpoint_where_none_is_wanted(
    make_data: MakeData, make_model: MakeModel, settings: dict[str, Any]
) -> None:
    Trainer(max_epochs=1, **settings).fit(make_model(), make_data())
    assert not list(Path().glob("**/*.ckpt"))


def test_a_trainer_trains_one_module(
    make_data: MakeData, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, model, data = Trainer(max_epochs=1), make_model(), make_data()
    with pytest.raises(InputError, match="val_size"):
        trainer.fit(make_model(), make_data(val_size=10_000))
    trainer.fit(model, data)
    trainer.validate(make_model(), data)
    with pytest.raises(InputError, match=r"has trained, .* got another: make a new Trainer"):
        trainer.fit(make_model(), data)
    capsys.readouterr()
    trainer.fit(model, datamodule=data)
    assert "all 3 steps are done already; to train longer" in capsys.readouterr().out
    Trainer(max_epochs=1).fit(make_model(), data, ckpt_path=LAST)
    assert "all 3 steps are done already; to train longer" in capsys.readouterr().out
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model=model, datamodule=data)
    output = capsys.readouterr().out
    assert "after step 3" in output
    assert "done already" not in output
    assert trainer.global_step == 6


@pytest.mark.parametrize("stage", ["test", "validate", "predict"])
def test_an_evaluation_without_a_model_takes_the_one_trained(
    make_data: MakeData, make_model: MakeModel, stage: str
) -> None:
    trainer, model, data = Trainer(max_epochs=1, logger=False), make_model(), make_data(val_size=50)
    message = f"a model to {stage}, but got none, and this Trainer has trained none: give"
    for arguments in ((), (None, data)):
        with pytest.raises(InputError, match=message):
            getattr(trainer, stage)(*arguments)
    trainer.fit(model, data)
    expected = getattr(trainer, stage)(model, data)
    for found in (getattr(trainer, stage)(None, data), getattr(trainer, stage)(datamodule=data)):
        assert str(found) == str(expected)


def test_an_evaluation_alone_makes_no_run(make_data: MakeData, make_model: MakeModel) -> None:
    trainer, model, data = Trainer(max_epochs=1), make_model(), make_data()
    trainer.test(model, data)
    assert not list(Path().glob("lightning_logs/*"))
    trainer.fit(model, data)
    trainer.test(model, data)
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert read_curves(RUN).keys() >= {"train/loss", "test/acc"}


@pytest.mark.parametrize("settings", [{"barebones": True}, {"enable_progress_bar": False}])
def test_ctrl_c_stays_a_keyboard_interrupt(
    make_data: MakeData, make_model: MakeModel, settings: dict[str, Any]
) -> None:
    class PressCtrlC(Callback):
        def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
            raise KeyboardInterrupt

        def on_test_start(self, trainer: Any, pl_module: LightningModule) -> None:
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    trainer = Trainer(max_epochs=1, callbacks=PressCtrlC(), **settings)
    for stage in (trainer.fit, trainer.test):
        with pytest.raises(KeyboardInterrupt):
            stage(make_model(), make_data())
        assert signal.getsignal(signal.SIGINT) is handler, "the next Ctrl-C counts too"


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="needs signals of POSIX")
def test_ctrl_c_saves_and_says_how_to_resume(make_data: MakeData, make_model: MakeModel) -> None:
    class PressCtrlC(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                signal.raise_signal(signal.SIGINT)

    whole, stopped = make_model(), make_model()
    Trainer(max_epochs=3, default_root_dir="whole").fit(whole, make_data())
    with pytest.raises(KeyboardInterrupt, match=r"resume with fit\(…, ckpt_path='.*last.ckpt'\)"):
        Trainer(max_epochs=3, callbacks=PressCtrlC()).fit(stopped, make_data())
    resumed = make_model()
    Trainer(max_epochs=3).fit(resumed, make_data(), ckpt_path=LAST)
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
