"""Lightning's finders must leave nothing behind but what they have found."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner.tuning import Tuner

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.commands.lightning_cli import FNNCLI
from fnn_lightning.commands.main import main
from fnn_lightning.errors import InputError
from fnn_lightning.training.checkpointing import RunCheckpoint
from fnn_lightning.training.ema import EMA
from tests.support import LAST, RUN, assert_same, fit, scalars, trainer

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]

ADAM = {"class_path": "Adam", "init_args": {"lr": 0.01}}
COSINE = {"class_path": "CosineAnnealingLR", "init_args": {}}
MODELS: list[dict[str, Any]] = [
    {},
    {"optimizer": ADAM, "dropout": 0.2, "batch_norm": True},
    {"lr_scheduler": COSINE, "lr_interval": "step", "warmup": 2},
]


class Run:
    """A fit, and all that can be compared of it."""

    def __init__(
        self,
        folder: Path,
        model: FNNLitModule,
        data: MNISTDataModule,
        *finders: Callback,
        run: Trainer | None = None,
    ) -> None:
        self.model = model
        self.trainer = run or make_trainer(folder, *finders)
        torch.manual_seed(1)
        self.trainer.fit(model, datamodule=data)
        self.scalars = scalars(self.trainer.log_dir)
        checkpoint = torch.load(f"{self.trainer.log_dir}/checkpoints/last.ckpt", weights_only=True)
        finder = [name for name in checkpoint["callbacks"] if name.endswith("Finder")]
        assert finder == []
        self.last = checkpoint


def make_trainer(folder: Path, *finders: Callback) -> Trainer:
    # a metric of the search's own validations must not become the best one
    best = RunCheckpoint(monitor="val/acc")
    limits = {"max_epochs": 3, "check_val_every_n_epoch": 2}
    return trainer(folder, callbacks=[EMA(0.9), *finders, best], **limits)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_search_that_is_ignored_changes_nothing(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, model: dict[str, Any]
) -> None:
    finder = LearningRateFinder(num_training_steps=30, update_attr=False)
    plain = Run(tmp_path / "plain", make_model(**model), make_data())
    searched = Run(tmp_path / "searched", make_model(**model), make_data(), finder)
    assert finder.optimal_lr is not None
    assert len(finder.optimal_lr.results["lr"]) == 9  # it ends with the run
    assert_same(searched.last, plain.last)
    assert searched.scalars == plain.scalars


@pytest.mark.parametrize("way", ["callback", "tuner"])
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_run_after_a_search_is_that_of_the_found_rate(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, model: dict[str, Any], way: str
) -> None:
    module, data = make_model(**model), make_data(batch_size=20)
    before, folder = module.lr, tmp_path / "searched"
    steps: dict[str, Any] = {"min_lr": 1e-3, "max_lr": 1.0}
    if way == "callback":
        run = make_trainer(folder, LearningRateFinder(num_training_steps=30, **steps))
    else:
        run = make_trainer(folder)
        Tuner(run).lr_find(module, datamodule=data, num_training=30, **steps)
    searched = Run(folder, module, data, run=run)
    assert module.lr != before
    config = module.hparams["optimizer"]
    assert config["init_args"]["lr"] == module.lr
    fresh = make_model(**{**model, "optimizer": config})
    plain = Run(tmp_path / "plain", fresh, make_data(batch_size=20))
    assert_same(searched.last, plain.last)
    assert searched.scalars == plain.scalars


class AtEpochOne(LearningRateFinder):
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None: ...

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


def test_a_search_is_refused_where_it_would_leave_something(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="searched for before training begins"):
        trainer(tmp_path, callbacks=[AtEpochOne()]).fit(make_model(), datamodule=make_data())
    last = Run(tmp_path, make_model(), make_data()).trainer.log_dir
    for finder in (LearningRateFinder(), BatchSizeFinder()):
        run = make_trainer(tmp_path / "resumed", finder)
        with pytest.raises(InputError, match=f"Expected {type(finder).__name__} in a new run only"):
            run.fit(make_model(), make_data(), ckpt_path=f"{last}/checkpoints/last.ckpt")
    one_cycle = {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.1, "total_steps": 99}}
    module = make_model(lr_scheduler=one_cycle, lr_interval="step")
    with pytest.raises(InputError, match="but got OneCycleLR, which replaces it by its own"):
        module.lr = 0.2
    with pytest.raises(InputError, match="`lr` to be positive, but got -1"):
        make_model().lr = -1
    assert make_model(optimizer={"class_path": "Adam"}).lr == 0.001


@pytest.mark.parametrize("way", ["callback", "tuner"])
def test_a_run_after_a_search_for_the_batch_size_is_that_of_the_found_size(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, way: str
) -> None:
    model = MODELS[2]
    module, data = make_model(**model), make_data()
    limits: dict[str, Any] = {"max_trials": 4, "init_val": 8}
    if way == "callback":
        run = make_trainer(tmp_path / "searched", BatchSizeFinder(**limits))
    else:
        run = make_trainer(tmp_path / "searched")
        Tuner(run).scale_batch_size(module, datamodule=data, **limits)
    searched = Run(tmp_path, module, data, run=run)
    assert data.batch_size == data.hparams["batch_size"] == 64
    plain = Run(tmp_path / "plain", make_model(**model), make_data(batch_size=64))
    assert_same(searched.last, plain.last)
    assert searched.scalars == plain.scalars


def test_the_command_line_finds_a_rate_and_keeps_it(
    data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--find_lr", "true", "--optimizer", "Adam", "--trainer.max_epochs", "1"]
    found = fit(data_dir, *words, "--run_folder", "run")
    assert "found      learning rate" in (out := capsys.readouterr().out)
    assert "see run/lr_find.png" in out
    assert Path("run/lr_find.png").read_bytes().startswith(b"\x89PNG")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    lr = found.model.lr
    assert "find_lr" not in config  # no other subcommand takes it
    assert config["optimizer"]["init_args"]["lr"] == lr != 0.001
    assert found.trainer.optimizers[0].param_groups[0]["lr"] == lr
    # the config runs again as it is, without a search
    main(["fit", "--config", "run/config.yaml"])
    last = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert last["hyper_parameters"]["optimizer"]["init_args"]["lr"] == lr
    assert_same(torch.load(LAST, weights_only=True), last)
    assert not (RUN / "lr_find.png").exists()
    # the same command started anew resumes
    resumed = fit(data_dir, *words[:-1], "2", "--run_folder", "run")
    assert resumed.trainer.global_step == 6
    assert resumed.model.lr == lr
    assert "found" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ckpt_path", "run/checkpoints/last.ckpt"], "Expected --find_lr in a new run only"),
        (["--trainer.limit_train_batches", "0"], "100 steps found none: give --optimizer.lr"),
        (
            ["--lr_scheduler", "OneCycleLR", "--lr_scheduler.max_lr", "0.1"],
            "replaces it by its own: give --lr_scheduler.max_lr",
        ),
    ],
    ids=["resumed", "no batch", "own rate"],
)
def test_the_command_line_refuses_a_search_in_one_line(
    data_dir: str, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    if "--ckpt_path" in words:
        fit(data_dir, "--run_folder", "run", "--trainer.max_epochs", "1")
    with pytest.raises(SystemExit):
        main(["fit", "--data.data_dir", data_dir, "--find_lr", "true", *words])
    assert message in (error := capsys.readouterr().err.splitlines()[-1])
    assert error.startswith("error: ")


def test_the_command_line_searches_on_the_whole_way_to_a_large_rate(data_dir: str) -> None:
    cli = FNNCLI(["fit", "--data.data_dir", data_dir, "--find_lr", "true"])
    assert cli.model.lr > 0.01


def test_a_search_on_trained_weights_finds_none(
    data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(data_dir, "--trainer.max_epochs", "60", "--optimizer.lr", "1")
    with pytest.raises(SystemExit):
        main(["fit", "--init_from", str(RUN), "--find_lr", "true"])
    assert "Expected the loss to fall clearly" in capsys.readouterr().err


def test_a_signal_ends_a_search_and_leaves_no_file(
    data_dir: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = FNNLitModule.training_step

    def terminated(self: FNNLitModule, batch: Any, batch_idx: int) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(FNNLitModule, "training_step", terminated)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--data.data_dir", data_dir, "--find_lr", "true"])
    assert stop.value.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM, nothing was saved\n" in capsys.readouterr().err
    assert not list(Path().rglob(".lr_find*"))
