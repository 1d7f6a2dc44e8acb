import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor
from torch.nn import functional as F

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.commands.lightning_cli import FNNCLI
from fnn_lightning.commands.main import main
from fnn_lightning.errors import InputError
from fnn_lightning.runs.load import load_trained
from fnn_lightning.training.checkpointing import RunCheckpoint
from fnn_lightning.training.ema import EMA
from tests.support import assert_same, trainer

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]

RUN = Path("lightning_logs/version_0")
LAST = str(RUN / "checkpoints" / "last.ckpt")


class Recorder(Callback):
    """Keeps the network's tensors after every step, and those that are validated."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.steps.append(deepcopy(pl_module.network.state_dict()))  # type: ignore[union-attr]

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        self.validated.append(deepcopy(pl_module.network.state_dict()))  # type: ignore[union-attr]


def averaged(steps: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """Average by the formula; integers are cut."""
    average = dict(steps[0])
    for step in steps[1:]:
        for name, value in average.items():
            if value.is_floating_point():
                average[name] = value.lerp(step[name], 1 - decay)
            else:
                average[name] = (value * decay + step[name] * (1 - decay)).to(value.dtype)
    return average


def test_the_average_is_over_every_step(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    recorder, plain = Recorder(), Recorder()
    model = make_model(batch_norm=True)
    callbacks = [recorder, EMA(0.75), RunCheckpoint(monitor="val/acc")]
    run = trainer(tmp_path / "averaged", callbacks=callbacks)
    run.fit(model, datamodule=make_data())
    other = trainer(tmp_path / "plain", callbacks=[plain])
    other.fit(make_model(batch_norm=True), datamodule=make_data())

    assert len(recorder.steps) == len(plain.steps) == 6
    for ours, theirs in zip(recorder.steps, plain.steps, strict=True):
        for name in ours:
            assert torch.equal(ours[name], theirs[name])  # the training takes no notice
    for validated, end in zip(recorder.validated, (3, 6), strict=True):
        assert_same(dict(validated), averaged(recorder.steps[:end], 0.75))
    # by hand: of one number, six steps
    w = [float(step["layers.3.bias"][2]) for step in recorder.steps]
    by_hand = w[0]
    for value in w[1:]:
        by_hand = 0.75 * by_hand + 0.25 * value
    assert float(model.network.state_dict()["layers.3.bias"][2]) == pytest.approx(by_hand, abs=1e-6)
    assert abs(by_hand - w[-1]) > 1e-5

    # a checkpoint holds both
    folder = Path(str(run.log_dir)) / "checkpoints"
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert_same(
        {name.removeprefix("network."): value for name, value in last["state_dict"].items()},
        averaged(recorder.steps, 0.75),
    )
    assert last["callbacks"]["EMA"]["steps"] == 6
    for name, value in last["callbacks"]["EMA"]["weights"].items():
        assert torch.equal(value, recorder.steps[-1][name])
    run.save_checkpoint(tmp_path / "after.ckpt")  # when training has ended, too
    after = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert str(after["state_dict"]) == str(last["state_dict"])
    assert str(after["callbacks"]["EMA"]) == str(last["callbacks"]["EMA"])

    # the best is that which is measured so: what was saved gives the figure it was chosen by
    best = load_trained(folder / "best.ckpt")
    data = make_data()
    data.setup("validate")
    images, labels = next(iter(data.val_dataloader()))
    keeper = run.checkpoint_callback
    assert isinstance(keeper, RunCheckpoint)
    right = (best.probabilities(images).argmax(1) == labels).float().mean()
    assert right.item() == pytest.approx(keeper.best_score)
    figure = float(run.callback_metrics["val/loss"])
    with torch.no_grad():
        loss = F.cross_entropy(load_trained(folder / "last.ckpt").module(images), labels).item()
        assert loss == pytest.approx(figure, rel=1e-5)
        assert F.cross_entropy(model.eval()(images), labels).item() == pytest.approx(loss, rel=1e-5)


def test_without_an_ema_the_checkpoint_holds_none(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    run = trainer(tmp_path, max_epochs=1)
    run.fit(make_model(), datamodule=make_data())
    run.save_checkpoint(tmp_path / "run.ckpt")
    assert "EMA" not in torch.load(tmp_path / "run.ckpt", weights_only=True)["callbacks"]


def test_test_and_predict_use_the_average(
    data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data.data_dir", data_dir, "--trainer.max_epochs", "2", "--model.hidden_dims",
               "[8]", "--model.batch_norm", "true", "--ema.decay", "0.9"]  # fmt: skip
    main(["fit", *options])
    network = FNNCLI(["test", "--ckpt_path", LAST]).model.network
    stored = torch.load(LAST, weights_only=True)
    for name, value in network.state_dict().items():
        assert torch.equal(value, stored["state_dict"][f"network.{name}"])
        assert not torch.equal(value, stored["callbacks"]["EMA"]["weights"][name])

    # all steps are done already: it validates the average, and leaves the checkpoint as it is
    again = FNNCLI(["fit", "--ckpt_path", LAST])
    for name, value in again.model.network.state_dict().items():
        assert torch.equal(value, stored["state_dict"][f"network.{name}"])
    # and it resumes from the weights
    longer = FNNCLI(["fit", "--ckpt_path", LAST, "--trainer.max_epochs", "3"])
    whole = FNNCLI(["fit", *options[:2], "--trainer.max_epochs", "3", *options[4:]])
    for ours, theirs in zip(longer.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--ckpt_path", LAST, "--ema.decay", "0", "--trainer.max_epochs", "4"])
    assert stop.value.code == 2
    assert "Expected `ema.decay` to be 0.9, with which the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kept",
    [
        7,
        {},
        {"decay": 0.9, "weights": {}, "steps": 3},
        {"decay": 0.9, "weights": {"layers.0.bias": torch.ones(9)}},
    ],
)
def test_a_damaged_state_is_refused(
    data_dir: str, capsys: pytest.CaptureFixture[str], kept: Any
) -> None:
    main(["fit", "--data.data_dir", data_dir, "--trainer.max_epochs", "1",
          "--ema.decay", "0.9"])  # fmt: skip
    damaged = torch.load(LAST, weights_only=True)
    damaged["callbacks"]["EMA"] = kept
    torch.save(damaged, LAST)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--ckpt_path", LAST, "--trainer.max_epochs", "2"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.search("to hold a state to resume from|`ema.decay` to be 0.0", error)
    assert error.count("\n") == 1


@pytest.mark.parametrize("decay", [1.0, -0.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match="`decay` of the EMA to be from 0 to below 1"):
        EMA(decay)


SWA = "--trainer.callbacks StochasticWeightAveraging --trainer.callbacks.swa_lrs 0.01"


def test_stochastic_weight_averaging_is_refused_before_anything_is_written(
    make_data: MakeData,
    make_model: MakeModel,
    data_dir: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--data.data_dir", data_dir, *SWA.split()])
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"error: Expected an EMA .* give --ema.decay 0.99 \(in Python .*\)\n", error
    )
    run = trainer(tmp_path / "python", callbacks=[StochasticWeightAveraging(0.01)])
    with pytest.raises(InputError, match=r"callbacks=\[EMA\(0.99\)\]"):
        run.fit(make_model(), datamodule=make_data())
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("averaging", [WeightAveraging, EMAWeightAveraging])
def test_weight_averaging_of_lightning_reaches_the_checkpoint_and_resumes(
    make_data: MakeData,
    make_model: MakeModel,
    tmp_path: Path,
    averaging: type[WeightAveraging],
) -> None:
    def fit(name: str, epochs: int, ckpt_path: str | None = None) -> tuple[FNNLitModule, Trainer]:
        callbacks = [averaging(), RunCheckpoint()]
        run = trainer(tmp_path / name, max_epochs=epochs, callbacks=callbacks)
        model = make_model(batch_norm=True)
        run.fit(model, datamodule=make_data(), ckpt_path=ckpt_path)
        return model, run

    model, run = fit("short", 2)
    last = f"{run.log_dir}/checkpoints/last.ckpt"
    tested = trainer(tmp_path, logger=False, callbacks=[RunCheckpoint()])
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        tested.validate(other := make_model(batch_norm=True), make_data(), last, verbose=False)
    assert tested.callback_metrics["val/loss"] == run.callback_metrics["val/loss"]
    for module, (expected, _) in (
        (other, (model, 2)),
        (fit("resumed", 4, last)[0], fit("long", 4)),
    ):
        assert_same(module.network.state_dict(), expected.network.state_dict())
