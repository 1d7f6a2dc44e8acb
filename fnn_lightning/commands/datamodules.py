"""The data modules of `test` and `predict`, which can serve more than MNIST's splits."""

from pathlib import Path
from typing import Any

import torch

from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.data.datasets import Framing
from fnn_lightning.data.splits import Split
from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.errors import InputError
from fnn_lightning.runs.progress import progress_bar


class MNISTWithTrainSet(MNISTDataModule):
    """Lets `test` measure the training images as well.

    Args:
        test_train_set: Whether `test` measures the accuracy on the training images as well.
        data: Arguments of `MNISTDataModule`.
    """

    def __init__(self, test_train_set: bool = False, **data: Any) -> None:
        super().__init__(**data)
        self.test_train_set = test_train_set

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if stage == "test" and self.test_train_set:
            self.read_train_and_val()

    def test_dataloader(self) -> InMemoryDataLoader | list[InMemoryDataLoader]:
        """Serve the test images and, if wanted, the training images after them."""
        names = ["test", "train"] if self.test_train_set else ["test"]
        loaders = [self.serve_evaluation(name, "limit_test_batches") for name in names]
        return loaders if self.test_train_set else loaders[0]


class MNISTOrPictures(MNISTDataModule):
    """Lets `predict` read pictures.

    Args:
        images: Pictures to predict instead of the test set: files, folders or globs.
        data: Arguments of `MNISTDataModule`.
    """

    def __init__(self, images: list[str] | None = None, **data: Any) -> None:
        super().__init__(**data)
        self.images = images
        self.pictures: list[Path] | None = None
        """The files that `images` names, as far as they could be read; None without `images`."""
        self.unread: dict[Path, str] = {}
        """The files that could not be read, and why."""

    def prepare_data(self) -> None:
        if self.images is None:
            super().prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Read the pictures, or else the images that a stage needs, into memory."""
        if self.images is None or stage not in (None, "predict"):
            super().setup(stage)
        else:
            self._read_pictures(self.images)

    def predict_dataloader(self) -> InMemoryDataLoader:
        """Serve the pictures, with label 0, or else the test images."""
        split = "test" if self.images is None else "pictures"
        return self.serve_evaluation(split, "limit_predict_batches")

    def _read_pictures(self, paths: list[str]) -> None:
        # slow to import, and of use here only
        from fnn_lightning.data.framing import read_framed
        from fnn_lightning.data.preprocessing import find_pictures

        images = [torch.empty(0, 28, 28, dtype=torch.uint8)]
        self.pictures, self.unread = [], {}
        net = self.trainer.lightning_module if self.trainer else None
        # as the pictures were that the net was trained on
        framing: Framing = getattr(net, "framing", self.framing)
        if self.hparams["framing"] not in (None, framing):
            raise InputError(
                f"Expected `data.framing` to be {framing}, as in training, but got "
                f"{self.hparams['framing']}: leave it out"
            )
        first = self.trainer is None or self.trainer.is_global_zero
        with progress_bar(find_pictures(paths), "reading", first, delay=1) as bar:
            for path in bar:
                try:
                    images.append(read_framed(path, framing)[None])
                    self.pictures.append(path)
                except InputError as error:
                    self.unread[path] = str(error)
        count = len(self.pictures)
        labels = torch.zeros(count, dtype=torch.int64)
        self._splits["pictures"] = Split(torch.cat(images), labels, torch.arange(count))
