import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fnn_lightning.data import own_data, picture_folder
from fnn_lightning.data.datasets import Framing, find_dataset, is_path
from fnn_lightning.data.framing import read_framed
from fnn_lightning.data.own_data import OwnData
from fnn_lightning.data.picture_folder import TEST_FILE, locked
from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.errors import InputError
from tests.support import NEEDS_POSIX

CACHE = ".fnn_lightning_resize.npz"
CLASSES = ("bird", "cat", "dog")


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (28, 28), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Return a folder with one level of classes, of 14, 7 and 2 pictures."""
    for label, (name, count) in enumerate(zip(CLASSES, (14, 7, 2), strict=True)):
        for i in range(count):
            save(tmp_path / "pets" / name / f"{i:02}.png", noise(100 * label + i))
    return tmp_path / "pets"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Return a folder with a training and a test part, of classes 2 and 10."""
    for part, count in (("train", 6), ("test", 2)):
        for i in range(count):
            label = ("10", "2")[i % 2]
            save(tmp_path / "parts" / part / label / f"{i:05}.png", noise(i + 50 * len(part)))
    return tmp_path / "parts"


def prepared(path: Path, **kwargs: object) -> OwnData:
    data = OwnData(str(path), **kwargs)  # type: ignore[arg-type]
    data.prepare()
    return data


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the name of each picture that is read."""
    names: list[str] = []

    def read(path: Path, framing: Framing) -> torch.Tensor:
        names.append(path.name)
        return read_framed(path, framing)

    monkeypatch.setattr(picture_folder, "read_framed", read)
    return names


def test_both_parts_are_read_in_the_order_of_the_file_names(parts: Path) -> None:
    data = prepared(parts)
    assert list(data.class_names) == ["2", "10"]  # as numbers
    assert data.labels(train=True).tolist() == [1, 0, 1, 0, 1, 0]
    assert data.labels(train=False).tolist() == [1, 0]
    expected = np.stack([noise(i + 50 * len("train")) for i in range(6)])
    assert np.array_equal(data.images(train=True).numpy(), expected)
    assert np.array_equal(data.images(train=False).numpy()[1], noise(1 + 50 * len("test")))
    assert not (parts / TEST_FILE).exists()


def seed(*names: str) -> int:
    return int.from_bytes("".join(names).encode(), "big")


def test_equal_file_names_are_in_the_order_of_the_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label in ("9", "10"):
            for name in ("b.png", "a.png"):
                save(tmp_path / part / label / name, noise(seed(part, label, name)))
    data = prepared(tmp_path)
    assert data.labels(train=True).tolist() == [0, 1, 0, 1]
    assert np.array_equal(data.images(train=True)[1].numpy(), noise(seed("train", "10", "a.png")))


def test_one_level_is_split_by_class_and_the_split_is_written_down(flat: Path) -> None:
    data = prepared(flat)
    assert list(data.class_names) == list(CLASSES)
    assert data.labels(train=False).bincount().tolist() == [2, 1, 1]
    assert data.labels(train=True).bincount().tolist() == [12, 6, 1]
    lines = (flat / TEST_FILE).read_text().splitlines()
    assert [line.partition("/")[0] for line in lines] == ["bird", "bird", "cat", "dog"]
    test = {image.numpy().tobytes() for image in data.images(train=False)}
    assert test == {np.asarray(Image.open(flat / line)).tobytes() for line in lines}


def test_pictures_that_are_added_later_are_for_training(flat: Path) -> None:
    before = prepared(flat)
    for i in range(14, 100):
        save(flat / "bird" / f"{i - 14:02}_new.png", noise(1000 + i))
    after = prepared(flat)
    assert torch.equal(after.images(train=False), before.images(train=False))
    assert len(after.labels(train=True)) == len(before.labels(train=True)) + 86

    (flat / TEST_FILE).write_bytes(b"bird/03.png\r\ncat/00.png\r\n\r\ndog/01.png\r\n")
    assert prepared(flat).labels(train=False).tolist() == [1, 2, 0]  # 00, 01, 03


def test_a_class_that_is_added_later_is_split_too_and_the_others_stay(flat: Path) -> None:
    prepared(flat)
    before = set((flat / TEST_FILE).read_text().splitlines())
    for i in range(14):
        save(flat / "owl" / f"{i}.png", noise(1000 + i))
    assert prepared(flat).labels(train=False).bincount().tolist() == [2, 1, 1, 2]
    after = set((flat / TEST_FILE).read_text().splitlines())
    assert after > before
    assert [line.partition("/")[0] for line in after - before] == ["owl", "owl"]
    # one whose test pictures are gone is not split again: the others have trained a net
    for line in after - before:
        (flat / line).unlink()
    advice = f"none of owl in test: remove {flat / TEST_FILE} to split anew"
    with pytest.raises(InputError, match=re.escape(advice)):
        prepared(flat)


def test_the_split_is_the_same_wherever_the_folder_lies(flat: Path, tmp_path: Path) -> None:
    shutil.copytree(flat, tmp_path / "copy")
    first, second = prepared(flat), prepared(tmp_path / "copy")
    assert torch.equal(first.images(train=False), second.images(train=False))


def test_what_is_no_picture_is_ignored(flat: Path) -> None:
    before = prepared(flat)
    (flat / "cat" / "Thumbs.db").touch()
    (flat / "cat" / ".hidden.png").touch()
    (flat / ".git").mkdir()
    (flat / "readme.txt").touch()
    (flat / "cat" / ".ipynb_checkpoints").mkdir()
    after = prepared(flat)
    assert torch.equal(before.images(train=True), after.images(train=True))
    assert list(after.class_names) == list(CLASSES)


def test_pictures_are_read_once(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = reads(monkeypatch)
    first = prepared(flat)
    assert len(names) == 23
    assert (flat / CACHE).exists()
    assert not list(flat.glob("*.lock"))
    assert not list(flat.glob(".*.lock"))
    again, other_rank = prepared(flat), OwnData(str(flat))
    for train in (True, False):
        for data in (again, other_rank):
            assert torch.equal(data.images(train), first.images(train))
            assert torch.equal(data.labels(train), first.labels(train))
    assert len(names) == 23


def test_a_run_that_waits_for_another_finds_its_cache(
    flat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def after_another_run(path: Path, wanted: bool) -> Iterator[None]:
        assert wanted
        monkeypatch.setattr(picture_folder, "locked", locked)
        prepared(flat)
        yield

    names = reads(monkeypatch)
    monkeypatch.setattr(picture_folder, "locked", after_another_run)
    assert len(prepared(flat).labels(train=True)) == 19
    assert len(names) == 23  # by the other run alone


@pytest.mark.parametrize("change", ["other pixels", "added", "removed", "moved", "framing", "skip"])
def test_a_stale_cache_is_not_used(
    flat: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    before = prepared(flat).images(train=True)
    path, options = flat / "bird" / "12.png", {}
    assert "bird/12.png" not in (flat / TEST_FILE).read_text()
    if change == "other pixels":  # of the same size
        stat = path.stat()
        content = path.read_bytes()
        save(path, noise(77))
        path.write_bytes(path.read_bytes()[: len(content)].ljust(len(content), b"\0"))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == "added":
        save(flat / "bird" / "12a.png", noise(77))
    elif change == "removed":
        path.unlink()
    elif change == "moved":
        path.rename(flat / "dog" / path.name)
    else:
        options = {"bad_files": "skip"} if change == "skip" else {"framing": "mnist"}
    names = reads(monkeypatch)
    if change == "framing":
        monkeypatch.setattr(own_data, "count_duplicates", lambda content: 0)
        monkeypatch.setattr(picture_folder, "read_framed", lambda *_: torch.ones(28, 28).byte())
        assert prepared(flat, **options).images(train=True).unique().tolist() == [1]
        return
    data = prepared(flat, **options)
    assert len(names) == 23 + (change == "added") - (change == "removed")
    if change == "other pixels":
        rows = (data.images(train=True) != before).any(dim=2).any(dim=1)
        assert rows.sum() == 1


def damage_middle(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        damage_middle,
        lambda content: content[:-30],
        lambda content: b"",
        lambda content: b"not an archive",
        lambda content: content.replace(b"images.npy", b"imagez.npy"),
    ],
)
def test_a_damaged_cache_is_built_anew(
    flat: Path, monkeypatch: pytest.MonkeyPatch, damage: object
) -> None:
    before = prepared(flat)
    content = (flat / CACHE).read_bytes()
    (flat / CACHE).write_bytes(damage(content))  # type: ignore[operator]
    names = reads(monkeypatch)
    after = prepared(flat)
    assert torch.equal(after.images(train=True), before.images(train=True))
    assert len(names) == 23
    assert len(prepared(flat).labels(train=True)) == 19
    assert len(names) == 23  # it is whole again


def test_a_cache_never_runs_code(flat: Path) -> None:
    before = prepared(flat)
    with np.load(flat / CACHE) as stored:
        arrays = dict(stored)
    arrays["reasons"] = np.array([{"an": "object"}], dtype=object)
    np.savez(flat / CACHE, **arrays)
    assert torch.equal(prepared(flat).images(train=True), before.images(train=True))


def refuse_to_write(*_: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_folder_that_cannot_be_written_is_read_all_the_same(
    flat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_folder, "write_atomic", refuse_to_write)
    monkeypatch.setattr("filelock.FileLock.acquire", refuse_to_write)
    with pytest.warns(UserWarning, match=r"not written down in .*: Permission denied") as warned:
        first = prepared(flat)
    assert len(warned) == 1
    assert {path.name for path in flat.iterdir()} == set(CLASSES)
    other_rank = OwnData(str(flat))  # reads the pictures, and warns of nothing
    for train in (True, False):
        assert torch.equal(other_rank.images(train), first.images(train))
        assert torch.equal(other_rank.labels(train), first.labels(train))
    monkeypatch.undo()
    assert torch.equal(prepared(flat).images(train=False), first.images(train=False))


@NEEDS_POSIX
@pytest.mark.skipif(getattr(os, "getuid", int)() == 0, reason="root can write any folder")
def test_a_read_only_folder(flat: Path) -> None:
    flat.chmod(0o500)
    try:
        with pytest.warns(UserWarning, match="not written down"):
            assert len(prepared(flat).labels(train=True)) == 19
    finally:
        flat.chmod(0o700)


def test_making_the_data_touches_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = MNISTDataModule(dataset=str(tmp_path / "gone"))
    assert data.framing == "resize"
    assert data.hparams["dataset"] == str(tmp_path / "gone")
    with pytest.raises(InputError, match="gone: there is no such file or folder"):
        data.prepare_data()
    with pytest.raises(InputError, match=r"`framing` to be resize or mnist, but got 'other'"):
        MNISTDataModule(dataset="gone.npz", framing="other")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"`bad_files` to be stop or skip, but got 'no'"):
        MNISTDataModule(dataset="gone.npz", bad_files="no")  # type: ignore[arg-type]


def test_a_relative_path_is_stored_in_absolute_form(flat: Path) -> None:
    assert is_path("pets")
    assert MNISTDataModule(dataset="pets").hparams["dataset"] == str(flat)
    assert MNISTDataModule(dataset="mnist").hparams["dataset"] == "mnist"


@pytest.mark.parametrize("framing", ["resize", "mnist"])
def test_a_picture_that_cannot_be_read_stops_or_is_skipped(
    flat: Path, framing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_data, "count_duplicates", lambda content: 0)  # some look alike
    for label, name in enumerate(CLASSES):  # ink that MNIST's framing accepts
        for i, path in enumerate(sorted((flat / name).iterdir())):
            ink = np.zeros((40, 40), np.uint8)
            ink[5:35, 15 + label : 20 + i] = 255
            save(path, ink)
    prepared(flat)
    test = (flat / TEST_FILE).read_text().splitlines()
    broken = [f"bird/{i:02}.png" for i in range(14) if f"bird/{i:02}.png" not in test][:2]
    for name in (*broken, test[0]):
        (flat / name).write_bytes(b"damaged")
    with pytest.raises(InputError) as error:
        prepared(flat, framing=framing)
    assert re.search(
        r"pictures, but got .*bird/\d\d.png: it is not a PNG.*--data.bad_files skip",
        str(error.value),
    )
    for _ in range(2):  # from the pictures, and from the cache
        with pytest.warns(UserWarning, match=r"3 of the pictures .* left out") as warned:
            data = prepared(flat, framing=framing, bad_files="skip")
        message = str(warned[0].message)
        assert len(warned) == 1
        assert all(path in message for path in (*broken, test[0]))
        assert data.labels(train=True).bincount().tolist() == [10, 6, 1]
        assert data.labels(train=False).bincount().tolist() == [1, 1, 1]
        assert len(data.images(train=True)) == 17
        assert all(image.any() for image in data.images(train=True))  # none is the black of a gap


def test_test_pictures_among_the_training_pictures_are_counted(parts: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(parts)
    shutil.copy(parts / "test" / "2" / "00001.png", parts / "train" / "10" / "other.png")
    with pytest.warns(UserWarning, match="1 of the 2 test pictures .* among the training pictures"):
        prepared(parts)


def link(path: Path, target: str) -> None:
    path.symlink_to(target, target_is_directory=True)


def many(folder: Path) -> None:
    for i in range(1001):
        (folder / str(i)).mkdir()


def whole_as_parts(folder: Path) -> None:
    for part in ("train", "test"):
        link(folder / part, ".")


def all_in_train(folder: Path) -> None:
    (folder / "train").mkdir()
    for name in CLASSES:
        (folder / name).rename(folder / "train" / name)


def empty_parts(folder: Path) -> None:
    emptied(folder)
    for part in ("train", "test"):
        (folder / part).mkdir()


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder)
    folder.mkdir()
    return folder


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an empty folder": (emptied, "for each class in .*got none"),
    "pictures without a class": (
        lambda f: save(emptied(f) / "a.png", noise(0)),
        "but got 1 pictures outside of one",
    ),
    "one class": (
        lambda f: [(f / each).rename(f / f".{each}") for each in ("cat", "dog")],
        "two classes or more in .*, but got bird only",
    ),
    "a class without a picture": (lambda f: (f / "emu").mkdir(), "but got 0 of emu"),
    "a class with one picture": (
        lambda f: (f / "dog" / "00.png").unlink(),
        "two pictures or more of each class in .*, but got 1 of dog: add some",
    ),
    "a folder in a class": (
        lambda f: (f / "cat" / "more").mkdir(),
        "cat, but got the folder more: move its pictures up",
    ),
    "more than 1,000 classes": (many, "1,000 classes at most, but got more sub-folders"),
    "only train": (
        all_in_train,
        "folders train and test in .*, but got train: rename one, or give .*train, of which",
    ),
    "empty parts": (
        empty_parts,
        "two classes or more in .*, but got none",
    ),
    "not printable": (lambda f: (f / "cat").rename(f / "c\x1bt"), r"printable .*'c\\x1bt'"),
}
LINKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a link to itself": (
        lambda f: link(f / "loop", "loop"),
        "loop cannot be read: Too many levels",
    ),
    "a link to the folder": (lambda f: link(f / "loop", "."), "loop, but got the folder"),
    "a link upwards": (lambda f: link(f / "cat" / "up", ".."), "cat, but got the folder up"),
    "a part that is the whole": (
        whole_as_parts,
        "but got the folder",
    ),
    "a link to nowhere": (lambda f: link(f / "cat" / "a.png", "b"), "a.png: it cannot be read"),
    "a picture that is a folder": (
        lambda f: (f / "cat" / "a.png").mkdir(),
        "cat, but got the folder a.png",
    ),
}


@pytest.mark.parametrize(
    "case",
    [*BAD, *(pytest.param(name, marks=NEEDS_POSIX) for name in LINKS)],
)
def test_bad_folders_are_refused_in_one_line(flat: Path, case: str) -> None:
    change, message = {**BAD, **LINKS}[case]
    change(flat)
    with pytest.raises(InputError, match=message) as error:
        prepared(flat)
    assert "\n" not in str(error.value)


def test_parts_of_different_classes_are_refused(parts: Path) -> None:
    (parts / "train" / "2").rename(parts / "train" / "3")
    with pytest.raises(InputError, match="but got 3 in train alone and 2 in test alone"):
        find_dataset(str(parts), "data", None).class_names  # noqa: B018
    (parts / "train" / "3").rename(parts / "train" / "2")
    (parts / "test" / "2" / "00001.png").unlink()
    with pytest.raises(InputError, match=r"every class in .*, but got none of 2 in test: add some"):
        prepared(parts)


def test_a_class_that_comes_after_the_split_needs_two_pictures(flat: Path) -> None:
    prepared(flat)
    save(flat / "emu" / "a.png", noise(5))
    with pytest.raises(InputError, match=r"two pictures or more of each class .* but got 1 of emu"):
        prepared(flat)


def test_hashes_and_checks_are_for_own_data_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_data, "count_duplicates", refuse_to_write)
    MNISTDataModule(dataset="digits").prepare_data()


def test_the_files_of_training_pictures_are_those_that_were_read(parts: Path) -> None:
    (parts / "train" / "2" / "00001.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="1 of the pictures"):
        data = prepared(parts, bad_files="skip")
    files = data.train_files()
    assert sorted(files) == [f"train/10/0000{k}.png" for k in (0, 2, 4)] + [
        f"train/2/0000{k}.png" for k in (3, 5)
    ]
    for file, image in zip(files, data.images(train=True), strict=True):
        assert np.array_equal(np.asarray(Image.open(parts / file)), image.numpy())
    module = MNISTDataModule(dataset=str(parts), bad_files="skip")
    assert list(module.train_files()) == list(files)
