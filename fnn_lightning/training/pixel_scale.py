"""Notices images whose pixels are not 0–255, as the network expects them."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.errors import InputError

OVERSHOOT = 25  # grey levels; what bicubic resampling may add at an edge


def wrong_scale(batch: Any) -> str | None:
    """Tell whether the pixels of a batch are on another scale than 0–255.

    Args:
        batch: Images, alone or followed by labels. Only images of floating point are looked at. A
            batch without ink is on any scale.

    Returns:
        A message that says what was expected, what was given and what to do; None if nothing is
        wrong.

    Example:
        >>> import torch
        >>> wrong_scale(torch.tensor([0.0, 255.0])) is None
        True
        >>> wrong_scale(torch.tensor([0.0, 0.5])).partition(":")[0]
        'Expected pixels from 0 to 255, which the network scales itself, but got 0 to 0.5'
    """
    images = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not (isinstance(images, Tensor) and images.is_floating_point() and images.numel()):
        return None
    least, most = (float(each) for each in images.detach().aminmax())
    faintest = 1 if least >= 0 else OVERSHOOT
    in_range = least >= -OVERSHOOT and faintest < most <= 255 + OVERSHOOT
    if in_range or least == most == 0 or not math.isfinite(most - least):
        return None
    return (
        f"Expected pixels from 0 to 255, which the network scales itself, but got {least:.3g} to "
        f"{most:.3g}: leave out Normalize and use PILToTensor instead of ToTensor, or undo the "
        "scaling"
    )


class PixelScale(callbacks.Callback):
    """Warns once in a run if images are on another scale than 0–255; `predict` is refused.

    It looks at the first batch of each split alone: reading a value in every step would make the
    host wait for the device.

    Raises:
        InputError: In `predict`.
    """

    acts_every_n_steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._looked_at: set[str] = set()
        self._warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.train_dataloader, InMemoryDataLoader):
            self._looked_at.add("train")  # augmentation may move nearly all ink out of an image

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any
    ) -> None:
        self._look_at("train", batch)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any
    ) -> None:
        self._look_at("val", batch)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any
    ) -> None:
        self._look_at("test", batch)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 0 and (message := wrong_scale(batch)):
            raise InputError(message)

    def _look_at(self, split: str, batch: Any) -> None:
        if split in self._looked_at:
            return
        self._looked_at.add(split)
        message = None if self._warned else wrong_scale(batch)
        if message:
            self._warned = True
            rank_zero_warn(message)
