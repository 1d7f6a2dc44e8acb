"""The last part of a run is trained on the images as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.data.augmentation import Augmentation
from fnn_lightning.errors import InputError
from tests.support import trainer

MakeData = Callable[..., MNISTDataModule]


class Recorded(FNNLitModule):
    """Keeps whether each batch was augmented, which makes its pixels floats."""

    augmented: list[bool]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.augmented.append(batch[0].is_floating_point())
        return super().training_step(batch, batch_idx)


def augmented(make_data: MakeData, folder: Path, end: float, **limits: Any) -> list[bool]:
    model = Recorded(hidden_dims=[8])
    model.augmented = []
    data = make_data(batch_size=50, augmentation=Augmentation(shift=2.0, end=end))
    trainer(folder, **limits).fit(model, data)
    return model.augmented


@pytest.mark.parametrize(
    ("limits", "end", "batches", "of_them"),
    [
        ({"max_epochs": 2}, 1.0, 12, 12),
        ({"max_epochs": 2}, 0.75, 12, 9),
        ({"max_epochs": 2}, 0.76, 12, 10),
        ({"max_epochs": 3, "limit_train_batches": 4}, 0.5, 12, 6),
        ({"max_epochs": -1, "max_steps": 10}, 0.5, 10, 5),
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, 0.75, 12, 9),
        ({"max_epochs": -1, "max_steps": 3, "accumulate_grad_batches": 4}, 0.5, 10, 5),
    ],
    ids=str,
)
def test_the_last_batches_are_not_augmented(
    make_data: MakeData,
    tmp_path: Path,
    limits: dict[str, Any],
    end: float,
    batches: int,
    of_them: int,
) -> None:
    expected = [True] * of_them + [False] * (batches - of_them)
    assert augmented(make_data, tmp_path, end, **limits) == expected


def test_a_resumed_run_keeps_its_length(make_data: MakeData, tmp_path: Path) -> None:
    def fit(epochs: int, ckpt_path: Path | None = None) -> Trainer:
        run = trainer(tmp_path, max_epochs=epochs, logger=False, enable_checkpointing=False)
        data = make_data(batch_size=50, augmentation=Augmentation(shift=2.0, end=0.5))
        run.fit(FNNLitModule(hidden_dims=[8]), data, ckpt_path=ckpt_path)
        return run

    fit(2).save_checkpoint(tmp_path / "end.ckpt")
    with pytest.raises(InputError, match="12 batches then, but got 18 now"):
        fit(3, tmp_path / "end.ckpt")


def test_a_run_that_time_alone_ends_cannot_tell(make_data: MakeData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"by which --data\.augmentation\.end knows"):
        augmented(make_data, tmp_path, 0.5, max_epochs=-1, max_time={"seconds": 60})


@pytest.mark.parametrize("end", [0.0, 1.5, float("nan")])
def test_a_share_of_the_run_is_from_0_to_1(end: float) -> None:
    with pytest.raises(InputError, match=f"`end` to be above 0 and at most 1, but got {end}"):
        Augmentation(end=end)
