"""Learning rates, step by step, against values computed by hand."""

import math
from collections.abc import Callable
from datetime import timedelta
from math import cos, pi
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.commands.main import main
from fnn_lightning.errors import InputError
from fnn_lightning.runs.loggers import read_curves
from fnn_lightning.training.checkpointing import RunCheckpoint
from tests.support import scalars, trainer

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]


def scheduled(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


def linear(start: float, end: float, steps: int) -> list[float]:
    return [start + (end - start) * k / steps for k in range(steps)]


# 275 images in batches of 55: five steps an epoch, two epochs, a learning rate of 0.4
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"warmup": 3}, [0.1, 0.2, 0.3] + [0.4] * 7),
        ({"warmup": 0.3}, [0.1, 0.2, 0.3] + [0.4] * 7),
        ({"warmup": 0.04}, [0.4] * 10),  # less than half a step
        (
            {"lr_scheduler": scheduled("CosineAnnealingLR"), "lr_interval": "step"},
            [0.2 * (1 + cos(pi * k / 10)) for k in range(10)],
        ),
        (
            {"lr_scheduler": scheduled("CosineAnnealingLR", T_max=0), "lr_interval": "epoch"},
            [0.4] * 5 + [0.2] * 5,
        ),
        (
            {"lr_scheduler": scheduled("CosineAnnealingLR", T_max=20), "lr_interval": "step"},
            [0.2 * (1 + cos(pi * k / 20)) for k in range(10)],
        ),
        (
            {
                "lr_scheduler": scheduled("CosineAnnealingLR", T_max=None),
                "lr_interval": "step",
                "warmup": 3,
            },
            [0.1, 0.2, 0.3] + [0.2 * (1 + cos(pi * k / 7)) for k in range(7)],
        ),
        (
            {
                "lr_scheduler": scheduled(
                    "LinearLR", start_factor=1.0, end_factor=0.0, total_iters=0
                ),
                "lr_interval": "step",
                "warmup": 0.2,
            },
            [0.4 / 3, 0.8 / 3, *linear(0.4, 0, 8)],
        ),
        (  # PyTorch's own default, five
            {
                "lr_scheduler": scheduled("LinearLR", start_factor=1.0, end_factor=0.5),
                "lr_interval": "step",
            },
            linear(0.4, 0.2, 5) + [0.2] * 5,
        ),
        (
            {
                "lr_scheduler": scheduled("PolynomialLR", total_iters=0, power=2.0),
                "lr_interval": "step",
            },
            [0.4 * (1 - k / 10) ** 2 for k in range(10)],
        ),
        (  # rises over half of ten steps, to step 4, and falls to the last one, 9
            {
                "lr_scheduler": scheduled(
                    "OneCycleLR",
                    max_lr=0.8,
                    pct_start=0.5,
                    anneal_strategy="linear",
                    div_factor=8.0,
                    final_div_factor=1.0,
                ),
                "lr_interval": "step",
            },
            [*linear(0.1, 0.8, 4), *linear(0.8, 0.1, 5), 0.1],
        ),
        (  # after the warm-up its own eight steps: to step 3, and to step 7
            {
                "lr_scheduler": scheduled(
                    "OneCycleLR",
                    max_lr=0.8,
                    total_steps=None,
                    pct_start=0.5,
                    anneal_strategy="linear",
                    div_factor=8.0,
                    final_div_factor=1.0,
                ),
                "lr_interval": "step",
                "warmup": 2,
            },
            [0.1 / 3, 0.2 / 3, *linear(0.1, 0.8, 3), *linear(0.8, 0.1, 4), 0.1],
        ),
        (
            {"lr_scheduler": scheduled("ExponentialLR", gamma=0.5), "warmup": 3},
            [0.1, 0.2, 0.3, 0.4, 0.4] + [0.2] * 5,
        ),
        (
            {"lr_scheduler": scheduled("ExponentialLR", gamma=0.5), "warmup": 5},
            [0.4 * k / 6 for k in range(1, 6)] + [0.2] * 5,
        ),
        (
            {
                "lr_scheduler": scheduled("ExponentialLR", gamma=0.5),
                "lr_interval": "step",
                "warmup": 1,
            },
            [0.2] + [0.4 * 0.5**k for k in range(9)],
        ),
    ],
)
@pytest.mark.parametrize("multi_step", [True, False], ids=["ahead", "single"])
def test_the_learning_rate_of_every_step(
    make_data: MakeData,
    make_model: MakeModel,
    tmp_path: Path,
    model: Any,
    expected: list[float],
    multi_step: bool,
) -> None:
    sgd = {"class_path": "SGD", "init_args": {"lr": 0.4, "momentum": 0.9}}
    module = make_model(optimizer=sgd, multi_step=multi_step, **model)
    run = trainer(tmp_path, log_every_n_steps=1)
    run.fit(module, datamodule=make_data(batch_size=55))
    rates = scalars(run.log_dir)["lr"]
    assert [step for step, _ in rates] == list(range(1, 11))
    assert [value for _, value in rates] == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_epochs": 3}, 15),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": 3, "max_steps": 8}, 8),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, 6),  # three steps an epoch
        ({"max_epochs": 3, "limit_train_batches": 2}, 6),
        ({"max_epochs": 3, "overfit_batches": 1}, 3),
    ],
)
def test_a_schedule_takes_its_length_from_the_run(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, limits: Any, steps: int
) -> None:
    module = make_model(lr_scheduler=scheduled("CosineAnnealingLR"), lr_interval="step")
    run = trainer(tmp_path, **limits)
    run.fit(module, datamodule=make_data(batch_size=55))
    assert run.global_step == steps
    scheduler: Any = run.lr_scheduler_configs[0].scheduler
    assert scheduler.T_max == steps
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("limits", "steps"),
    [({"fast_dev_run": 2}, 2), ({"max_steps": 0}, 0), ({"limit_train_batches": 0}, 0)],
)
def test_a_fast_dev_run_accepts_any_length(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, limits: Any, steps: int
) -> None:
    one_cycle = scheduled("OneCycleLR", max_lr=0.8)
    module = make_model(lr_scheduler=one_cycle, lr_interval="step", warmup=9)
    run = trainer(tmp_path, **limits)
    run.fit(module, datamodule=make_data(batch_size=55))
    assert run.global_step == steps


class SaveFirstEpoch(Callback):
    """Saves the state at the end of the first epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "first.ckpt")


@pytest.mark.parametrize("max_epochs", [-1, 4])
def test_a_run_limited_by_steps_resumes_from_the_end_of_an_epoch(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, max_epochs: int
) -> None:
    weights = []
    for ckpt_path in (None, tmp_path / "first.ckpt"):
        module = make_model(
            lr_scheduler=scheduled("CosineAnnealingLR"), lr_interval="step", warmup=2
        )
        callbacks = [SaveFirstEpoch(), RunCheckpoint()]
        run = trainer(tmp_path, callbacks=callbacks, max_epochs=max_epochs, max_steps=12)
        run.fit(module, datamodule=make_data(batch_size=55), ckpt_path=ckpt_path)
        assert run.global_step == 12
        assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
        weights.append(torch.cat([each.flatten() for each in module.parameters()]))
    assert torch.equal(*weights)


def test_warm_up_before_a_plateau(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"monitor": "val/loss", "factor": 0.1, "patience": 0}
    plateau = scheduled("ReduceLROnPlateau", threshold=1e9, threshold_mode="abs", **arguments)
    run = trainer(tmp_path, max_epochs=3, log_every_n_steps=1)
    run.fit(make_model(lr_scheduler=plateau, warmup=1), datamodule=make_data(batch_size=100))
    rates = [value for _, value in scalars(run.log_dir)["lr"]]
    assert rates == pytest.approx([0.05] + [0.1] * 5 + [0.01] * 3)


COSINE = {"lr_scheduler": scheduled("CosineAnnealingLR")}


@pytest.mark.parametrize(
    ("model", "limits", "message"),
    [
        ({"warmup": 10}, {}, "shorter than the run of 10 steps, but got 10"),
        ({**COSINE, "warmup": 6}, {}, "end within the first epoch, of 5 steps, but got 6 steps"),
        (
            COSINE,
            {"max_epochs": -1, "max_time": timedelta(seconds=9)},
            r"Expected --trainer.max_epochs or --trainer.max_steps",
        ),
        (
            {
                "lr_scheduler": scheduled("ReduceLROnPlateau", monitor="val/loss"),
                "lr_interval": "step",
                "warmup": 1,
            },
            {},
            "`lr_interval` to be epoch with `warmup` and ReduceLROnPlateau",
        ),
    ],
)
def test_settings_that_exclude_each_other_are_refused(
    make_data: MakeData,
    make_model: MakeModel,
    tmp_path: Path,
    model: Any,
    limits: Any,
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, **limits).fit(make_model(**model), datamodule=make_data(batch_size=55))


@pytest.mark.parametrize(
    "limits", [{"check_val_every_n_epoch": 2}, {"val_check_interval": timedelta(hours=1)}], ids=str
)
def test_a_plateau_needs_a_validation_in_the_first_epoch(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, limits: Any
) -> None:
    module = make_model(lr_scheduler=scheduled("ReduceLROnPlateau", monitor="val/loss"))
    run = trainer(tmp_path, callbacks=[RunCheckpoint()], enable_checkpointing=True, **limits)
    with pytest.raises(InputError, match=r"Expected a validation before the first epoch ends"):
        run.fit(module, datamodule=make_data())


@pytest.mark.parametrize("warmup", [-1, 1.5, float("nan"), float("inf")])
def test_a_warmup_out_of_range_is_refused(warmup: float) -> None:
    with pytest.raises(InputError, match="Expected `warmup` to be a number of steps"):
        FNNLitModule(warmup=warmup)


def test_the_command_line_fills_in_the_length_of_a_schedule(
    data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data.data_dir", data_dir, "--model.hidden_dims", "[]", "--data.batch_size", "55",
               "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1"]  # fmt: skip
    with pytest.raises(SystemExit):  # jsonargparse asks for what PyTorch has no default for
        main(["fit", *options, "--lr_scheduler", "CosineAnnealingLR"])
    assert "required: T_max (0 is the length of the run)" in capsys.readouterr().err
    main(["fit", *options, "--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", "0",
          "--model.lr_interval", "step", "--model.warmup", "0.2"])  # fmt: skip
    expected = [0.1 / 3, 0.2 / 3] + [0.05 * (1 + cos(pi * k / 8)) for k in range(8)]
    run = Path("lightning_logs/version_0")
    assert [value for _, value in read_curves(run)["lr"]] == pytest.approx(expected, abs=1e-8)

    last = str(run / "checkpoints" / "last.ckpt")
    capsys.readouterr()
    for changed, message in (
        (["--trainer.max_epochs", "3"], "2 steps of warm-up and a length of 8 then"),
        (["--model.warmup", "0"], "Expected `model.warmup` to be 0.2, with which the run began"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--ckpt_path", last, *changed])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err

    main(["fit", *options, "--lr_scheduler", "OneCycleLR", "--lr_scheduler.max_lr", "0.5",
          "--model.lr_interval", "step"])  # fmt: skip
    scheduler = torch.load("lightning_logs/version_1/checkpoints/last.ckpt", weights_only=True)
    assert scheduler["lr_schedulers"][0]["total_steps"] == 10


@pytest.mark.parametrize(
    ("interval", "expected"),
    [("step", [0.4, 0.2, 0.1, 0.05, 0.025, 0.0125]), ("epoch", [0.4] * 3 + [0.2] * 3)],
)
def test_a_schedule_counts_steps_or_epochs(
    make_data: MakeData,
    make_model: MakeModel,
    tmp_path: Path,
    interval: str,
    expected: list[float],
) -> None:
    model = make_model(
        optimizer={"class_path": "SGD", "init_args": {"lr": 0.4}},
        lr_scheduler={"class_path": "ExponentialLR", "init_args": {"gamma": 0.5}},
        lr_interval=interval,
    )
    run = trainer(tmp_path, log_every_n_steps=1)
    run.fit(model, datamodule=make_data())
    assert [value for _, value in scalars(run.log_dir)["lr"]] == pytest.approx(expected)


def test_a_plateau_schedule_follows_its_metric(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"monitor": "val/loss", "factor": 0.1, "patience": 0}
    arguments |= {"threshold": 1e9, "threshold_mode": "abs"}
    model = make_model(
        lr_scheduler={"class_path": "ReduceLROnPlateau", "init_args": arguments},
    )
    run = trainer(tmp_path, max_epochs=3, log_every_n_steps=3)
    run.fit(model, datamodule=make_data())
    # No improvement is ever large enough: the first epoch sets the mark, the second misses it.
    rates = [value for _, value in scalars(run.log_dir)["lr"]]
    assert rates == pytest.approx([0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": {"class_path": "torch.optim.Sgd"}}, "a class of torch.optim"),
        ({"optimizer": {"class_path": "os.system"}}, "a class of torch.optim"),
        ({"optimizer": {"class_path": "elsewhere.SGD"}}, "a class of torch.optim"),
        ({"optimizer": {"class_path": "torch.optim.Optimizer"}}, "a class of torch.optim"),
        ({"optimizer": "SGD"}, "a class of torch.optim"),
        ({"lr_scheduler": {"class_path": "torch.optim.SGD"}}, "class of torch.optim.lr_scheduler"),
        ({"optimizer": {"class_path": "SGD", "init_args": {"lr": 0}}}, "`lr` to be positive"),
        ({"optimizer": {"class_path": "SGD", "init_args": {"lr": math.inf}}}, "to be positive"),
    ],
)
def test_what_is_no_optimizer_or_scheduler_is_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        FNNLitModule(**arguments)


def test_an_argument_the_optimizer_refuses_is_an_input_error() -> None:
    module = FNNLitModule(optimizer={"class_path": "SGD", "init_args": {"momentum": -1.0}})
    with pytest.raises(InputError, match="SGD cannot be made: Invalid momentum value"):
        module.configure_optimizers()
