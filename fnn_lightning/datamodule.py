"""The data module: gets MNIST, checks it, splits it and serves its batches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from os import fspath
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from fnn_lightning.data.augmentation import Augmentation
from fnn_lightning.data.dataloader import InMemoryDataLoader, evaluation_batch_size
from fnn_lightning.data.datasets import BadFiles, Framing, find_dataset, portable_name
from fnn_lightning.data.splits import (
    Split,
    balanced_subset,
    check_folds,
    check_train_size,
    default_val_size,
    fold_size,
    hold_out,
    split_fold,
)
from fnn_lightning.errors import InputError
from fnn_lightning.training.loss import balanced_weights

# The result does not depend on it. Larger batches can make malloc return the tensors to the system
# after every step, and the page faults then cost as much as the step.
EVAL_BATCH_SIZE = 2000
NO_AUGMENTATION = Augmentation()


class MNISTDataModule(LightningDataModule):
    """MNIST's 60,000 training and 10,000 test images, or another data set in their form.

    The images stay in memory as they are stored, one byte a pixel. A batch is `(images, labels)`:
    `uint8` of shape `(B, 28, 28)` with values 0–255, and `int64` of shape `(B,)`. The network
    scales the pixels. Augmented training images are `float32`, still 0–255.

    Args:
        dataset: `mnist`, or `digits`: the 1,797 handwritten digits that scikit-learn bundles, for
            a first try without a download. Or `fashion_mnist`, `kmnist`, `qmnist`,
            `emnist_letters`, `emnist_balanced`, `emnist_byclass`, `emnist_bymerge` or
            `emnist_digits`, which follow MNIST's rules below with folders named as torchvision's:
            `FashionMNIST/raw` and so on. Or the path of a data set of your own: a folder of
            pictures (see `PictureFolder`), four IDX files (`IdxFolder`) or an `.npz` file
            (`NpzFile`).
        data_dir: Where MNIST lives: the folder of its files, or the one that holds torchvision's
            `MNIST/raw`. What is missing is downloaded into `MNIST/raw`.
        mirror: Folder that holds MNIST's four files, packed (`.gz`) or unpacked, or base URL of the
            `.gz` archives, tried before torchvision's mirrors. The environment variable
            FNN_LIGHTNING_MIRROR by default. EMNIST's archive is `gzip.zip`.
        batch_size: Number of training images in a step, over all devices; each takes its share.
        val_size: Number of training images held out for validation, the same ones in every run.
            By default a twelfth of them: 5,000 of MNIST's 60,000. 0 trains on all of them.
            Validation then watches the test set, as tutorials do, so nothing may be selected by it.
        folds: Number of folds to divide the training images into, for cross-validation. Each has
            its share of every class, the same one in every run. Takes the place of `val_size`.
        fold: The fold that validates, counted from 0; the network trains on the others.
        train_size: Number of images to train on, of those that do not validate: as many of each
            class, as far as there are, drawn by the seed. The images of a smaller subset are in a
            larger one of the same seed. All of them by default.
        seed: Seed of the batches' order, a function of (seed, epoch) alone, and of augmentation and
            the network's dropout, functions of (seed, epoch, position in the epoch).
        augmentation: Applied to the training images, drawn anew in every epoch.
        class_weights: How much an image of each class weighs in the training loss: `balanced`, by
            which all classes weigh the same in all, or a number for each class. 1 by default.
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
        folds: int | None = None,
        fold: int | None = None,
        train_size: int | None = None,
        seed: int = 0,
        augmentation: Augmentation = NO_AUGMENTATION,
        class_weights: Literal["balanced"] | list[float] | None = None,
        framing: Framing | None = None,
        bad_files: BadFiles = "stop",
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"Expected `batch_size` to be 1 or more, but got {batch_size}")
        self.dataset = dataset = fspath(dataset)  # a `Path` too
        self.data_dir = data_dir
        self.mirror = mirror
        self.batch_size = batch_size
        check_folds(folds, fold, val_size)
        self.val_size = val_size
        self.folds = folds
        self.fold = fold
        self.train_size = train_size
        self.seed = seed
        if isinstance(augmentation, Mapping):  # as a checkpoint stores it
            augmentation = Augmentation(**augmentation)
        if not isinstance(augmentation, Augmentation):
            raise InputError(
                f"Expected `augmentation` to be an Augmentation, but got {augmentation!r:.100}"
            )
        self.augmentation = augmentation
        check_class_weights(class_weights)
        self._class_weights = class_weights
        self.class_weights: Tensor | None = None
        """Weight of each class in training, `float32` of shape `(classes,)`; None for 1."""
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
            self._check_sizes(self._source.train_size)
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

    def train_files(self) -> Sequence[str]:
        """Return the path of each training image in a folder of pictures; none of other data."""
        from fnn_lightning.data.own_data import OwnData  # takes SciPy, which is slow to import

        return self._source.train_files() if isinstance(self._source, OwnData) else ()

    def is_present(self) -> bool:
        """Tell whether the test set is here, so that nothing has to be downloaded to read it."""
        return self._source.is_present()

    def prepare_data(self) -> None:
        """Download what `data_dir` lacks, and check what it holds."""
        self._source.prepare()
        self._check_sizes(len(self._source.labels(train=True)))

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
        train, val = self._train_and_val(labels)
        self._splits["train"] = Split(images, labels, train)
        self._splits["val"] = Split(images, labels, val) if len(val) else self._splits["test"]
        self.class_weights = self._weigh_classes(labels[train])

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

    def _weigh_classes(self, labels: Tensor) -> Tensor | None:
        """Return the weight of each class, given the labels of the images that are trained on.

        Raises:
            InputError: If there are more or fewer weights than classes, or weights are to be
                balanced over a class without a training image.
        """
        if self._class_weights is None:
            return None
        count = len(self.class_names)
        if self._class_weights == "balanced":
            return balanced_weights(labels, self.class_names)
        if len(self._class_weights) != count:
            raise InputError(
                f"Expected `class_weights` to be {count} numbers, one for each class, "
                f"but got {len(self._class_weights)}: give as many, balanced or null"
            )
        return torch.tensor(self._class_weights, dtype=torch.float32)

    def _train_and_val(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the indices that train and those that validate, from the training labels."""
        if self.folds is not None and self.fold is not None:
            train, val = split_fold(labels, self.folds, self.fold)
        else:
            train, val = hold_out(len(labels), self.val_size)
        if self.train_size is not None:
            train = balanced_subset(labels, train, self.train_size, self.seed)
        return train, val

    def _check_sizes(self, count: int) -> None:
        """Check what is wanted of the training images against their number."""
        if self.val_size is not None and not 0 <= self.val_size < count:
            raise InputError(
                f"Expected `val_size` to be from 0 to {count - 1:,}, so that at least one of "
                f"the {count:,} training images is left to train on, but got {self.val_size}"
            )
        if self.folds is not None and self.folds > count:
            raise InputError(
                f"Expected `folds` to be from 2 to {count:,}, the number of training images, "
                f"but got {self.folds}"
            )
        if self.train_size is None:
            return
        if self.folds is not None and self.fold is not None:
            left = count - fold_size(count, self.folds, self.fold)
        else:
            left = count - (default_val_size(count) if self.val_size is None else self.val_size)
        check_train_size(self.train_size, len(self.class_names), left)


def check_class_weights(class_weights: Any) -> None:
    """Refuse weights of classes by which nothing could be learnt."""
    if class_weights is None or (isinstance(class_weights, str) and class_weights == "balanced"):
        return
    numbers = isinstance(class_weights, list | tuple) and all(
        isinstance(each, int | float) and 0 <= each < math.inf for each in class_weights
    )
    if not numbers or not any(class_weights):
        raise InputError(
            "Expected `class_weights` to be balanced, or a list of a number from 0 for each class, "
            f"but got {class_weights!r:.100}"
        )


def validates_on_test_set(datamodule: Any) -> bool:
    """Tell whether validation watches the test set, since no training image is held out."""
    return getattr(datamodule, "val_size", None) == 0
