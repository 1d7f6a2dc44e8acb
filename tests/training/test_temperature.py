from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.runs.load import load, load_trained
from fnn_lightning.training.checkpointing import RunCheckpoint
from fnn_lightning.training.ema import EMA
from tests.support import assert_same, trainer

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


class Falling(RunCheckpoint):
    """Takes the first validation for the best, and keeps `last.ckpt` as it is without temperatures.

    It does so right before they are fitted.
    """

    acts_every_n_steps = RunCheckpoint.acts_every_n_steps

    def improves(self, trainer: Any) -> bool:
        return not self.best_model_path

    def complete(self, trainer: Any, module: Any) -> None:
        self.before = read(Path(self.last_model_path))
        self.unfitted = module.temperature
        super().complete(trainer, module)


def best_temperature(path: Path, data: MNISTDataModule) -> float:
    """Minimise the loss on the held-out images over a grid-free line search of SciPy."""
    source = data.val_dataloader()
    with torch.no_grad():
        logits = load_trained(path).module(source.images[source.indices]).double()
    labels = source.labels[source.indices]
    found = minimize_scalar(
        lambda inverse: float(cross_entropy(inverse * logits, labels)),
        bounds=(0.05, 20),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return 1 / float(found.x)


@pytest.mark.parametrize("callbacks", [[], [EMA(0.8)]], ids=["weights", "ema"])
def test_each_checkpoint_gets_the_temperature_of_its_weights(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, callbacks: list[Any]
) -> None:
    keeper, model, data = Falling(monitor="val/acc"), make_model(), make_data(batch_size=30)
    run = trainer(tmp_path, callbacks=[*callbacks, keeper], max_epochs=3)
    run.fit(model, datamodule=data)
    best, last = Path(keeper.best_model_path), Path(keeper.last_model_path)
    temperatures = [read(path)["temperature"] for path in (best, last)]
    for path, temperature in zip((best, last), temperatures, strict=True):
        assert temperature == pytest.approx(best_temperature(path, data), abs=2e-4)
        assert load(path).temperature == temperature
    assert temperatures[0] != temperatures[1]
    assert model.temperature == temperatures[1]
    # nothing else in the file has changed
    after = read(last)
    assert after.pop("temperature") == temperatures[1]
    assert_same(after, keeper.before)

    # resumed, it takes none along, and ends as a run that never stopped
    more, resumed = Falling(monitor="val/acc"), make_model()
    again = trainer(tmp_path / "more", callbacks=[*map(type_again, callbacks), more], max_epochs=4)
    again.fit(resumed, datamodule=make_data(batch_size=30), ckpt_path=last)
    assert more.unfitted is None
    assert "temperature" not in more.before
    straight = Falling(monitor="val/acc")
    whole = trainer(
        tmp_path / "whole", callbacks=[*map(type_again, callbacks), straight], max_epochs=4
    )
    whole.fit(make_model(), datamodule=make_data(batch_size=30))
    ends = [read(Path(each.last_model_path)) for each in (more, straight)]
    assert ends[0]["temperature"] == ends[1]["temperature"] != temperatures[1]
    assert_same(ends[0]["state_dict"], ends[1]["state_dict"])


def type_again(callback: EMA) -> EMA:
    return EMA(callback.decay)


def test_without_held_out_images_there_is_no_temperature(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    images = torch.randint(0, 256, (60, 28, 28), generator=torch.Generator().manual_seed(0))
    own = DataLoader(TensorDataset(images.byte(), torch.arange(60) % 10), batch_size=20)
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"datamodule": make_data(val_size=0)}, {}),
        ({"datamodule": make_data()}, {"limit_val_batches": 0}),
        ({"train_dataloaders": own, "val_dataloaders": own}, {}),
    ]
    for k, (data, limits) in enumerate(cases):
        keeper, model = RunCheckpoint(), make_model()
        run = trainer(tmp_path / str(k), callbacks=[keeper], max_epochs=1, **limits)
        run.fit(model, **data)
        assert "temperature" not in read(Path(keeper.last_model_path))
        assert model.temperature is None


class OwnTraining(MNISTDataModule):
    def train_dataloader(self) -> Any:
        return as_torch_loader(super().train_dataloader())


class OwnValidation(MNISTDataModule):
    def val_dataloader(self) -> Any:
        return as_torch_loader(super().val_dataloader())


def as_torch_loader(loader: Any) -> Any:
    return DataLoader(TensorDataset(loader.images[:60], loader.labels[:60]), batch_size=20)


@pytest.mark.parametrize("kind", [OwnTraining, OwnValidation])
def test_dataloaders_of_a_derived_data_module_are_left_alone(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, kind: type[MNISTDataModule]
) -> None:
    data = make_data()
    data.__class__ = kind
    keeper, model = RunCheckpoint(), make_model()
    trainer(tmp_path, callbacks=[keeper], max_epochs=1).fit(model, datamodule=data)
    assert "temperature" not in read(Path(keeper.last_model_path))
    assert model.temperature is None


class OwnModule(LightningModule):
    """Has a temperature of its own, which it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(10))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return cross_entropy(self.temperature.expand(len(batch[1]), 10), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Lightning warns of a module without one."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_module_of_another_kind_is_left_alone(make_data: MakeData, tmp_path: Path) -> None:
    module = OwnModule()
    run = trainer(tmp_path, callbacks=[RunCheckpoint()], max_epochs=1)
    run.fit(module, datamodule=make_data())
    assert isinstance(module.temperature, nn.Parameter)


def test_the_temperature_goes_where_the_checkpoint_goes(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    keeper, data = RunCheckpoint(), make_data()
    trainer(tmp_path, callbacks=[keeper], max_epochs=1).fit(make_model(), datamodule=data)
    path = Path(keeper.last_model_path)
    temperature = read(path)["temperature"]
    assert FNNLitModule.load_from_checkpoint(path).temperature == temperature
    tested = make_model()
    run = trainer(tmp_path / "test", logger=False, callbacks=[RunCheckpoint()])
    logits_loss = run.test(tested, datamodule=data, ckpt_path=path, verbose=False)[0]["test/loss"]
    assert tested.temperature == temperature
    # the loss is that of the logits as they are
    source: Any = data.test_dataloader()
    with torch.no_grad():
        loss = cross_entropy(load(path)(source.images), source.labels)
    assert logits_loss == pytest.approx(float(loss), rel=1e-5)

    old = read(path)
    del old["temperature"]
    torch.save(old, path)
    assert load(path).temperature is None
