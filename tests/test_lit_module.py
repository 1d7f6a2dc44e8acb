import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn import functional as F

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.commands.datamodules import MNISTWithTrainSet
from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.errors import DivergenceError, InputError
from fnn_lightning.evaluation.predictions import predict_logits
from tests.support import scalars, trainer

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]


def plain_loop(
    model: FNNLitModule, data: MNISTDataModule, optimizer: torch.optim.Optimizer, epochs: int
) -> tuple[list[torch.Tensor], list[float]]:
    """Train as one would by hand; return the loss and the accuracy of every step."""
    source, losses, accuracies = data.train_dataloader(), [], []
    for epoch in range(epochs):
        source.sampler.set_epoch(epoch)
        for images, labels in source:
            logits = model.network(images)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            accuracies.append((logits.argmax(1) == labels).double().mean().item())
    return losses, accuracies


@pytest.mark.parametrize(
    "config",
    [
        None,
        {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
        {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
    ],
)
def test_a_run_is_bit_for_bit_the_plain_loop(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, config: dict[str, Any] | None
) -> None:
    data, model, by_hand = make_data(batch_size=40), make_model(optimizer=config), make_model()
    run = trainer(tmp_path, log_every_n_steps=4)
    run.fit(model, datamodule=data)

    data = make_data(batch_size=40)
    data.setup("fit")
    config = config or {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    optimizer_class = getattr(torch.optim, config["class_path"].rpartition(".")[2])
    optimizer = optimizer_class(by_hand.parameters(), **config["init_args"])
    losses, accuracies = plain_loop(by_hand, data, optimizer, epochs=2)

    assert len(losses) == run.global_step == 14  # 275 images: seven batches an epoch
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(model.train_metrics.losses(), torch.stack(losses))
    # Logged every 4 steps is the mean over these steps, weighted by the sizes of their batches.
    logged = scalars(run.log_dir)
    sizes = torch.tensor([40.0] * 6 + [35.0] + [40.0] * 6 + [35.0])
    for tag, values in (
        ("train/loss", torch.stack(losses)),
        ("train/acc", torch.tensor(accuracies)),
    ):
        assert [step for step, _ in logged[tag]] == [4, 8, 12, 14]
        for (end, value), start in zip(logged[tag], (0, 4, 8, 12), strict=True):
            part, weight = values[start:end], sizes[start:end]
            assert value == pytest.approx(float((part * weight).sum() / weight.sum()), rel=1e-5)


def test_validation_and_test_measure_the_whole_split(
    data_dir: str, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fnn_lightning.datamodule.EVAL_BATCH_SIZE", 7)  # batches of different sizes
    data, model = (
        MNISTWithTrainSet(data_dir=data_dir, val_size=60, test_train_set=True),
        make_model(),
    )
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)
    logged = scalars(run.log_dir)
    for stage, prefix, source in (
        ("fit", "val/", data.val_dataloader),
        ("test", "test/", lambda: data.test_dataloader()[0]),  # type: ignore[index]
        ("test", "test/train_set_", lambda: data.test_dataloader()[1]),  # type: ignore[index]
    ):
        data.setup(stage)
        batches = list(source())
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        with torch.no_grad():
            logits = model(images)
        correct = int((logits.argmax(1) == labels).sum())
        assert model.counts[prefix] == (correct, len(labels))
        assert [step for step, _ in logged[f"{prefix}acc"]] == [3]
        assert logged[f"{prefix}acc"][0][1] == pytest.approx(correct / len(labels))
        assert logged[f"{prefix}loss"][0][1] == pytest.approx(
            F.cross_entropy(logits, labels).item(), rel=1e-5
        )


@pytest.mark.parametrize("eval_batch_size", [2000, 11])
@pytest.mark.parametrize(
    ("limits", "train_batches", "val_size"),
    [({"limit_val_batches": 0.25}, 6, 15), ({"overfit_batches": 0.5}, 3, 30)],
)
def test_a_fraction_evaluates_that_fraction_of_the_images(
    data_dir: str,
    make_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    eval_batch_size: int,
    limits: dict[str, float],
    train_batches: int,
    val_size: int,
) -> None:
    monkeypatch.setattr("fnn_lightning.datamodule.EVAL_BATCH_SIZE", eval_batch_size)
    data = MNISTWithTrainSet(data_dir=data_dir, val_size=60, batch_size=40, test_train_set=True)
    model = make_model()
    limits = {"limit_test_batches": 0.07, "limit_predict_batches": 0.33, **limits}
    run = trainer(tmp_path, max_epochs=1, logger=False, enable_checkpointing=False, **limits)
    run.fit(model, datamodule=data)
    assert run.global_step == train_batches
    images, labels = data._splits["val"].images, data._splits["val"].labels
    first = data._splits["val"].indices[:val_size]
    with torch.no_grad():
        correct = int((model(images[first]).argmax(1) == labels[first]).sum())
    assert model.counts["val/"] == (correct, val_size)
    run.test(model, datamodule=data, verbose=False)
    assert model.counts["test/"][1] == 7
    assert model.counts["test/train_set_"][1] == 16  # 0.07 of 240 is 16.8
    batches: Any = run.predict(model, datamodule=data)
    assert sum(len(batch["class"]) for batch in batches) == 33


def test_a_fraction_of_less_than_an_image_is_refused(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    for stage, size in (("validate", 60), ("test", 100), ("predict", 100)):
        name = f"limit_{stage.removesuffix('idate')}_batches"
        run = trainer(tmp_path, logger=False, **{name: 0.009})
        with pytest.raises(InputError, match=f"`{name}` to be at least one of {size} images, but"):
            getattr(run, stage)(make_model(), datamodule=make_data(val_size=60))


def test_a_module_can_be_fitted_again(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model()
    for _ in range(2):
        run = trainer(tmp_path, max_epochs=1)
        run.fit(model, datamodule=make_data())
        assert [step for step, _ in scalars(run.log_dir)["train/loss"]] == [3]


def test_cross_entropy_is_log_softmax_and_nll_loss(make_model: MakeModel) -> None:
    model = make_model()
    images = torch.randint(256, (20, 28, 28), dtype=torch.uint8)
    labels = torch.randint(10, (20,))
    log_probabilities = nn.LogSoftmax(dim=1)(model(images))
    expected = nn.NLLLoss()(log_probabilities, labels)
    torch.testing.assert_close(model._step((images, labels)).loss, expected)


def test_label_smoothing_is_in_the_loss_of_training_alone(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(label_smoothing=0.2)
    images = torch.randint(256, (20, 28, 28), dtype=torch.uint8)
    labels = torch.randint(10, (20,))
    model.trainer = trainer(tmp_path)
    loss = model.training_step((images, labels), 0)
    p = model(images).softmax(1)
    # 0.8 for the label, and 0.02 for each of the ten digits
    expected = -(0.8 * p[range(20), labels].log() + 0.02 * p.log().sum(1)).mean()
    torch.testing.assert_close(loss, expected)

    run = trainer(tmp_path, max_epochs=1)
    data = make_data()
    run.fit(model, datamodule=data)
    data.setup("validate")
    images, labels = next(iter(data.val_dataloader()))
    with torch.no_grad():
        plain = F.cross_entropy(model(images), labels).item()
    assert run.callback_metrics["val/loss"].item() == pytest.approx(plain, rel=1e-5)
    with pytest.raises(InputError, match="`label_smoothing` to be from 0 to below 1"):
        make_model(label_smoothing=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"framing": "crop"}, "Expected `framing` to be resize or mnist, but got 'crop'"),
        ({"class_names": []}, "Expected `class_names` to name a class or more, but got none"),
    ],
)
def test_what_the_data_say_is_checked(
    make_model: MakeModel, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_model(**arguments)


def test_predictions_are_probabilities_and_the_most_probable_class(make_model: MakeModel) -> None:
    model = make_model()
    images = torch.randint(256, (5, 28, 28), dtype=torch.uint8)
    output = model.predict_step(images, 0)
    exp = model(images).double().exp()
    torch.testing.assert_close(
        output["probabilities"].double(), exp / exp.sum(1, keepdim=True), rtol=1e-5, atol=1e-7
    )
    assert torch.equal(output["class"], model(images).argmax(1))
    labels = torch.zeros(5, dtype=torch.int64)
    assert torch.equal(model.predict_step((images, labels), 0)["class"], output["class"])


def test_a_checkpoint_holds_plain_data_and_opens_alone(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(
        activation="tanh",
        pixel_mean=0.25,
        optimizer={"class_path": "torch.optim.Adam", "init_args": {"betas": (0.8, 0.9)}},
    )
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, datamodule=make_data())
    run.save_checkpoint(tmp_path / "run.ckpt")
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["activation"] == "tanh"
    assert "mirror" not in checkpoint["datamodule_hyper_parameters"]
    images = torch.randint(256, (5, 28, 28), dtype=torch.uint8)
    again = FNNLitModule.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert torch.equal(again(images), model(images))


class Poison(Callback):
    """Makes a weight NaN after a given number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            next(pl_module.parameters()).data[0] = math.nan


@pytest.mark.parametrize("log_every_n_steps", [1, 5, 100])
def test_a_loss_that_becomes_nan_is_named_by_its_step(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path, log_every_n_steps: int
) -> None:
    run = trainer(tmp_path, callbacks=[Poison(step=4)], log_every_n_steps=log_every_n_steps)
    with pytest.raises(DivergenceError, match=r"training loss became nan in batch 5$"):
        run.fit(make_model(), datamodule=make_data(batch_size=40))


def test_a_nan_weight_is_not_saved(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    run = trainer(tmp_path, callbacks=[Poison(step=3)], limit_val_batches=0)
    with pytest.raises(DivergenceError, match="weight is no longer a finite number at step 3"):
        run.fit(make_model(), datamodule=make_data())  # 3 steps an epoch, all losses finite
    assert not list(tmp_path.glob("**/*.ckpt"))


class OwnCallbacks(FNNLitModule):
    def configure_callbacks(self) -> list[Callback]:
        return [Poison(step=100)]


class AllCallbacks(FNNLitModule):
    def configure_callbacks(self) -> list[Callback]:
        return [*super().configure_callbacks(), Poison(step=100)]


def test_mixed_precision_is_for_training_alone(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    data = make_data(batch_size=50)
    model = make_model(keep_hardest=0.5, adversarial_radius=0.5)
    single = make_model(keep_hardest=0.5, adversarial_radius=0.5)
    start = copy.deepcopy(model.state_dict())
    run = trainer(tmp_path, precision="bf16-mixed")
    run.fit(model, datamodule=data)
    trainer(tmp_path).fit(single, datamodule=data)
    losses, expected = (each.train_metrics.losses() for each in (model, single))
    torch.testing.assert_close(losses, expected, rtol=0.02, atol=0)
    assert not torch.equal(losses, expected)
    for name, weights in model.network.named_parameters():
        assert weights.dtype == torch.float32
        assert not torch.equal(weights, start[f"network.{name}"])

    # the figures of an evaluation are those of the network that `load` makes of a checkpoint
    data.setup("test")
    source = data.test_dataloader()
    assert not isinstance(source, list)
    logits = predict_logits(model, source.images)
    predicted: Any = run.predict(model, datamodule=data)
    probabilities = torch.cat([each["probabilities"] for each in predicted])
    torch.testing.assert_close(probabilities, logits.softmax(1), rtol=1e-5, atol=1e-8)
    (tested,) = run.test(model, datamodule=data, verbose=False)
    loss = F.cross_entropy(logits.double(), source.labels).item()
    assert tested["test/loss"] == pytest.approx(loss, rel=1e-6)
    (validated,) = run.validate(model, datamodule=data, verbose=False)
    held_out = data.val_dataloader()
    assert isinstance(held_out, InMemoryDataLoader)
    logits = predict_logits(model, held_out.images[held_out.indices])
    loss = F.cross_entropy(logits.double(), held_out.labels[held_out.indices]).item()
    assert validated["val/loss"] == pytest.approx(loss, rel=1e-6)


def test_a_derived_module_has_to_keep_the_callbacks(make_data: MakeData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"return \[\*super\(\)\.configure_callbacks\(\), …\]"):
        trainer(tmp_path).fit(OwnCallbacks(hidden_dims=[8]), datamodule=make_data())
    run = trainer(tmp_path, max_epochs=1)
    run.fit(AllCallbacks(hidden_dims=[8]), datamodule=make_data())
    assert [step for step, _ in scalars(run.log_dir)["train/loss"]] == [3]


def test_a_trainer_validates_before_and_after_it_fits(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    model, data = make_model(), make_data()
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    (before,) = run.validate(model, datamodule=data, verbose=False)
    run.fit(model, datamodule=data)
    (after,) = run.validate(model, datamodule=data, verbose=False)
    assert after["val/loss"] == pytest.approx(float(run.callback_metrics["val/loss"]))
    assert after["val/loss"] < before["val/loss"]
    again = trainer(tmp_path, max_epochs=1, logger=False, enable_checkpointing=False)
    again.fit(model, datamodule=data)
    assert again.callback_metrics["val/loss"] < after["val/loss"]


class OtherModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.linear(batch[0].flatten(1).float()), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.001)


def test_a_trainer_can_then_fit_another_module(
    make_data: MakeData, make_model: MakeModel, tmp_path: Path
) -> None:
    run = trainer(tmp_path, max_epochs=1, limit_val_batches=0, enable_checkpointing=False)
    run.fit(make_model(), datamodule=make_data())
    other = OtherModule()
    before = other.linear.weight.clone()
    run.fit_loop.max_epochs = 2
    run.fit(other, datamodule=make_data())
    assert not torch.equal(other.linear.weight, before)


def test_arguments_are_given_by_name() -> None:
    arguments: Any = [[300]]
    with pytest.raises(TypeError, match="positional argument"):
        FNNLitModule(*arguments)


@pytest.mark.parametrize("single", [True, False])
def test_predict_leaves_the_module_as_it_was(make_model: MakeModel, single: bool) -> None:
    model = make_model(dropout=0.5, batch_norm=True)
    model.train()
    model.network.layers[1].eval()  # frozen by its user
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.arange(2 * 784).view(2, 28, 28).remainder(256)
    # the same batch size: an AMD processor gives an image's logits other last bits otherwise
    logits = model.eval()(images[:1] if single else images)
    model.train()
    model.network.layers[1].eval()
    random = torch.get_rng_state()
    classes, probabilities = model.predict(images[0] if single else images)
    expected = logits.softmax(1)[0] if single else logits.softmax(1)
    assert torch.equal(probabilities, expected)
    assert torch.equal(classes, expected.argmax(-1))
    assert (classes.dtype, probabilities.dtype) == (torch.int64, torch.float32)
    assert not probabilities.requires_grad
    probabilities += 1  # an ordinary tensor
    assert [each.training for each in model.network.layers[:3]] == [True, False, True]
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_predict_works_beside_a_trainer(
    make_model: MakeModel, make_data: MakeData, tmp_path: Path
) -> None:
    class Predicts(Callback):
        def __init__(self) -> None:
            self.classes: list[torch.Tensor] = []

        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert isinstance(pl_module, FNNLitModule)
            self.classes.append(pl_module.predict(torch.zeros(2, 28, 28)).classes)
            assert pl_module.network.training

    alone, watched, data = make_model(), make_model(), make_data(val_size=50)
    trainer(tmp_path / "a").fit(alone, datamodule=data)
    predicts = Predicts()
    trainer(tmp_path / "b", callbacks=[predicts]).fit(watched, datamodule=data)
    assert len(predicts.classes) == 2
    for ours, theirs in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    half = watched.predict(torch.full((3, 28, 28), 9.0)).probabilities
    watched.half()
    assert torch.allclose(
        watched.predict(torch.full((3, 28, 28), 9.0)).probabilities, half, atol=1e-2
    )
