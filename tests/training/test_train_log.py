from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.nn import functional as F

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.training.optim import MONITORED
from tests.support import scalars, trainer

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]


def test_every_step_is_logged_on_request(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    run = trainer(tmp_path, log_every_n_steps=1, max_epochs=1)
    run.fit(make_model(), datamodule=make_data(batch_size=100))
    logged = scalars(run.log_dir)
    assert [step for step, _ in logged["train/loss"]] == [1, 2, 3]


def test_only_real_metrics_are_logged(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    run = trainer(tmp_path, max_epochs=1)
    run.fit(make_model(), datamodule=make_data())
    assert isinstance(run.logger, TensorBoardLogger)
    assert set(scalars(run.log_dir)) == {"train/loss", "train/acc", "lr", *MONITORED}


def test_gradient_accumulation_logs_once_a_step(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    run = trainer(tmp_path, accumulate_grad_batches=2, log_every_n_steps=2, max_epochs=1)
    run.fit(make_model(), datamodule=make_data(batch_size=35))  # 8 batches, 4 steps
    assert [step for step, _ in scalars(run.log_dir)["train/loss"]] == [2, 4]


class OwnStep(FNNLitModule):
    """Measures nothing in training."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


def test_a_training_step_that_measures_nothing_logs_the_learning_rate_alone(
    make_data: MakeData, tmp_path: Path
) -> None:
    run = trainer(tmp_path, max_epochs=1)
    run.fit(OwnStep(hidden_dims=[8]), datamodule=make_data())
    logged = scalars(run.log_dir)
    ((step, lr),) = logged["lr"]
    assert (step, lr) == pytest.approx((3, 0.1))
    assert set(logged) == {"lr", *MONITORED}


class SavesEarly(Callback):
    """Saves at a step at which a line of the log is due, before `TrainLog` is asked to log it."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 6:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "6.ckpt")


def test_a_checkpoint_saved_before_a_due_line_holds_it(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    straight = trainer(tmp_path / "straight", callbacks=[SavesEarly()], enable_checkpointing=False)
    straight.fit(make_model(), datamodule=make_data(batch_size=40))  # 7 batches an epoch
    resumed = trainer(tmp_path / "resumed", enable_checkpointing=False)
    checkpoint = tmp_path / "straight" / "6.ckpt"
    resumed.fit(make_model(), datamodule=make_data(batch_size=40), ckpt_path=checkpoint)
    before, after = scalars(straight.log_dir), scalars(resumed.log_dir)
    assert [step for step, _ in before["train/loss"]] == [3, 6, 9, 12, 14]
    assert after["train/loss"] == before["train/loss"][2:]
    assert after["train/acc"] == before["train/acc"][2:]
