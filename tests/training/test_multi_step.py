"""Multi-step training must leave no trace: everything is compared with single steps."""

import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LambdaCallback,
    ModelCheckpoint,
)
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.data.augmentation import Augmentation
from fnn_lightning.errors import InputError
from fnn_lightning.training import multi_step as multi_step_file
from fnn_lightning.training.checkpointing import RunCheckpoint, RunEarlyStopping
from fnn_lightning.training.ema import EMA
from fnn_lightning.training.multi_step import check_clock
from fnn_lightning.training.progress_bar import RunProgressBar
from tests.support import ROOT, assert_same, scalars, trainer, why_single_steps

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]

SGD = {"class_path": "SGD", "init_args": {"lr": 0.1}}
MOMENTUM = {"class_path": "SGD", "init_args": {"lr": 0.05, "momentum": 0.9, "nesterov": True}}
ADAM = {"class_path": "Adam", "init_args": {"lr": 0.01}}
ADAFACTOR = {"class_path": "Adafactor", "init_args": {"lr": 0.01}}  # of the module `torch.optim`
EVERY_STEP = {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.3, "total_steps": 60}}
EVERY_EPOCH = {"class_path": "ExponentialLR", "init_args": {"gamma": 0.7}}


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing but the Trainer's own business end a run of steps."""
    monkeypatch.setattr(multi_step_file, "MAX_SECONDS", 1000.0)


class Run:
    """A fit, and all that can be compared of it."""

    def __init__(
        self,
        data: MNISTDataModule,
        model: FNNLitModule,
        folder: Path,
        **kwargs: Any,
    ) -> None:
        ckpt_path = kwargs.pop("ckpt_path", None)
        kwargs.setdefault("callbacks", [RunCheckpoint()])
        self.trainer = trainer(folder, **{"enable_checkpointing": True, **kwargs})
        self.model = model
        self.trainer_steps = 0
        optimizer_step = self.trainer.strategy.optimizer_step

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.trainer_steps += 1
            return optimizer_step(*args, **kwargs)

        vars(self.trainer.strategy)["optimizer_step"] = counted
        self.trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
        self.scalars = scalars(self.trainer.log_dir) if self.trainer.log_dir else {}
        self.trainer.save_checkpoint(folder / "end.ckpt")
        self.end = torch.load(folder / "end.ckpt", weights_only=True)


@pytest.fixture
def both(make_data: MakeData, make_model: MakeModel, tmp_path: Path) -> Callable[..., list[Run]]:
    """Return a function that fits twice, ahead of the Trainer and in single steps."""

    def fit(model: dict[str, Any] | None = None, batch_size: int = 20, **kwargs: Any) -> list[Run]:
        make_callbacks = kwargs.pop("callbacks", lambda: [RunCheckpoint()])
        images = {"batch_size": batch_size, **kwargs.pop("data", {})}
        arguments = dict(model or {})
        decay = arguments.pop("ema", 0.0)
        return [
            Run(
                make_data(**images),
                make_model(multi_step=multi_step, **arguments),
                tmp_path / str(multi_step),
                callbacks=[*([EMA(decay)] if decay else []), *make_callbacks()],
                **kwargs,
            )
            for multi_step in (True, False)
        ]

    return fit


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM], ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize(
    ("scheduler", "interval"),
    [(None, "epoch"), (EVERY_STEP, "step"), (EVERY_EPOCH, "epoch")],
    ids=["constant", "every step", "every epoch"],
)
def test_a_run_is_bit_for_bit_that_of_single_steps(
    both: Callable[..., list[Run]], optimizer: Any, scheduler: Any, interval: str
) -> None:
    model = {"optimizer": optimizer, "lr_scheduler": scheduler, "lr_interval": interval}
    ahead, single = both(model, max_epochs=3, log_every_n_steps=5)
    assert_same(ahead.end, single.end)
    assert ahead.scalars == single.scalars
    assert [step for step, _ in ahead.scalars["lr"]] == [*range(5, 42, 5), 42]
    # 275 images, 14 batches an epoch: the first and the last are the Trainer's
    assert single.trainer_steps == 42
    assert ahead.trainer_steps == 6


@pytest.mark.parametrize(
    "model",
    [
        {"optimizer": ADAFACTOR},
        {"hidden_dims": []},
        {"hidden_dims": [9, 8, 7], "activation": "tanh", "ema": 0.9},
        {"hidden_dims": [9], "activation": "sigmoid", "pixel_mean": 0.1, "pixel_std": 0.3},
    ],
)
def test_gradients_written_out_are_those_of_single_steps(
    both: Callable[..., list[Run]], model: dict[str, Any]
) -> None:
    ahead, single = both(model, max_epochs=2)
    assert_same(ahead.end, single.end)
    assert ahead.scalars == single.scalars


def test_random_layers_and_counters_are_those_of_single_steps(
    both: Callable[..., list[Run]],
) -> None:
    layers = {"batch_norm": True, "dropout": 0.3, "input_dropout": 0.2, "initialization": "he"}
    options = {"label_smoothing": 0.1, "keep_hardest": 0.5, "ema": 0.9}
    ahead, single = both({**layers, **options}, max_epochs=2)
    assert_same(ahead.end, single.end)
    assert ahead.scalars == single.scalars
    assert ahead.trainer_steps < single.trainer_steps == 28


def stop_early() -> list[Callback]:
    return [RunEarlyStopping(patience=0, min_delta=1.0)]


@pytest.mark.parametrize(
    ("limits", "steps", "taken"),
    [
        ({"max_epochs": -1, "max_steps": 20}, 20, 4),  # 1, 14 | 15, 20
        ({"limit_train_batches": 9}, 18, 4),
        ({"limit_train_batches": 0.5}, 14, 4),
        ({"val_check_interval": 5}, 28, 12),  # 1, 5, 6, 10, 11, 14 of each epoch
        ({"val_check_interval": 0.5}, 28, 8),
        ({"val_check_interval": 5, "check_val_every_n_epoch": None}, 28, 13),
        ({"check_val_every_n_epoch": 2}, 28, 4),
        ({"overfit_batches": 6}, 12, 4),
        ({"fast_dev_run": 8}, 8, 2),
        ({"max_time": timedelta(hours=1)}, 28, 4),
        ({"val_check_interval": timedelta(hours=1)}, 28, 4),
        ({"log_every_n_steps": 0}, 28, 4),
        ({"log_every_n_steps": 1}, 28, 4),
        ({"logger": False}, 28, 4),
        ({"detect_anomaly": True}, 28, 4),
        ({"data": {"augmentation": Augmentation(rotation=20.0, elastic=1.0)}}, 28, 4),
        (
            {"callbacks": lambda: [RunCheckpoint(every_n_steps=4)]},
            28,
            16,
        ),  # 1, 4, 5, 8, 9, 12, 13, 14 | …
        ({"callbacks": lambda: [ModelCheckpoint(monitor="val/acc")]}, 28, 4),
        ({"callbacks": stop_early, "max_epochs": 9}, 28, 4),
        ({"callbacks": stop_early, "max_epochs": 9, "min_steps": 33}, 33, 6),
        ({"callbacks": lambda: [RunProgressBar()], "enable_progress_bar": True}, 28, 4),
        ({"enable_progress_bar": True, "callbacks": list}, 28, 4),  # Lightning's own bar
    ],
    # without the addresses of functions: the processes of pytest-xdist must agree on the names
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value)),
)
def test_every_limit_counts_steps_as_single_steps_do(
    both: Callable[..., list[Run]],
    limits: dict[str, Any],
    steps: int,
    taken: int,
) -> None:
    ahead, single = both(**{"max_epochs": 2, "log_every_n_steps": 3, **limits})
    assert ahead.trainer.global_step == single.trainer.global_step == steps
    assert ahead.trainer.current_epoch == single.trainer.current_epoch
    assert ahead.scalars == single.scalars
    for run in (ahead, single):
        run.end["callbacks"] = {  # that of the clock
            name: state for name, state in run.end["callbacks"].items() if name != "Timer"
        }
    assert_same(ahead.end, single.end)
    assert (ahead.trainer_steps, single.trainer_steps) == (taken, steps)
    assert {key: float(value) for key, value in ahead.trainer.callback_metrics.items()} == {
        key: float(value) for key, value in single.trainer.callback_metrics.items()
    }


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every look at the clock take 0.1 seconds."""
    looks = count()
    monkeypatch.setattr(time, "monotonic", lambda: next(looks) / 10)


@pytest.mark.usefixtures("ticks")
@pytest.mark.parametrize("every", [None, 1, 2], ids=["no epochs", "every epoch", "every 2 epochs"])
def test_validation_by_the_clock_trains_as_any_other(
    both: Callable[..., list[Run]],
    make_data: MakeData,
    make_model: MakeModel,
    tmp_path: Path,
    every: int | None,
) -> None:
    limits = {
        "max_epochs": 4,
        "val_check_interval": timedelta(seconds=2),
        "check_val_every_n_epoch": every,
    }
    callbacks = lambda: [SaveAt20(), RunCheckpoint()]  # noqa: E731
    ahead, single = both(callbacks=callbacks, **limits)
    saved = tmp_path / "True" / "20.ckpt"
    resumed = Run(
        make_data(batch_size=20), make_model(), tmp_path / "resumed", ckpt_path=saved, **limits
    )
    assert ahead.trainer_steps < single.trainer_steps == 56
    expected = single.model.train_metrics.losses()
    for run in (ahead, resumed):
        assert torch.equal(run.model.train_metrics.losses(), expected)
        assert_same(run.end["state_dict"], single.end["state_dict"])
    for run in (ahead, single):  # more than once, and not after every step
        validated = [step for step, _ in run.scalars["val/acc"]]
        assert 1 < len(validated) < 40
        # epochs of 14 steps; the Trainer counts them from 1
        assert every != 2 or all(-(-step // 14) % 2 == 0 for step in validated)


def test_validation_by_the_clock_needs_one_rank(tmp_path: Path) -> None:
    interval = timedelta(minutes=1)
    check_clock(trainer(tmp_path, val_check_interval=interval))
    with pytest.raises(InputError, match="but got 60 seconds on 2 ranks"):
        check_clock(trainer(tmp_path, val_check_interval=interval, strategy="ddp", devices=2))


class SaveAt20(Callback):
    acts_every_n_steps = 20

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 20:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "20.ckpt")


def test_a_checkpoint_of_either_resumes_in_the_other(
    both: Callable[..., list[Run]], make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    model = {"optimizer": ADAM, "lr_scheduler": EVERY_STEP, "lr_interval": "step"}
    # in the middle of the second epoch
    ahead, single = both(model, max_epochs=3, callbacks=lambda: [SaveAt20(), RunCheckpoint()])
    for saved, multi_step in ((ahead, False), (single, True)):
        resumed = Run(
            make_data(batch_size=20),
            make_model(multi_step=multi_step, **model),
            tmp_path / f"resumed {multi_step}",
            max_epochs=3,
            ckpt_path=Path(saved.trainer.default_root_dir) / "20.ckpt",
        )
        assert resumed.trainer_steps == (4 if multi_step else 22)  # 21, 28 | 29, 42
        assert_same(resumed.end["state_dict"], single.end["state_dict"])
        assert_same(resumed.end["optimizer_states"], single.end["optimizer_states"])
        assert_same(resumed.end["lr_schedulers"], single.end["lr_schedulers"])
        assert resumed.end["global_step"] == 42


class Watcher(Callback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.seen.append(trainer.global_step)


class Sparse(Watcher):
    acts_every_n_steps = 4


class OwnBar(RunProgressBar):
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None: ...


class OwnStep(FNNLitModule):
    def on_after_backward(self) -> None:
        self.called = getattr(self, "called", 0) + 1


class OwnTransfer(MNISTDataModule):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0], 9 - batch[1]


PLATEAU = {"class_path": "ReduceLROnPlateau", "init_args": {"monitor": "val/loss"}}


@pytest.mark.parametrize(
    ("kwargs", "model", "reason"),
    [
        ({"accumulate_grad_batches": 2}, {}, "gradients are accumulated"),
        ({"gradient_clip_val": 0.1}, {}, "gradients are clipped"),
        ({"precision": "bf16-mixed"}, {}, "the precision is bf16-mixed"),
        ({"profiler": "simple"}, {}, "the run is profiled"),
        ({"reload_dataloaders_every_n_epochs": 1}, {}, "the dataloader is reloaded"),
        ({}, {"optimizer": {"class_path": "LBFGS"}}, "LBFGS computes the loss several times"),
        ({}, {"lr_scheduler": PLATEAU, "lr_interval": "step"}, "ReduceLROnPlateau looks at"),
        ({}, {"multi_step": False}, "multi_step is off"),
        ({"callbacks": [Watcher()]}, {}, "Watcher watches every batch"),
        ({"callbacks": [LambdaCallback(on_after_backward=print)]}, {}, "LambdaCallback watches"),
        ({"callbacks": [OwnBar()], "enable_progress_bar": True}, {}, "OwnBar watches"),
        ({"callbacks": [ModelCheckpoint(every_n_train_steps=7)]}, {}, "ModelCheckpoint watches"),
        (
            {"callbacks": [GradientAccumulationScheduler({1: 2})]},
            {},
            "gradients are accumulated",
        ),
    ],
)
def test_settings_that_need_the_trainer_get_single_steps(
    make_data: MakeData,
    make_model: MakeModel,
    tmp_path: Path,
    kwargs: dict[str, Any],
    model: dict[str, Any],
    reason: str,
) -> None:
    module = make_model(**model)
    run = trainer(tmp_path, **{"max_epochs": 1, "limit_train_batches": 4, **kwargs})
    # a plateau by the step needs a validation before the first one
    expected = (
        pytest.raises(MisconfigurationException) if "lr_scheduler" in model else nullcontext()
    )
    with expected:
        run.fit(module, datamodule=make_data(batch_size=20))
    assert reason in str(why_single_steps(run))


def test_own_hooks_see_every_step(make_data: MakeData, data_dir: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = OwnStep(hidden_dims=[8])
    run = trainer(tmp_path, max_epochs=1)
    run.fit(own, datamodule=make_data(batch_size=20))
    assert why_single_steps(run) == "OwnStep has its own on_after_backward"
    assert own.called == 14

    data = OwnTransfer(data_dir=data_dir)
    module = FNNLitModule(hidden_dims=[8])
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=data)
    assert why_single_steps(run) == "OwnTransfer has its own on_after_batch_transfer"


def test_other_loaders_get_single_steps(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    data, module = make_data(), make_model()
    data.setup("fit")
    loader: Any = DataLoader(list(data.train_dataloader()), batch_size=None)  # type: ignore[arg-type]
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, loader, data.val_dataloader())
    assert why_single_steps(run) == "the batches come from a DataLoader"


def test_a_callback_sees_every_step_it_declares(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    sparse = Sparse()
    run = trainer(tmp_path, callbacks=[sparse], max_epochs=1)
    run.fit(make_model(), datamodule=make_data(batch_size=20))
    assert sparse.seen == [1, 4, 5, 8, 9, 12, 13, 14]


def test_hooks_of_the_optimizer_are_called(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    calls: list[str] = []

    class Hooks(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            optimizer = trainer.optimizers[0]
            optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
            optimizer.register_step_post_hook(lambda *_: calls.append("post"))

    handle = register_optimizer_step_post_hook(lambda *_: calls.append("global"))
    try:
        run = trainer(tmp_path, callbacks=[Hooks()], max_epochs=1)
        run.fit(make_model(), datamodule=make_data(batch_size=20))
    finally:
        handle.remove()
    assert calls.count("pre") == calls.count("post") == calls.count("global") == 14


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"foreach": True},
        {"fused": True},
        {"lr": torch.tensor(0.1)},
        {"maximize": True},
        {"weight_decay": 0.1},
        {"momentum": 0.9, "dampening": 0.5},
    ],
    ids=str,
)
def test_a_bare_step_is_that_of_the_optimizer(settings: dict[str, Any]) -> None:
    def weights_after(take_steps: Callable[[torch.optim.Optimizer], Callable[[], Any]]) -> Any:
        numbers = torch.Generator().manual_seed(0)
        weights = [torch.randn(4, 5, generator=numbers, requires_grad=True) for _ in range(4)]
        first, second, *frozen = weights
        groups: list[dict[str, Any]] = [{"params": [first, frozen[0]]}]
        groups += [{"params": [second], "lr": 0.3}, {"params": frozen[1:]}]
        optimizer = torch.optim.SGD(groups, **{"lr": 0.1, **settings})
        step = take_steps(optimizer)
        for _ in range(3):
            for each in (first, second):
                each.grad = torch.randn(4, 5, generator=numbers)
            step()
            optimizer.param_groups[1]["lr"] *= 0.5  # as a schedule does
        return weights

    bare = weights_after(multi_step_file.bare_step)
    assert_same(bare, weights_after(lambda optimizer: optimizer.step))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without an NVIDIA GPU")
def test_adam_does_not_look_for_a_gpu_at_every_step(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as Lightning sets it
    looked: list[int] = []
    look = torch.cuda._device_count_nvml

    def watched() -> Any:
        looked.append(1)
        return look()

    monkeypatch.setattr(torch.cuda, "_device_count_nvml", watched)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(make_model(optimizer=ADAM), datamodule=make_data(batch_size=10))
    assert run.global_step == 28
    assert len(looked) < 14


def test_control_returns_to_the_trainer_after_max_seconds(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multi_step_file, "MAX_SECONDS", 0.0)  # one step ahead, one the Trainer's
    run = Run(make_data(batch_size=20), make_model(), tmp_path, max_epochs=1)
    assert run.trainer.global_step == 14
    assert run.trainer_steps == 8  # 1, 3, 5, …, 13, 14


def test_an_interrupted_step_leaves_the_counts_right(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_model()
    update, batches = module.train_metrics.update, []

    def stop_at_seven(output: Any) -> None:
        batches.append(output)
        if len(batches) == 7:
            raise RuntimeError("stop")
        update(output)

    monkeypatch.setattr(module.train_metrics, "update", stop_at_seven)
    run = trainer(tmp_path, max_epochs=1)
    with pytest.raises(RuntimeError, match="stop"):
        run.fit(module, datamodule=make_data(batch_size=20))
    assert run.global_step == 6


def test_iterating_over_the_dataloader_trains_nothing(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    module = make_model()
    run = trainer(tmp_path, max_epochs=-1, max_steps=5)  # ends within an epoch
    run.fit(module, datamodule=make_data(batch_size=20))
    source: Any = run.train_dataloader
    before = [parameter.clone() for parameter in module.parameters()]
    assert len(list(source)) == 14
    assert run.global_step == 5
    for now, then in zip(module.parameters(), before, strict=True):
        assert torch.equal(now, then)


def test_a_hook_set_on_the_module_is_called(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    module, calls = make_model(), []
    vars(module)["on_after_backward"] = lambda: calls.append(1)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=make_data(batch_size=20))
    assert len(calls) == 14


def test_no_other_file_touches_the_trainer_s_loops() -> None:
    private = re.compile(
        r"fit_loop|epoch_loop|_data_fetcher|_combined_loader|_batches_that_stepped"
        r"|_should_check_val|_can_stop_early|trainer\._|pytorch\.loops"
    )
    files = (ROOT / "fnn_lightning").rglob("*.py")
    found = {path.name for path in files if private.search(path.read_text(encoding="utf-8"))}
    # `checkpoint_io.py` reads the counts from a checkpoint's data
    assert found == {"multi_step.py", "checkpoint_io.py"}
