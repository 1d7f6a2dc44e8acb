import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.errors import InputError
from fnn_lightning.training.checkpointing import RunCheckpoint, RunEarlyStopping
from tests.support import trainer

MakeData = Callable[..., MNISTDataModule]


class Scripted(FNNLitModule):
    """Reports a given value after each validation, whatever the network does."""

    def __init__(self, values: list[float]) -> None:
        super().__init__(hidden_dims=[4])
        self.values = iter(values)

    def on_validation_epoch_end(self) -> None:
        value = next(self.values)
        self.log_dict({"val/acc": value, "val/loss": value})


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def run_with(callback: Any, model: FNNLitModule, data: MNISTDataModule, **kwargs: Any) -> Trainer:
    run = trainer(Path(), callbacks=[callback], **{"max_epochs": 4, **kwargs})
    run.fit(model, datamodule=data)
    return run


@pytest.mark.parametrize(
    ("metric", "mode", "values", "best_epoch"),
    [
        ("val/acc", None, [0.5, 0.9, 0.7, 0.9], 2),
        ("val/loss", None, [0.5, 0.9, 0.2, 0.4], 3),
        ("val/loss", "max", [0.5, 0.9, 0.2, 0.4], 2),
    ],
)
def test_best_and_last_are_kept(
    make_data: MakeData, metric: Any, mode: Any, values: list[float], best_epoch: int
) -> None:
    checkpoint = RunCheckpoint(monitor=metric, mode=mode)
    run = run_with(checkpoint, Scripted(values), make_data())  # 3 steps an epoch
    folder = Path(str(run.log_dir)) / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert step_of(folder / "best.ckpt") == 3 * best_epoch
    assert step_of(folder / "last.ckpt") == 12
    assert checkpoint.best_score == pytest.approx(values[best_epoch - 1])


def test_only_last_is_kept_without_a_metric(make_data: MakeData) -> None:
    run = run_with(RunCheckpoint(), FNNLitModule(hidden_dims=[4]), make_data())
    assert [path.name for path in Path(str(run.log_dir)).glob("**/*.ckpt")] == ["last.ckpt"]


@pytest.mark.parametrize("limits", [{"limit_val_batches": 0}, {"val_check_interval": 2}, {}])
def test_last_is_the_last_step_even_in_the_middle_of_an_epoch(
    make_data: MakeData, limits: dict[str, int]
) -> None:
    run = run_with(
        RunCheckpoint(), FNNLitModule(hidden_dims=[4]), make_data(), max_steps=5, **limits
    )
    assert step_of(Path(str(run.log_dir)) / "checkpoints" / "last.ckpt") == 5


def test_last_is_written_every_n_steps(
    make_data: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    save = Trainer.save_checkpoint

    def spy(self: Trainer, path: Any, *args: Any, **kwargs: Any) -> None:
        saved.append(self.global_step)
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", spy)
    data = make_data(batch_size=40)  # 7 steps an epoch
    run_with(RunCheckpoint(every_n_steps=2), FNNLitModule(hidden_dims=[4]), data, max_epochs=2)
    # at steps 7 and 14 at the end of the epoch, with what validation found
    assert saved == [2, 4, 6, 7, 8, 10, 12, 14]


def test_a_resumed_run_remembers_its_best(make_data: MakeData) -> None:
    first = RunCheckpoint(monitor="val/acc")
    run = run_with(first, Scripted([0.5, 0.9, 0.7, 0.6]), make_data())
    last = str(Path(str(run.log_dir)) / "checkpoints" / "last.ckpt")
    second = RunCheckpoint(monitor="val/acc")
    run = trainer(Path(), callbacks=[second], max_epochs=6)
    run.fit(Scripted([0.8, 0.85]), datamodule=make_data(), ckpt_path=last, weights_only=True)
    assert second.best_score == pytest.approx(0.9)
    assert second.best_model_path == ""  # it lies in the other run's folder


@pytest.mark.parametrize(
    ("arguments", "values", "epochs"),
    [
        ({"patience": 2}, [0.5, 0.6, 0.6, 0.55, 0.9, 0.9], 4),
        ({"patience": 1, "monitor": "val/loss"}, [0.5, 0.4, 0.6, 0.1, 0.1], 3),
        ({"patience": 2, "min_delta": 0.2}, [0.5, 0.6, 0.65, 0.9, 0.9], 3),
    ],
)
def test_training_stops_after_patience_validations_without_improvement(
    make_data: MakeData, arguments: dict[str, Any], values: list[float], epochs: int
) -> None:
    data = make_data()
    run = run_with(RunEarlyStopping(**arguments), Scripted(values), data, max_epochs=len(values))
    assert run.global_step == 3 * epochs


def test_an_argument_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="`every_n_steps` to be 1 or more, but got 0"):
        RunCheckpoint(every_n_steps=0)
    with pytest.raises(InputError, match="`patience` to be 0 or more, but got -1"):
        RunEarlyStopping(patience=-1)


@pytest.mark.parametrize(("minutes", "steps"), [(1e-9, [1, 2, 3, 4, 5, 6, 7]), (60.0, [7])])
def test_last_is_written_every_n_minutes(
    make_data: MakeData, monkeypatch: pytest.MonkeyPatch, minutes: float, steps: list[int]
) -> None:
    saved = []
    monkeypatch.setattr(
        Trainer, "save_checkpoint", lambda self, *_, **__: saved.append(self.global_step)
    )
    module = FNNLitModule(hidden_dims=[4], multi_step=False)
    run_with(RunCheckpoint(every_n_minutes=minutes), module, make_data(batch_size=40), max_epochs=1)
    assert saved == steps


def test_a_second_module_of_a_trainer_gets_a_folder_and_patience_of_its_own(
    make_data: MakeData, tmp_path: Path
) -> None:
    checkpoint, stopping = RunCheckpoint(monitor="val/acc"), RunEarlyStopping(patience=2)
    run = trainer(tmp_path, callbacks=[checkpoint, stopping], max_epochs=2)
    run.fit(Scripted([0.8, 0.9]), datamodule=make_data())
    first = {path: Path(path).read_bytes() for path in (checkpoint.last_model_path,
                                                        checkpoint.best_model_path)}  # fmt: skip
    run.fit_loop.max_epochs = 5  # counted on
    run.fit(Scripted([0.1, 0.2, 0.3]), datamodule=make_data())
    assert checkpoint.best_score == pytest.approx(0.3)
    assert {path: Path(path).read_bytes() for path in first} == first
    assert not {checkpoint.last_model_path, checkpoint.best_model_path} & first.keys()


def test_the_best_of_a_module_is_not_that_of_one_fitted_before(
    make_data: MakeData, tmp_path: Path
) -> None:
    best = RunCheckpoint(monitor="val/loss")
    run = trainer(tmp_path, callbacks=[best], max_epochs=6)
    run.fit(FNNLitModule(hidden_dims=[16]), datamodule=make_data(batch_size=20))
    first = best.best_score
    run.fit_loop.max_epochs = 7
    second = FNNLitModule(hidden_dims=[8])
    run.fit(second, datamodule=make_data())
    assert first is not None
    assert best.best_score is not None
    assert best.best_score > first
    stored = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    assert torch.equal(
        stored["network.layers.0.bias"], second.state_dict()["network.layers.0.bias"]
    )


def steps_looked_at(monkeypatch: pytest.MonkeyPatch, seconds: float, count: int) -> list[int]:
    """Return the steps at which one of two ranks looks for signals, if each takes so long."""
    looks: list[int] = []
    two: Any = SimpleNamespace(
        world_size=2,
        strategy=SimpleNamespace(root_device="cpu"),
        fast_dev_run=True,
        global_step=0,
    )
    checkpoint = RunCheckpoint()
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: looks.append(two.global_step))
    monkeypatch.setattr(time, "monotonic", lambda: two.global_step * seconds)
    checkpoint.on_train_start(two, None)  # type: ignore[arg-type]
    for step in range(1, count + 1):
        two.global_step = step
        checkpoint._poll_signals(two, step)
    return looks


def test_ranks_look_for_signals_once_a_second_and_more_often_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = steps_looked_at(monkeypatch, 1 / 64, 300)
    assert looks == [1, 3, 7, 15, 31, 63, 127, 191, 255]
    assert steps_looked_at(monkeypatch, 2.0, 5) == [1, 2, 3, 4, 5]
    # a clock that has not moved yet
    assert steps_looked_at(monkeypatch, 0.0, 20) == [1, 3, 7, 15]
