import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fnn_lightning import FNNLitModule, MNISTDataModule, load
from fnn_lightning.commands.main import main
from fnn_lightning.errors import InputError
from tests.support import assert_same, trainer, why_single_steps

MakeData = Callable[..., MNISTDataModule]
MakeModel = Callable[..., FNNLitModule]


def save(folder: Path, model: FNNLitModule, data: MNISTDataModule, name: str) -> str:
    """Train a teacher for two epochs, and return its checkpoint."""
    teaching = trainer(folder, logger=False, enable_checkpointing=False)
    teaching.fit(model, datamodule=data)
    teaching.save_checkpoint(folder / name)
    return str(folder / name)


@pytest.fixture
def teachers(make_data: MakeData, make_model: MakeModel, tmp_path: Path) -> list[str]:
    """Return the checkpoints of two trained networks, one with batch normalisation and dropout."""
    regularized = make_model(hidden_dims=[6, 5], batch_norm=True, dropout=0.5, activation="gelu")
    return [
        save(tmp_path, make_model(), make_data(), "a.ckpt"),
        save(tmp_path, regularized, make_data(), "b.ckpt"),
    ]


@pytest.mark.parametrize("keep_hardest", [1.0, 0.25])
def test_a_step_learns_the_mean_of_the_teachers_probabilities(
    teachers: list[str], make_model: MakeModel, make_data: MakeData, tmp_path: Path,
    keep_hardest: float,
) -> None:  # fmt: skip
    images = torch.randint(256, (40, 28, 28), dtype=torch.uint8)
    labels = torch.randint(10, (40,))
    model = make_model(teachers=teachers, keep_hardest=keep_hardest)
    fitting = trainer(tmp_path, max_steps=0)
    fitting.fit(model, datamodule=make_data())
    hardest = F.cross_entropy(model(images), labels, reduction="none").argsort(descending=True)
    kept = hardest[: round(40 * keep_hardest)].sort().values
    first, second = (load(path)(images[kept]).softmax(1) for path in teachers)
    expected = -((first + second) / 2 * model(images[kept]).log_softmax(1)).sum(1).mean()
    wanted = torch.autograd.grad(expected, list(model.network.parameters()))
    loss = model.training_step((images, labels), 0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    gradients = [parameter.grad for parameter in model.network.parameters()]
    torch.testing.assert_close(gradients, list(wanted))
    # accuracy is measured by the labels
    accuracy = (model(images).argmax(1) == labels).float().mean()
    assert model.train_metrics.compute_and_reset()["train/acc"] == accuracy


def test_adversarial_examples_are_those_of_the_teachers_probabilities(
    teachers: list[str], make_model: MakeModel, make_data: MakeData, tmp_path: Path
) -> None:
    model = make_model(teachers=teachers, adversarial_radius=0.7, adversarial_steps=2)
    trainer(tmp_path, max_steps=0).fit(model, datamodule=make_data())
    images = torch.randint(256, (20, 28, 28)).float()
    first, second = (load(path)(images).softmax(1).detach() for path in teachers)

    def loss_at(images: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(images), (first + second) / 2)

    moved = images
    for _ in range(2):
        moved = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_at(moved), moved)
        moved = moved + 255 * 0.35 * F.normalize(gradient.flatten(1)).view_as(images)
    loss = model.training_step((images, torch.randint(10, (20,))), 0)
    torch.testing.assert_close(loss, (loss_at(images) + loss_at(moved)) / 2)


def test_a_run_with_teachers_resumes_exactly_with_the_same_ones_alone(
    teachers: list[str], make_model: MakeModel, make_data: MakeData, tmp_path: Path
) -> None:
    def fit(given: list[str], epochs: int, ckpt_path: str | None = None) -> dict[str, Any]:
        fitting = trainer(tmp_path, logger=False, max_epochs=epochs, enable_checkpointing=False)
        fitting.fit(make_model(teachers=given), datamodule=make_data(), ckpt_path=ckpt_path)
        assert why_single_steps(fitting) is None
        fitting.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return dict(torch.load(tmp_path / f"{epochs}.ckpt", weights_only=True))

    whole = fit(teachers, 3)
    labels_alone = fit([], 3)
    assert not torch.equal(
        *(end["state_dict"]["network.layers.0.weight"] for end in (whole, labels_alone))
    )
    fit(teachers, 2)
    half = str(tmp_path / "2.ckpt")
    resumed = fit(teachers, 3, half)
    for part in ("state_dict", "optimizer_states", "teachers"):
        assert_same(resumed[part], whole[part], part)
    for others in ([], teachers[:1], teachers[::-1]):
        with pytest.raises(InputError, match="`teachers` to be the networks with which the run"):
            fit(others, 3, half)
    fit([], 2)
    with pytest.raises(InputError, match="`teachers` to be the networks with which the run"):
        fit(teachers, 3, half)


def test_teachers_on_the_command_line(
    teachers: list[str], data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["fit", "--data.data_dir", data_dir, "--run_folder", "run"]
    main([*options, "--model.teachers", f"[{', '.join(teachers)}]", "--trainer.max_epochs=1"])
    assert "too high" not in capsys.readouterr().err
    main(["fit", "--ckpt_path", "run", "--trainer.max_epochs=2"])  # its config.yaml names them
    main(["test", "--ckpt_path", "run"])
    config = Path("run", "config.yaml")
    text = config.read_text(encoding="utf-8")
    config.write_text(re.sub(r"(?s)teachers:.*?(?=\n  \w)", "teachers: 5", text), encoding="utf-8")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path", "run", "--trainer.max_epochs=3"])
    assert "with which the run began" in capsys.readouterr().err
    config.write_text(text, encoding="utf-8")
    Path(teachers[0]).unlink()
    main(["test", "--ckpt_path", "run"])  # needs none
    capsys.readouterr()
    with pytest.raises(SystemExit) as refused:
        main(["fit", "--ckpt_path", "run", "--trainer.max_epochs=3"])
    assert refused.value.code == 2
    assert f"The teacher {teachers[0]} cannot be loaded: Expected" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*options[:-1], "new", "--model.teachers=[nowhere]"])
    assert "The teacher nowhere cannot be loaded: Expected a checkpoint" in capsys.readouterr().err
    assert not Path("new").exists()


def test_a_teacher_of_other_classes_is_refused(
    make_model: MakeModel, make_data: MakeData, tmp_path: Path
) -> None:
    three = make_model(class_names=["a", "b", "c"])
    trained = trainer(tmp_path)
    trained.strategy.connect(three)
    trained.save_checkpoint(tmp_path / "three.ckpt")
    model = make_model(teachers=[str(tmp_path / "three.ckpt")])
    with pytest.raises(InputError, match=r"teachers of the classes of the data, 0, 1, 2.* a, b, c"):
        trainer(tmp_path).fit(model, datamodule=make_data())


def test_a_teacher_of_another_data_set_is_told(
    teachers: list[str], make_model: MakeModel, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=r"a.ckpt has learned mnist, but this run learns digits"):
        trainer(tmp_path, max_steps=1).fit(
            make_model(teachers=teachers[:1]), datamodule=MNISTDataModule("digits")
        )


def test_a_teacher_that_has_seen_the_held_out_images_is_told(
    teachers: list[str], make_model: MakeModel, make_data: MakeData, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="val/acc can be too high"):
        trainer(tmp_path, max_steps=1).fit(
            make_model(teachers=teachers), datamodule=make_data(val_size=30)
        )
    unvalidated = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    unvalidated.fit(make_model(teachers=teachers), datamodule=make_data(val_size=0))
