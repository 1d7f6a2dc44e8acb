"""The data module: gets MNIST, checks it, splits it and serves its batches."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from fnn_lightning.data.augmentation import Augmentation
from fnn_lightning.data.dataloader import InMemoryDataLoader, evaluation_batch_size
from fnn_lightning.data.datasets import BadFiles, Framing, find_dataset, portable_name
from fnn_lightning.errors import InputError

# The result does not depend on it. Larger batches can make malloc return the tensors to the system
# after every step, and the page faults then cost as much as the step.
EVAL_BATCH_SIZE = 2000
NO_AUGMENTATION = Augmentation()
SPLIT_SEED = 0  # fixed, so that runs with different seeds validate on the same images


class Split(NamedTuple):
    """Images in memory, and the indices of those in this split."""

    images: Tensor
    """`uint8` of shape `(N, 28, 28)`."""
    labels: Tensor
    """`int64` of shape `(N,)`."""
    indices: Tensor
    """`int64` of shape `(M,)`."""


class MNISTDataModule(LightningDataModule):
    """MNIST's 60,000 training and 10,000 test images, or another data set in their form.

    The images stay in memory as they are stored, one byte a pixel. A batch is `(images, labels)`:
    `uint8` of shape `(B, 28, 28)` with values 0–255, and `int64` of shape `(B,)`. The network
    scales the pixels. Augmented training images are `float32`, still 0–255.

    Args:
        dataset: `mnist`, or `digits`: the 1,797 handwritten digits that scikit-learn bundles, for
            a first try without a download. Or the path of a data set of your own: a folder of
            pictures (see `PictureFolder`), four IDX files (`IdxFolder`) or an `.npz` file
            (`NpzFile`).
        data_dir: Where MNIST lives: the folder of its files, or the one that holds torchvision's
            `MNIST/raw`. What is missing is downloaded into `MNIST/raw`.
        mirror: Folder that holds MNIST's four files, packed (`.gz`) or unpacked, or base URL of the
            `.gz` archives, tried before torchvision's mirrors. The environment variable
            FNN_LIGHTNING_MIRROR by default.
        batch_size: Number of training images in a step, over all devices; each takes its share.
        val_size: Number of training images held out for validation, the same ones in every run.
            By default a twelfth of them: 5,000 of MNIST's 60,000. 0 trains on all of them.
            Validation then watches the test set, as tutorials do, so nothing may be selected by it.
        seed: Seed of the batches' order, a function of (seed, epoch) alone, and of augmentation and
            the network's dropout, functions of (seed, epoch, position in the epoch).
        augmentation: Applied to the training images, drawn anew in every epoch.
        framing: How pictures become 28 × 28 pixels, those of your own data set and those that the
            net predicts: `resize`, stretched as they are; `mnist`, ink on paper to MNIST's form.
            By default `resize` for data of your own, `mnist` for others.
        bad_files: What becomes of a picture of your own that cannot be read: `stop` ends the run
            with its name, `skip` leaves it out with a warning.

    Raises:
        InputError: If an argument is out of its range; in `prepare_data`, if the data cannot be
            obtained.
    """

    def __init__(
        self,
        dataset: str = "mnist",
        data_dir: str = "data",
        mirror: str | None = None,
        batch_size: int = 100,
        val_size: int | None = None,
        seed: int = 0,
        augmentation: Augmentation = NO_AUGMENTATION,
        framing: Framing | None = None,
        bad_files: BadFiles = "stop",
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"Expected `batch_size` to be 1 or more, but got {batch_size}")
        self.dataset = dataset
        self.data_dir = data_dir
        self.mirror = mirror
        self.batch_size = batch_size
        self.val_size = val_size
        self.seed = seed
        if isinstance(augmentation, Mapping):  # as a checkpoint stores it
            augmentation = Augmentation(**augmentation)
        if not isinstance(augmentation, Augmentation):
            raise InputError(
                f"Expected `augmentation` to be an Augmentation, but got {augmentation!r:.100}"
            )
        self.augmentation = augmentation
        for name, value, choices in (
            ("framing", framing, (None, *get_args(Framing))),
            ("bad_files", bad_files, get_args(BadFiles)),
        ):
            if value not in choices:
                words = " or ".join(choice for choice in choices if choice)
                raise InputError(f"Expected `{name}` to be {words}, but got {value!r:.100}")
        self._framing = framing
        self._source = find_dataset(dataset, data_dir, mirror, framing, bad_files)
        if self._source.train_size is not None:
            self._check_val_size(self._source.train_size)
        # A mirror belongs to a machine, not to a run: a checkpoint must not bring it along.
        self.save_hyperparameters(ignore=["mirror"], logger=False)
        # A checkpoint finds its data from whatever folder it is tested in.
        self.hparams["data_dir"] = str(Path(data_dir).expanduser().absolute())
        self.hparams["dataset"] = portable_name(dataset)
        self.hparams["augmentation"] = asdict(augmentation)
        self._splits: dict[str, Split] = {}

    @property
    def class_names(self) -> Sequence[str]:
        """Name of each class; a label is an index into it."""
        return self._source.class_names

    @property
    def framing(self) -> Framing:
        """How the network's pictures were brought to 28 × 28: see `FNNLitModule`."""
        return self._framing or self._source.framing

    def prepare_data(self) -> None:
        """Download what `data_dir` lacks, and check what it holds."""
        self._source.prepare()
        self._check_val_size(len(self._source.labels(train=True)))

    def setup(self, stage: str | None = None) -> None:
        """Read the images that a stage needs into memory.

        Args:
            stage: `fit`, `validate`, `test` or `predict`; all of them by default.

        Raises:
            InputError: If there is no such stage, or a file is missing or damaged.
        """
        if stage not in (None, "fit", "validate", "test", "predict"):
            raise InputError(
                f"Expected `stage` to be fit, validate, test, predict or None, but got {stage!r}"
            )
        if stage in (None, "test", "predict") or self.val_size == 0:
            self._splits["test"] = self._read(train=False)
        if stage in (None, "fit", "validate"):
            self.read_train_and_val()

    def read_train_and_val(self) -> None:
        """Read the training images into memory, and hold out those for validation."""
        images, labels, _ = self._read(train=True)
        val_size = max(1, len(images) // 12) if self.val_size is None else self.val_size
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
        val, train = order[:val_size], order[val_size:]
        self._splits["train"] = Split(images, labels, train)
        self._splits["val"] = Split(images, labels, val) if val_size else self._splits["test"]

    def train_dataloader(self) -> InMemoryDataLoader:
        """Serve the training images in batches of `batch_size`, in a new order every epoch.

        With the Trainer's `overfit_batches` the order is fixed, and no image is augmented.
        """
        # the Trainer's overfit_batches means the same few batches in every epoch
        shuffle = self.trainer is None or self.trainer.overfit_batches == 0  # type: ignore[attr-defined]
        return self.serve("train", self.batch_size, self.seed if shuffle else None)

    def val_dataloader(self) -> InMemoryDataLoader:
        """Serve the held-out training images, or the test images if none are held out."""
        return self.serve_evaluation("val", "limit_val_batches")

    def test_dataloader(self) -> InMemoryDataLoader | list[InMemoryDataLoader]:
        """Serve the test images."""
        return self.serve_evaluation("test", "limit_test_batches")

    def predict_dataloader(self) -> InMemoryDataLoader:
        """Serve the test images."""
        return self.serve_evaluation("test", "limit_predict_batches")

    def serve_evaluation(self, split: str, limit_name: str) -> InMemoryDataLoader:
        """Serve a split in its own order, in large batches.

        Args:
            split: Name of one that was read: `train`, `val` or `test`.
            limit_name: The Trainer's limit of it. A fraction means a fraction of the images.

        Raises:
            InputError: If the split was not read, or the limit is less than an image.
        """
        limit = getattr(self.trainer, limit_name) if self.trainer else 1.0
        size = len(self._split(split).indices)
        batch_size = evaluation_batch_size(size, limit, EVAL_BATCH_SIZE)
        if batch_size is None:
            raise InputError(
                f"Expected `{limit_name}` to be at least one of {size:,} images, but got {limit:g} "
                "of them: give a larger fraction, or a whole number of batches"
            )
        return self.serve(split, batch_size)

    def serve(
        self, split: str, batch_size: int | Fraction, shuffle_seed: int | None = None
    ) -> InMemoryDataLoader:
        """Serve a split to the Trainer's ranks.

        Args:
            split: Name of one that was read: `train`, `val` or `test`.
            batch_size: Over all ranks.
            shuffle_seed: Seed of the order. None serves the images in their own order, without
                augmentation.

        Raises:
            InputError: If the split was not read.
        """
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return InMemoryDataLoader(
            *self._on(device, split),
            batch_size=batch_size,
            shuffle_seed=shuffle_seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            augmentation=self.augmentation,
            device=device,
        )

    def _split(self, name: str) -> Split:
        if name not in self._splits:
            raise InputError(
                f"Expected the {name} split to be in memory, but it was not read: call "
                "`prepare_data()` and `setup()` first"
            )
        return self._splits[name]

    def _on(self, device: torch.device, name: str) -> Split:
        """Move a split to a device, and with it the other split of the same images."""
        split = self._split(name)
        if split.images.device != device:
            images, labels = split.images.to(device), split.labels.to(device)
            for other, each in self._splits.items():
                if each.images is split.images:
                    self._splits[other] = Split(images, labels, each.indices.to(device))
        return self._splits[name]

    def _read(self, train: bool) -> Split:
        labels, images = self._source.labels(train), self._source.images(train)
        return Split(images, labels, torch.arange(len(images)))

    def _check_val_size(self, train_size: int) -> None:
        if self.val_size is not None and not 0 <= self.val_size < train_size:
            raise InputError(
                f"Expected `val_size` to be from 0 to {train_size - 1:,}, so that at least one of "
                f"the {train_size:,} training images is left to train on, but got {self.val_size}"
            )


def validates_on_test_set(datamodule: Any) -> bool:
    """Tell whether validation watches the test set, since no training image is held out."""
    return getattr(datamodule, "val_size", None) == 0
