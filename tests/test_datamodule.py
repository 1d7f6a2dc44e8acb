from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from fnn_lightning import MNISTDataModule
from fnn_lightning.commands.datamodules import MNISTOrPictures, MNISTWithTrainSet
from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.errors import InputError
from tests.support import TEST_SIZE, TRAIN_SIZE, tiny_files

MakeData = Callable[..., MNISTDataModule]


def images_of(source: InMemoryDataLoader | list[InMemoryDataLoader]) -> list[bytes]:
    assert isinstance(source, InMemoryDataLoader)
    return [image.numpy().tobytes() for images, _ in source for image in images]


def stored(part: str) -> list[bytes]:
    content = tiny_files()[f"{part}-images-idx3-ubyte"][16:]
    return [content[start : start + 784] for start in range(0, len(content), 784)]


def prepared(data: MNISTDataModule, stage: str | None) -> MNISTDataModule:
    data.prepare_data()
    data.setup(stage)
    return data


def test_validation_holds_out_training_images(make_data: MakeData) -> None:
    data = prepared(make_data(val_size=60), "fit")
    train, val = images_of(data.train_dataloader()), images_of(data.val_dataloader())
    assert len(val) == 60
    assert sorted(train + val) == sorted(stored("train"))


def test_the_split_does_not_depend_on_the_seed(make_data: MakeData) -> None:
    splits = [prepared(make_data(val_size=60, seed=seed), "fit") for seed in (0, 1)]
    first, second = (images_of(data.val_dataloader()) for data in splits)
    assert first == second
    first, second = (images_of(data.train_dataloader()) for data in splits)
    assert first != second
    assert sorted(first) == sorted(second)


def test_by_default_a_twelfth_is_held_out(make_data: MakeData) -> None:
    data = prepared(make_data(), "fit")
    assert len(images_of(data.val_dataloader())) == TRAIN_SIZE // 12


def test_val_size_0_trains_on_all_and_watches_the_test_set(make_data: MakeData) -> None:
    data = prepared(make_data(val_size=0), "fit")
    assert sorted(images_of(data.train_dataloader())) == sorted(stored("train"))
    assert images_of(data.val_dataloader()) == stored("t10k")


def test_a_subset_to_train_on_leaves_validation_and_test_as_they_are(make_data: MakeData) -> None:
    whole, part = (
        prepared(make_data(val_size=60, train_size=size, seed=3), None) for size in (None, 40)
    )
    train = part.train_dataloader()
    first = images_of(train)
    train.sampler.set_epoch(1)
    second = images_of(train)
    assert first != second
    assert sorted(first) == sorted(second)
    assert len(first) == len(set(first)) == 40
    assert set(first) < set(images_of(whole.train_dataloader()))
    labels = torch.cat([labels for _, labels in train])
    assert torch.bincount(labels).tolist() == [4] * 10
    assert images_of(part.val_dataloader()) == images_of(whole.val_dataloader())
    assert images_of(part.test_dataloader()) == images_of(whole.test_dataloader())


def test_a_subset_of_all_images_is_no_subset(make_data: MakeData) -> None:
    whole, same = (
        images_of(prepared(make_data(val_size=60, train_size=size), "fit").train_dataloader())
        for size in (None, TRAIN_SIZE - 60)
    )
    assert whole == same


def test_the_subset_is_that_of_the_seed(make_data: MakeData) -> None:
    subsets = [
        set(images_of(prepared(make_data(train_size=size, seed=seed), "fit").train_dataloader()))
        for size, seed in ((40, 0), (20, 0), (40, 1))
    ]
    assert subsets[1] < subsets[0]
    assert subsets[0] != subsets[2]


def test_ranks_share_one_subset(make_data: MakeData) -> None:
    alone = images_of(prepared(make_data(train_size=31), "fit").train_dataloader())
    shares = []
    for rank in range(3):
        data = prepared(make_data(train_size=31), "fit")
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, world_size=3, overfit_batches=0, strategy=strategy
        )
        shares.append(images_of(data.train_dataloader()))
    assert [len(share) for share in shares] == [11, 10, 10]
    assert sorted(image for share in shares for image in share) == sorted(alone)


def test_a_fold_validates_and_the_others_train(make_data: MakeData) -> None:
    held_out = []
    for fold in range(4):
        data = prepared(make_data(folds=4, fold=fold, seed=fold), "fit")
        val, train = images_of(data.val_dataloader()), images_of(data.train_dataloader())
        assert sorted(train + val) == sorted(stored("train"))
        held_out += val
    assert sorted(held_out) == sorted(stored("train"))
    data = prepared(make_data(folds=4, fold=1, train_size=30), "fit")
    train = images_of(data.train_dataloader())
    assert len(train) == 30
    assert not {*train} & {*images_of(data.val_dataloader())}


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_the_test_set_is_served_in_order(make_data: MakeData, stage: str) -> None:
    data = prepared(make_data(val_size=60), stage)
    assert images_of(getattr(data, f"{stage}_dataloader")()) == stored("t10k")


def test_test_train_set_adds_the_training_images(data_dir: str) -> None:
    data = prepared(MNISTWithTrainSet(data_dir=data_dir, val_size=60, test_train_set=True), "test")
    sources = data.test_dataloader()
    assert isinstance(sources, list)
    test, train = sources
    assert images_of(test) == stored("t10k")
    assert len(images_of(train)) == TRAIN_SIZE - 60


def test_a_batch_holds_bytes_and_integer_labels(make_data: MakeData) -> None:
    batches = list(prepared(make_data(val_size=0, batch_size=128), "fit").train_dataloader())
    images, labels = batches[0]
    assert (images.dtype, images.shape) == (torch.uint8, (128, 28, 28))
    assert (labels.dtype, labels.shape) == (torch.int64, (128,))
    assert [len(labels) for _, labels in batches] == [128, 128, 44]
    rows = images[:, 4:24:2].float().mean(dim=2)  # the bright row gives the digit away
    assert torch.equal(rows.argmax(dim=1), labels)


def test_digits_have_the_shapes_of_mnist() -> None:
    data = prepared(MNISTDataModule(dataset="digits"), "fit")
    images, labels = next(iter(data.train_dataloader()))
    assert (images.dtype, images.shape) == (torch.uint8, (100, 28, 28))
    assert (labels.dtype, labels.shape) == (torch.int64, (100,))
    assert len(images_of(data.val_dataloader())) == 1_437 // 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"dataset": "minst"},
            "`dataset` to be one of mnist, .* but got minst; did you mean mnist",
        ),
        ({"dataset": "cats"}, "but got cats, and there is no folder or file of that name"),
        ({"batch_size": 0}, "`batch_size` to be 1 or more, but got 0"),
        ({"val_size": -1}, "`val_size` to be from 0 to 59,999, .* but got -1"),
        ({"val_size": 60_000}, "`val_size` to be from 0 to 59,999, .* but got 60000"),
        ({"val_size": 1_437, "dataset": "digits"}, "`val_size` to be from 0 to 1,436"),
        ({"train_size": 9}, "`train_size` to be from 10, one .*, to 55,000, .* but got 9"),
        ({"train_size": 55_001}, "to 55,000, the training images that do not validate, but got 55"),
        ({"train_size": 60_001, "val_size": 0}, "`train_size` to be .* to 60,000, .* got 60001"),
        ({"train_size": 48_001, "folds": 5, "fold": 4}, "to 48,000, .* but got 48001"),
        ({"train_size": -1}, "`train_size` to be from 10, .* but got -1"),
        ({"folds": 1, "fold": 0}, "`folds` to be 2 or more, but got 1"),
        ({"folds": 60_001, "fold": 0}, "`folds` to be from 2 to 60,000, .* but got 60001"),
        ({"folds": 5}, "`fold` beside `folds`, but got 5 folds alone: .* from 0 to 4"),
        ({"fold": 0}, "`folds` beside `fold`, but got fold 0 alone"),
        ({"folds": 5, "fold": 5}, "`fold` to be from 0 to 4, .* but got 5"),
        ({"folds": 5, "fold": -1}, "`fold` to be from 0 to 4, .* but got -1"),
        ({"folds": 5, "fold": 0, "val_size": 0}, "either `folds` or `val_size`, but got 5 folds"),
        ({"class_weights": np.ones(10)}, "`class_weights` to be balanced, or a list .* got array"),
    ],
)
def test_an_argument_out_of_range_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MNISTDataModule(**arguments)  # type: ignore[arg-type]


def test_a_data_set_can_be_named_by_a_path_object(tmp_path: Path) -> None:
    data = MNISTDataModule(tmp_path / "letters.npz")  # type: ignore[arg-type]
    assert data.dataset == data.hparams["dataset"] == str(tmp_path / "letters.npz")


def test_val_size_is_checked_against_the_files(make_data: MakeData) -> None:
    with pytest.raises(InputError, match=f"from 0 to {TRAIN_SIZE - 1}, .* but got {TRAIN_SIZE}"):
        make_data(val_size=TRAIN_SIZE).prepare_data()


def test_sizes_of_subset_and_folds_are_checked_against_the_files(make_data: MakeData) -> None:
    make_data(train_size=TRAIN_SIZE - TRAIN_SIZE // 12).prepare_data()
    with pytest.raises(InputError, match=r"`train_size` to be from 10, .* to 275, .* got 276"):
        make_data(train_size=TRAIN_SIZE - TRAIN_SIZE // 12 + 1).prepare_data()
    with pytest.raises(InputError, match=r"`folds` to be from 2 to 300, .* but got 301"):
        make_data(folds=TRAIN_SIZE + 1, fold=0).prepare_data()


SPLITS = {"train": TRAIN_SIZE - 25, "val": 25, "test": TEST_SIZE, "predict": TEST_SIZE}


@pytest.mark.parametrize(
    ("stages", "served"),
    [
        ((), SPLITS),
        ((None,), SPLITS),
        (("fit",), ("train", "val")),
        ((TrainerFn.FITTING,), ("train", "val")),
        ((TrainerFn.VALIDATING,), ("train", "val")),
        ((TrainerFn.TESTING,), ("test", "predict")),
        (("predict",), ("test", "predict")),
    ],
)
@pytest.mark.parametrize("kind", [MNISTDataModule, MNISTWithTrainSet, MNISTOrPictures])
def test_setup_reads_what_a_stage_needs_and_everything_by_default(
    data_dir: str, kind: type[MNISTDataModule], stages: tuple[Any, ...], served: Collection[str]
) -> None:
    data = kind(data_dir=data_dir)
    data.prepare_data()
    data.setup(*stages)
    for split, size in SPLITS.items():
        dataloader = getattr(data, f"{split}_dataloader")
        if split in served:
            assert sum(len(labels) for _, labels in dataloader()) == size
        else:
            with pytest.raises(InputError, match=r"split .* was not read: call `prepare_data"):
                dataloader()


def test_setup_without_a_stage_reads_the_pictures(tmp_path: Path) -> None:
    digit = torch.zeros(40, 40, dtype=torch.uint8)
    digit[8:32, 18:22] = 255
    Image.fromarray(digit.numpy()).save(tmp_path / "1.png")
    data = MNISTOrPictures(images=[str(tmp_path)])
    data.prepare_data()
    data.setup()
    assert len(images_of(data.predict_dataloader())) == 1


def test_an_unknown_stage_is_refused(make_data: MakeData) -> None:
    with pytest.raises(InputError, match=r"`stage` to be fit, .* or None, but got 'train'"):
        make_data().setup("train")


def test_different_counts_of_images_and_labels_are_refused(
    data_dir: str, make_data: MakeData
) -> None:
    raw = Path(data_dir) / "MNIST" / "raw"
    labels = raw / "t10k-labels-idx1-ubyte"
    (raw / "train-labels-idx1-ubyte").write_bytes(labels.read_bytes())
    with pytest.raises(InputError, match=f"{TEST_SIZE} labels of {TRAIN_SIZE} train images"):
        make_data().prepare_data()
