import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fnn_lightning import FNNLitModule
from fnn_lightning.data.augmentation import Augmentation
from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.errors import InputError
from fnn_lightning.training.pixel_scale import wrong_scale
from tests.support import trainer

MakeModel = Callable[..., FNNLitModule]
MESSAGE = "Expected pixels from 0 to 255, which the network scales itself, but got "
BYTES = torch.randint(256, (40, 1, 28, 28), dtype=torch.uint8)
BYTES[:, 0, 0, 0], BYTES[:, 0, 0, 1] = 0, 255
UNIT = BYTES / 255
RIGHT = {
    "bytes": BYTES,
    "bytes without ink": BYTES * 0,
    "bytes of 0 and 1": BYTES // 255,
    "integers": BYTES.int(),
    "floats": BYTES.float(),
    "half": BYTES.half(),
    "faint": UNIT * 3,
    "no ink": UNIT * 0,
    "rounding": BYTES.float() + 1e-4,
    "no images": UNIT[:0],
    "not a number": UNIT * torch.nan,
}
WRONG = {
    "ToTensor": (UNIT, "0 to 1:"),
    "ToTensor, faint": (UNIT / 2, "0 to 0.5:"),
    "half": (UNIT.half(), "0 to 1:"),
    "Normalize": ((UNIT - 0.1307) / 0.3081, "-0.424 to 2.82:"),
    "Normalize(0.5, 0.5)": (2 * UNIT - 1, "-1 to 1:"),
    "black Normalize": (UNIT * 0 - 0.4242, "-0.424 to -0.424:"),
    "mean subtracted": (BYTES.float() - 33, "-33 to 222:"),
    "16 bits": (BYTES.float() * 257, "0 to 6.55e+04:"),
}


def loader(images: Tensor) -> Any:
    return DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), batch_size=20)


@pytest.mark.parametrize("images", RIGHT.values(), ids=RIGHT)
def test_raw_pixels_are_right(images: Tensor) -> None:
    assert wrong_scale(images) is None
    assert wrong_scale([images, torch.zeros(len(images))]) is None


@pytest.mark.parametrize(("images", "values"), WRONG.values(), ids=WRONG)
def test_scaled_pixels_are_wrong(images: Tensor, values: str) -> None:
    for batch in (images, [images, torch.zeros(len(images))]):
        message = wrong_scale(batch)
        assert message is not None
        assert message.startswith(MESSAGE + values)
        assert "PILToTensor" in message


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("options", [{}, {"keep_hardest": 0.5}, {"multi_step": False}])
@pytest.mark.parametrize(
    ("train", "evaluated"),
    [(UNIT, UNIT), (UNIT, BYTES), (BYTES, UNIT), (BYTES, BYTES), (BYTES.float(), BYTES.float())],
)
def test_the_trainer_warns_once_of_a_loader_that_scales(
    make_model: MakeModel, tmp_path: Path, options: dict[str, Any], train: Tensor, evaluated: Tensor
) -> None:
    model = make_model(**options)
    run = trainer(tmp_path, num_sanity_val_steps=1, logger=False, enable_checkpointing=False)

    def warned(stage: Callable[..., Any], *loaders: Any, **kwargs: Any) -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            stage(model, *loaders, **kwargs)
        return sum(str(each.message).startswith(MESSAGE + "0 to 1:") for each in caught)

    scaled = int(evaluated.max() <= 1)
    is_scaled = scaled or int(train.max() <= 1)
    assert warned(run.fit, loader(train), loader(evaluated)) == is_scaled
    assert warned(run.validate, loader(evaluated), verbose=False) == scaled
    assert warned(run.test, loader(evaluated), verbose=False) == scaled


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_predict_refuses_a_loader_that_scales(make_model: MakeModel, tmp_path: Path) -> None:
    run = trainer(tmp_path, logger=False)
    with pytest.raises(InputError, match=MESSAGE):
        run.predict(make_model(), loader(UNIT))
    for images in (BYTES, BYTES.float(), UNIT * 0):
        assert len(run.predict(make_model(), loader(images)) or ()) == 2


def test_our_own_augmented_images_are_not_looked_at(make_model: MakeModel, tmp_path: Path) -> None:
    nearly_blank, labels, indices = BYTES[:, 0] // 255, torch.arange(40) % 10, torch.arange(40)
    augmentation = Augmentation(shift=1)
    train = InMemoryDataLoader(
        nearly_blank, labels, indices, batch_size=20, shuffle_seed=0, augmentation=augmentation
    )
    assert wrong_scale(train.peek())
    val = InMemoryDataLoader(nearly_blank, labels, indices, batch_size=20)
    run = trainer(tmp_path, logger=False, enable_checkpointing=False)
    run.fit(make_model(), train, val)  # warnings are errors
