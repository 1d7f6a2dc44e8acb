"""MNIST's like, up to the archives, which are made here: their own sites are out of reach."""

import gzip
import hashlib
import io
import shutil
import string
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
import torchvision

from fnn_lightning.commands.main import main
from fnn_lightning.data import published
from fnn_lightning.data.datasets import NAMES
from fnn_lightning.data.published import PUBLISHED, raw_dir
from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.errors import InputError
from tests.support import LAST, idx_bytes, refused, tiny_files

Serve = Callable[[Path], str]
Capture = pytest.CaptureFixture[str]

UPPER, LOWER, FEW_LOWER = string.ascii_uppercase, string.ascii_lowercase, "abdefghnqrt"
FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
FASHION += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
CLASSES = {
    "fashion_mnist": FASHION,
    "kmnist": ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"],
    "qmnist": [*string.digits],
    "emnist_letters": [*LOWER],
    "emnist_balanced": [*string.digits, *UPPER, *FEW_LOWER],
    "emnist_byclass": [*string.digits, *UPPER, *LOWER],
    "emnist_bymerge": [*string.digits, *UPPER, *FEW_LOWER],
    "emnist_digits": [*string.digits],
}
EMNIST = [name for name in CLASSES if name.startswith("emnist")]
NO_PICTURES = ("--tensorboard.enabled", "false")
SIZES = {True: 130, False: 70}  # at least one of every class


def a_part(name: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Make images, upright, and labels from 0; a pixel of the first row tells the class."""
    rng = np.random.default_rng([*CLASSES].index(name))
    size = SIZES[train]
    labels = rng.permutation(np.arange(size) % len(CLASSES[name])).astype(np.uint8)
    images = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
    images[:, 0, 1] = labels
    return images, labels


def files_of(name: str) -> dict[str, bytes]:
    """Make the four uncompressed files of a data set, as it is published."""
    files = {}
    for train in (True, False):
        images, labels = a_part(name, train)
        if name in EMNIST:  # which lie on their side
            images = np.ascontiguousarray(images.transpose(0, 2, 1))
        files[PUBLISHED[name].images(train)] = idx_bytes(images)
        content = idx_bytes(labels + (name == "emnist_letters"))
        if name == "qmnist":
            table = np.full((len(labels), 8), -7, dtype=">i4")
            table[:, 0] = labels
            content = struct.pack(">BBBBII", 0, 0, 12, 2, *table.shape) + table.tobytes()
        files[PUBLISHED[name].labels(train)] = content
    return files


def archives_of(name: str) -> dict[str, bytes]:
    """Pack the files of a data set, as it is published."""
    return {"gzip.zip": emnists_archive()} if name in EMNIST else packed(name)


def packed(name: str) -> dict[str, bytes]:
    return {f"{file}.gz": gzip.compress(data, mtime=0) for file, data in files_of(name).items()}


@cache  # it holds the time, so a second one would have another digest
def emnists_archive() -> bytes:
    content = io.BytesIO()
    with ZipFile(content, "w") as archive:
        for split in EMNIST:
            for file, data in packed(split).items():
                archive.writestr(f"gzip/{file}", data)
    return content.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that holds the archives of all data sets, in torchvision's folders.

    Torchvision expects their digests.
    """
    folder = tmp_path / "site"
    for name in ("fashion_mnist", "kmnist", "qmnist", "emnist_letters"):
        title = PUBLISHED[name].title
        archives = archives_of(name)
        write(folder / title / "raw", archives)
        known: Any = getattr(torchvision.datasets, title)
        digests = {file: md5(content) for file, content in archives.items()}
        if title == "EMNIST":
            monkeypatch.setattr(known, "md5", digests["gzip.zip"])
        elif title == "QMNIST":
            resources = {
                part: [(url, digests[url.rpartition("/")[2]]) for url, _ in known.resources[part]]
                for part in ("train", "test")
            }
            monkeypatch.setattr(known, "resources", resources)
        else:
            monkeypatch.setattr(known, "resources", [*digests.items()])
    return folder


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def read(name: str, data_dir: str, mirror: str | None) -> MNISTDataModule:
    data = MNISTDataModule(name, data_dir, mirror)
    data.prepare_data()
    data.setup()
    return data


def assert_read(data: MNISTDataModule, name: str) -> None:
    for split, train in (("train", True), ("test", False)):
        images, labels = a_part(name, train)
        read = data._splits[split]
        assert (read.images.dtype, read.labels.dtype) == (torch.uint8, torch.int64)
        assert np.array_equal(read.images.numpy(), images)
        assert np.array_equal(read.labels.numpy(), labels)


def of_title(site: Path, name: str) -> Path:
    return site / PUBLISHED[name].title / "raw"


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("torchvisions_folders", [True, False])
@pytest.mark.parametrize("by_http", [True, False])
def test_a_data_set_is_fetched_and_read(
    site: Path, serve: Serve, name: str, by_http: bool, torchvisions_folders: bool, capsys: Capture
) -> None:
    folder = site if torchvisions_folders else of_title(site, name)
    source = serve(folder) if by_http else str(folder)
    assert not MNISTDataModule(name).is_present()
    assert_read(read(name, "data", source), name)
    title = PUBLISHED[name].title
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == f"fetching {title} into data/{title}/raw"
    assert [line.split()[0] for line in lines] == [
        archive.removesuffix(".gz") for archive in archives_of(name)
    ]
    assert all(line.endswith(f" from {source.removeprefix('http://')}") for line in lines)
    files = files_of(name)
    kept = archives_of(name) if name in EMNIST and by_http else {}
    found = {path.name: path.read_bytes() for path in Path("data", title, "raw").iterdir()}
    assert found == {**files, **kept}
    shutil.rmtree(site)
    assert MNISTDataModule(name).is_present()
    assert_read(read(name, f"data/{title}", None), name)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", CLASSES)
def test_torchvision_reads_the_same_from_the_folder(site: Path, name: str) -> None:
    data = read(name, "data", str(site))
    split = PUBLISHED[name].split
    for part, train in (("train", True), ("test", False)):
        known: Any = getattr(torchvision.datasets, PUBLISHED[name].title)
        theirs = known("data", train=train, **({"split": split} if split else {}))
        ours = data._splits[part]
        images = theirs.data.mT if split else theirs.data
        assert torch.equal(ours.images, images)
        assert [data.class_names[label].lower() for label in ours.labels] == [
            theirs.classes[theirs[i][1]].partition(" - ")[0].lower() for i in range(len(theirs))
        ]


@pytest.mark.parametrize("name", CLASSES)
def test_classes_have_names_and_pictures_a_framing(name: str) -> None:
    data = MNISTDataModule(name)
    assert list(data.class_names) == CLASSES[name]
    assert data.framing == ("resize" if name == "fashion_mnist" else "mnist")


def test_every_name_is_tested() -> None:
    assert {*NAMES} == {"mnist", "digits", *CLASSES}


@pytest.mark.parametrize(
    ("given", "near"),
    [("FashionMNIST", "fashion_mnist"), ("emnist", "emnist_letters"), ("kminst", "kmnist")],
)
def test_an_unknown_name_is_refused_with_the_nearest(given: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"emnist_digits.*, but got {given}; did you mean {near}"):
        MNISTDataModule(given)


@pytest.mark.parametrize("name", ["fashion_mnist", "qmnist", "emnist_letters"])
@pytest.mark.parametrize("by_http", [True, False])
def test_a_damaged_archive_leaves_nothing_behind(
    site: Path, serve: Serve, name: str, by_http: bool
) -> None:
    archive = of_title(site, name) / next(iter(archives_of(name)))
    archive.write_bytes(archive.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError) as caught:
        read(name, "data", serve(site) if by_http else str(site))
    title = PUBLISHED[name].title
    assert f"{title} is incomplete: data/{title}/raw/" in str(caught.value)
    assert f"tried to get {archive.name} from data (no such file); " in str(caught.value)
    assert "(the archive is damaged)" in str(caught.value)
    assert f"{title}'s four files or a base URL of " in str(caught.value)
    assert not Path("data").exists()


@pytest.mark.parametrize("name", CLASSES)
def test_a_damaged_file_is_fetched_again_and_kept(site: Path, name: str) -> None:
    read(name, "data", str(site))
    path = raw_dir("data", PUBLISHED[name]) / PUBLISHED[name].labels(train=False)
    intact = path.read_bytes()
    path.write_bytes(intact[:-1])
    title = PUBLISHED[name].title
    with pytest.warns(UserWarning, match=rf"damaged: .*; replaced by {title}'s, and kept as"):
        read(name, "data", str(site))
    assert path.read_bytes() == intact
    assert path.with_name(f"{path.name}.damaged").read_bytes() == intact[:-1]


def test_emnists_archive_is_downloaded_once_for_all_splits(site: Path, serve: Serve) -> None:
    read("emnist_letters", "data", serve(site))
    shutil.rmtree(site)
    for name in EMNIST:
        assert_read(read(name, "data", None), name)


def test_a_damaged_archive_in_the_way_is_kept(site: Path, serve: Serve) -> None:
    path = Path("data/EMNIST/raw/gzip.zip")
    write(path.parent, {path.name: b"half of it"})
    with pytest.warns(UserWarning, match=r"gzip\.zip is damaged; replaced by EMNIST's, and kept"):
        read("emnist_letters", "data", serve(site))
    assert path.with_name("gzip.zip.damaged").read_bytes() == b"half of it"
    assert path.read_bytes() == archives_of("emnist_letters")["gzip.zip"]


@pytest.mark.parametrize("place", ["here", "here/gzip", "here/EMNIST/raw/gzip"])
def test_emnists_archive_may_be_unpacked_by_hand(site: Path, place: str) -> None:
    packed = {
        f"{name}.gz": gzip.compress(data) for name, data in files_of("emnist_letters").items()
    }
    write(Path(place), packed)
    data_dir = place.removesuffix("/gzip")
    assert_read(read("emnist_letters", "copy", data_dir), "emnist_letters")
    labels = Path(place, "emnist-letters-test-labels-idx1-ubyte.gz")
    intact = labels.read_bytes()
    labels.write_bytes(intact[:-9])
    with pytest.raises(InputError, match="the archive is damaged"):
        read("emnist_letters", "another", data_dir)
    labels.write_bytes(intact)
    assert_read(read("emnist_letters", data_dir, None), "emnist_letters")


def put(path: Path, name: str, index: int, value: int) -> None:
    """Change a label in a file, counted from the end."""
    content = bytearray(path.read_bytes())
    if name == "qmnist":
        content[len(content) - 32 * index : len(content) - 32 * index + 4] = struct.pack(
            ">i", value
        )
    else:
        content[-index] = value
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("fashion_mnist", 10, "0–9"),
        ("qmnist", 10, "0–9"),
        ("qmnist", -1, "0–9"),
        ("emnist_letters", 0, "1–26"),
        ("emnist_letters", 27, "1–26"),
        ("emnist_balanced", 47, "0–46"),
        ("emnist_byclass", 62, "0–61"),
    ],
)
def test_labels_beyond_the_names_are_refused(
    site: Path, name: str, value: int, expected: str
) -> None:
    read(name, "data", str(site))
    put(raw_dir("data", PUBLISHED[name]) / PUBLISHED[name].labels(train=True), name, 3, value)
    with pytest.raises(
        InputError, match=rf"labels {expected} in .*train-labels.*, but got {value}"
    ):
        read(name, "data", None)


def test_qmnists_files_are_read_by_their_own_form(tmp_path: Path) -> None:
    path = tmp_path / "qmnist-train-labels-idx2-int"
    intact = files_of("qmnist")[path.name]
    path.write_bytes(intact[:-4])
    problem = published.problem_of(path, path.name)
    assert problem is not None
    assert "header promises 4,172 bytes, but it has 4,168" in problem
    path.write_bytes(intact[:2] + bytes([8]) + intact[3:])
    problem = published.problem_of(path, path.name)
    assert problem is not None
    assert "it does not start with the header of an IDX file" in problem


@pytest.mark.parametrize("by_http", [True, False])
def test_an_archive_of_another_data_set_is_not_used(
    site: Path, serve: Serve, by_http: bool
) -> None:
    folder = of_title(site, "kmnist")
    with pytest.raises(InputError, match=r"\(the archive is KMNIST's\)"):
        read("fashion_mnist", "data", serve(folder) if by_http else str(folder))
    with pytest.raises(InputError, match=r"\(the archive is KMNIST's\)"):
        read("mnist", "data", serve(folder) if by_http else str(folder))
    assert not Path("data").exists()


def test_one_folder_holds_several_data_sets_packed_or_not(site: Path) -> None:
    names = ("fashion_mnist", "kmnist", "emnist_letters")
    write(Path("all/MNIST/raw"), tiny_files())
    for name in names:
        write(Path("all") / PUBLISHED[name].title / "raw", files_of(name))
        assert_read(read(name, "all", None), name)
        assert_read(read(name, "from_unpacked", "all"), name)
        assert_read(read(name, "from_packed", str(site)), name)
    labels = read("mnist", "all", None)._splits["test"].labels.to(torch.uint8)
    assert tiny_files()["t10k-labels-idx1-ubyte"].endswith(labels.numpy().tobytes())


@pytest.mark.parametrize(
    ("place", "names"),
    [
        ("FashionMNIST/raw", {"fashion_mnist"}),
        ("FashionMNIST", {"fashion_mnist"}),
        ("fashion-mnist/data", {"fashion_mnist"}),
        ("Kuzushiji_MNIST", {"kmnist"}),
        ("MNIST/raw", {"mnist"}),
        ("downloads", {"mnist"}),
        ("FashionMNIST/MNIST", {"mnist"}),
    ],
)
@pytest.mark.parametrize("is_mirror", [True, False])
def test_unpacked_files_belong_to_the_data_set_that_their_folder_is_named_after(
    site: Path, place: str, names: set[str], is_mirror: bool
) -> None:
    write(Path(place), tiny_files())  # with noise for images, they could be any of the three
    for name in ("mnist", "fashion_mnist", "kmnist"):
        where = ("data", place) if is_mirror else (place, None)
        if name in names:
            data = read(name, *where)
            labels = data._splits["test"].labels.to(torch.uint8)
            assert tiny_files()["t10k-labels-idx1-ubyte"].endswith(labels.numpy().tobytes())
        else:
            title = PUBLISHED[name].title
            with pytest.raises(
                InputError, match=rf"can be another data set's: {title}'s is expected in a folder"
            ):
                read(name, *where)


def test_labels_that_are_known_to_be_mnists_are_refused_in_another_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(Path("data/FashionMNIST/raw"), tiny_files())
    read("fashion_mnist", "data", None)
    digest = md5(tiny_files()["t10k-labels-idx1-ubyte"])
    monkeypatch.setitem(published.OWNERS, digest, "MNIST")
    with pytest.raises(
        InputError, match="Expected FashionMNIST in data/FashionMNIST/raw, but got MNIST: move its"
    ):
        read("fashion_mnist", "data", None)


@pytest.mark.parametrize("name", CLASSES)
def test_a_run_knows_the_classes(
    site: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("FNN_LIGHTNING_MIRROR", str(site))
    small = ["--model.hidden_dims", "[8]", "--data.batch_size", "50", "--trainer.max_steps", "1"]
    main(["fit", "--data.dataset", name, *small, *NO_PICTURES])
    assert "1 step in all" in capsys.readouterr().out
    stored = torch.load(LAST, weights_only=True)
    assert list(stored["hyper_parameters"]["class_names"]) == CLASSES[name]
    assert [*stored["state_dict"].values()][-1].shape == (len(CLASSES[name]),)
    main(["validate", *NO_PICTURES])
    assert f"val set of {name}: Got " in capsys.readouterr().out


def test_a_missing_data_set_is_one_line_for_the_user(capsys: Capture) -> None:
    error = refused(["fit", "--data.dataset", "emnist_letters"], capsys)
    assert "EMNIST is incomplete: data/EMNIST/raw/emnist-letters-train-images-idx3-ubyte" in error
    assert "or a base URL of gzip.zip" in error
