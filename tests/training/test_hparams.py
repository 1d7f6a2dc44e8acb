from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.data.augmentation import Augmentation
from fnn_lightning.training.ema import EMA
from fnn_lightning.training.hparams import collect_settings
from tests.support import trainer

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]


def settings(data: MNISTDataModule, model: FNNLitModule, tmp_path: Path, *callbacks: Any) -> Any:
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, callbacks=list(callbacks))
    run.fit(model, datamodule=data)
    return collect_settings(run, model)


def test_every_run_has_the_same_names_and_its_own_values(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    plain = settings(make_data(), make_model(), tmp_path)
    other = settings(
        make_data(val_size=20, train_size=30, augmentation=Augmentation(rotation=5.0)),
        make_model(
            hidden_dims=[9, 7],
            dropout=0.1,
            optimizer={"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
            lr_scheduler={"class_path": "StepLR", "init_args": {"step_size": 3}},
        ),
        tmp_path,
        EMA(0.9),
    )
    assert sorted(plain) == sorted(other)
    assert all(isinstance(value, bool | int | float | str) for value in other.values())
    expected = {
        "depth": (1, 2),
        "width": (8, 9),
        "lr": (0.1, 0.01),
        "ema.decay": (0.0, 0.9),
        "hidden_dims": ("[8]", "[9, 7]"),
        "dropout": (0.0, 0.1),
        "optimizer": ("SGD", "Adam"),
        "optimizer_args": ('{"lr": 0.1}', '{"lr": 0.01}'),
        "lr_scheduler": ("none", "StepLR"),
        "lr_scheduler_args": ("{}", '{"step_size": 3}'),
        "augmentation.rotation": (0.0, 5.0),
        "val_size": ("none", 20),
        "train_size": ("none", 30),
        "folds": ("none", "none"),
        "fold": ("none", "none"),
    }
    assert {name: (plain[name], other[name]) for name in expected} == expected
    assert "data_dir" not in plain


def test_loggers_other_than_tensorboard_get_the_settings_too(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    run = trainer(tmp_path, max_epochs=1, logger=CSVLogger(tmp_path, version="csv"))
    run.fit(make_model(hidden_dims=[5, 6]), datamodule=make_data())
    text = (tmp_path / "lightning_logs" / "csv" / "hparams.yaml").read_text()
    assert "width: 6\n" in text
    assert "ema.decay: 0.0\n" in text


class WithFolder(FNNLitModule):
    def __init__(self, folder: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)


def test_arguments_that_are_no_plain_data_are_logged_as_text(
    make_data: MakeData, tmp_path: Path
) -> None:
    logged = settings(make_data(), WithFolder(Path("a/b"), hidden_dims=[4]), tmp_path)
    assert logged["folder"] == "a/b"
