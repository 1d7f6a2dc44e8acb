"""A run interrupted anywhere and resumed must end as if it had never been interrupted."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.tuner.tuning import Tuner
from torch import nn

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.data.augmentation import Augmentation
from fnn_lightning.evaluation.tensorboard import TensorBoardPlots
from fnn_lightning.training.checkpointing import RunCheckpoint, RunEarlyStopping
from fnn_lightning.training.ema import EMA
from tests.support import assert_same, scalars, trainer

MakeData = Callable[..., MNISTDataModule]

ADAM = {"class_path": "Adam", "init_args": {"lr": 0.01}}
MOMENTUM = {"class_path": "SGD", "init_args": {"lr": 0.05, "momentum": 0.9}}
EVERY_STEP = {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.3, "total_steps": 60}}
EVERY_EPOCH = {"class_path": "ExponentialLR", "init_args": {"gamma": 0.7}}
AUGMENTED = {"augmentation": Augmentation(20.0, 0.2, 10.0, 2.0, 1.0)}
ENDS = {"augmentation": Augmentation(20.0, end=0.7)}
COSINE = {"class_path": "CosineAnnealingLR", "init_args": {}}
PLATEAU = {
    "class_path": "ReduceLROnPlateau",
    "init_args": {"monitor": "val/loss", "patience": 0, "threshold": 0.5},
}


class KeepsAll(RunCheckpoint):
    """Keeps a copy of every `last.ckpt` of a run that was not resumed."""

    acts_every_n_steps = RunCheckpoint.acts_every_n_steps
    copies: list[Path]

    def _save_last(self, trainer: Trainer) -> None:
        super()._save_last(trainer)
        if trainer.ckpt_path:
            return
        self.copies = getattr(self, "copies", [])
        self.copies.append(Path(trainer.default_root_dir) / f"copy{len(self.copies)}.ckpt")
        shutil.copy(self.last_model_path, self.copies[-1])


class WritesTheEnd(TorchCheckpointIO):
    """Writes no checkpoint but `end.ckpt`: a resumed run makes many that nobody reads."""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        if Path(path).name == "end.ckpt":
            super().save_checkpoint(checkpoint, path, storage_options)


class Dropping(FNNLitModule):
    """A module whose steps draw random numbers."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network.layers.insert(1, nn.Dropout(0.3))


def fit(
    folder: Path, module: FNNLitModule, data: MNISTDataModule, ckpt_path: Any = None, **kwargs: Any
) -> tuple[Trainer, Any, dict[str, Any]]:
    patience, decay = kwargs.pop("patience", None), kwargs.pop("ema", 0.0)
    extra = [RunEarlyStopping(patience=patience, min_delta=0.3)] if patience else []
    averaging = [EMA(decay)] if decay else []
    every = 3 if module.multi_step else 1
    done = trainer(
        folder,
        **{
            "callbacks": [*averaging, *extra, KeepsAll(monitor="val/acc", every_n_steps=every)],
            "enable_checkpointing": True,
            "plugins": [WritesTheEnd()] if ckpt_path else None,
            "log_every_n_steps": 4,
            "max_epochs": 2,
            **kwargs,
        },
    )
    done.fit(module, datamodule=data, ckpt_path=ckpt_path)
    done.save_checkpoint(folder / "end.ckpt")
    end = torch.load(folder / "end.ckpt", weights_only=True)
    return done, end, scalars(done.log_dir)


@pytest.mark.soak
@pytest.mark.parametrize("multi_step", [True, False], ids=["ahead", "single"])
@pytest.mark.parametrize(
    ("model", "limits"),
    [
        ({}, {}),
        ({"optimizer": ADAM, "lr_scheduler": EVERY_EPOCH}, {}),
        ({"optimizer": MOMENTUM, "lr_scheduler": EVERY_STEP, "lr_interval": "step"}, {}),
        ({"optimizer": MOMENTUM, "lr_scheduler": PLATEAU}, {"max_epochs": 4}),
        ({"lr_scheduler": PLATEAU}, {"max_epochs": -1, "max_steps": 20}),
        ({}, {"max_epochs": -1, "max_steps": 15}),
        ({}, {"max_epochs": -1, "max_steps": 16, "val_check_interval": 4}),
        ({}, {"val_check_interval": 4}),
        ({}, {"val_check_interval": 4, "check_val_every_n_epoch": None}),
        ({}, {"check_val_every_n_epoch": 2, "max_epochs": 3}),
        ({}, {"limit_val_batches": 0}),
        ({}, {"limit_train_batches": 4}),
        ({}, {"accumulate_grad_batches": 4}),
        ({}, {"log_every_n_steps": 150, "max_epochs": 19}),
        ({}, {"overfit_batches": 3}),
        ({}, {"data": AUGMENTED}),
        ({}, {"data": ENDS}),
        ({"ema": 0.8, "batch_norm": True}, {}),
        ({"ema": 0.8, "optimizer": ADAM}, {"max_epochs": -1, "max_steps": 15}),
        ({"ema": 0.8}, {"val_check_interval": 4}),
        ({"ema": 0.8}, {"accumulate_grad_batches": 4}),
        ({"optimizer": MOMENTUM, "lr_scheduler": COSINE, "lr_interval": "step", "warmup": 4}, {}),
        ({"optimizer": MOMENTUM, "lr_scheduler": COSINE, "warmup": 4}, {"max_epochs": 3}),
        ({"lr_scheduler": PLATEAU, "warmup": 0.1}, {"max_epochs": 4}),
        (
            {"lr_scheduler": COSINE, "lr_interval": "step", "warmup": 0.2},
            {"max_epochs": -1, "max_steps": 15},
        ),
        ({"batch_norm": True, "input_dropout": 0.2, "label_smoothing": 0.1}, {}),
        (
            {
                "batch_norm": True,
                "keep_hardest": 0.3,
                "adversarial_radius": 1.0,
                "adversarial_steps": 2,
            },
            {},
        ),
        ({}, {"patience": 1, "max_epochs": 9}),
        ({}, {"patience": 1, "max_epochs": 9, "min_epochs": 4, "val_check_interval": 2}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if "class_path" not in value else None,
)
def test_a_run_resumes_exactly_from_every_step(
    make_data: MakeData, tmp_path: Path, multi_step: bool, model: Any, limits: Any
) -> None:
    arguments = dict(model)
    limits = {**limits, "ema": arguments.pop("ema", 0.0)}

    def make() -> FNNLitModule:
        torch.manual_seed(0)
        return Dropping(hidden_dims=[8], multi_step=multi_step, **arguments)

    images = {"batch_size": 50, **limits.pop("data", {})}
    whole, end, curves = fit(tmp_path / "whole", make(), make_data(**images), **limits)
    keeper = whole.checkpoint_callbacks[0]
    assert isinstance(keeper, KeepsAll)
    copies = keeper.copies
    assert len(copies) >= whole.global_step // (3 if multi_step else 1)
    chosen = copies[:-1] if len(copies) < 30 else [*copies[:-1:7], copies[-2]]
    for copy in chosen:
        step = torch.load(copy, weights_only=True)["global_step"]
        module = make()
        torch.manual_seed(1)
        folder = tmp_path / copy.stem
        _, resumed_end, resumed = fit(folder, module, make_data(**images), copy, **limits)
        assert_same(resumed_end, end, f"{copy.stem} at step {step}")
        rest = {
            tag: [point for point in points if point[0] > step] for tag, points in curves.items()
        }
        assert resumed == {tag: points for tag, points in rest.items() if points}, step


class SavesAtFour(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 4:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "4.ckpt")


def test_a_checkpoint_that_was_tested_is_not_resumed_by_the_next_fit(
    make_data: MakeData, tmp_path: Path
) -> None:
    def make() -> FNNLitModule:
        torch.manual_seed(0)
        return Dropping(hidden_dims=[8])

    def quiet(folder: str) -> Trainer:
        callbacks = [SavesAtFour(), EMA(0.5)]
        return trainer(tmp_path / folder, callbacks=callbacks, enable_checkpointing=False)

    straight, model = quiet("straight"), make()
    straight.fit(model, datamodule=make_data(batch_size=50))
    again, other = quiet("again"), make()
    checkpoint = tmp_path / "straight" / "4.ckpt"
    again.test(other, datamodule=make_data(), ckpt_path=checkpoint, verbose=False)
    other.load_state_dict(make().state_dict())
    again.fit(other, datamodule=make_data(batch_size=50))
    assert torch.equal(model.train_metrics.losses(), other.train_metrics.losses())
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.pictures
@pytest.mark.parametrize(
    "before", [["validate"], ["test", "predict"], ["tuner"], ["validate with it", "tuner", "test"]]
)
def test_what_a_trainer_did_before_changes_nothing_in_a_fit(
    make_data: MakeData, tmp_path: Path, before: list[str]
) -> None:
    def make() -> FNNLitModule:
        torch.manual_seed(0)
        return Dropping(hidden_dims=[8])

    def make_trainer(folder: str) -> Trainer:
        parts = [
            EMA(0.5),
            RunCheckpoint(monitor="val/acc"),
            RunEarlyStopping(5),
            TensorBoardPlots(),
        ]
        return trainer(tmp_path / folder, callbacks=parts)

    straight, model, data = make_trainer("straight"), make(), make_data(batch_size=50)
    straight.fit(model, datamodule=data)
    last = f"{straight.log_dir}/checkpoints/last.ckpt"
    run, other = make_trainer("used"), make()
    calls: dict[str, Callable[[], Any]] = {
        "validate": lambda: run.validate(other, datamodule=data, verbose=False),
        "validate with it": lambda: run.validate(other, data, ckpt_path=last, verbose=False),
        "test": lambda: run.test(other, datamodule=data, verbose=False),
        "predict": lambda: run.predict(other, datamodule=data),
        "tuner": lambda: Tuner(run).lr_find(other, datamodule=data, update_attr=False),
    }
    for name in before:
        calls[name]()
    other.load_state_dict(make().state_dict())
    make()  # sets the random numbers
    run.fit(other, datamodule=make_data(batch_size=50))
    paths = [f"{each.log_dir}/checkpoints/last.ckpt" for each in (run, straight)]
    ends = [torch.load(path, weights_only=True) for path in paths]
    for end in ends:
        end["loops"] = end["loops"]["fit_loop"]  # the others count what was done before
    assert_same(*ends)
