import io
import sys
from collections.abc import Callable
from pathlib import Path
from weakref import WeakSet

import numpy as np
import pytest
import torch
from tqdm import tqdm

from fnn_lightning.data.downloads import fetch
from fnn_lightning.data.idx_file import read_images, read_labels
from fnn_lightning.data.published import MNIST, raw_dir
from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.errors import InputError
from tests.support import NEEDS_POSIX, idx_bytes, tiny_files

Damage = Callable[[bytes], bytes]
IMAGES = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
INTACT = idx_bytes(IMAGES)


@pytest.fixture
def mirror_url(mirror: Path, serve: Callable[[Path], str]) -> str:
    """Serve the mirror's folder over HTTP."""
    return serve(mirror)


def contents(data_dir: str) -> dict[str, bytes]:
    """Read every file in the folder of the data."""
    return {path.name: path.read_bytes() for path in raw_dir(data_dir).glob("**/*")}


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}"])
def test_files_are_fetched_from_a_folder(mirror: Path, form: str) -> None:
    fetch(MNIST, "data", form.format(mirror))
    assert contents("data") == tiny_files()


@pytest.mark.parametrize("form", ["{}", "{}/"])
def test_files_are_fetched_from_a_server(mirror_url: str, form: str) -> None:
    fetch(MNIST, "data", form.format(mirror_url))
    assert contents("data") == tiny_files()


def kilobytes(mirror: Path, name: str) -> str:
    return f"{(mirror / f'{name}.gz').stat().st_size / 1000:,.0f} kB"


def test_names_sizes_source_and_destination_are_said_once(
    mirror: Path, mirror_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for data_dir, source in (("new", mirror_url), ("other", str(mirror))):
        fetch(MNIST, data_dir, source)
        output = capsys.readouterr()
        assert output.out == ""  # which may be a table of predictions
        assert "\r" not in output.err
        lines = output.err.splitlines()
        assert lines[0] == f"fetching MNIST into {data_dir}/MNIST/raw"
        where = source.removeprefix("http://")
        assert [" ".join(line.split()) for line in lines[1:]] == [
            f"{name} {kilobytes(mirror, name)} from {where}" for name in MNIST.files
        ]
        fetch(MNIST, data_dir, source)
        assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_while_a_file_is_downloaded(
    mirror_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    # a bar that another test has left open would move this one down a line
    monkeypatch.setattr(tqdm, "_instances", WeakSet())
    fetch(MNIST, "data", mirror_url)
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        assert f"| {name}, " in terminal.getvalue()
    last = terminal.getvalue().splitlines()[-1]
    assert last.rpartition("\r")[2].startswith("  t10k-labels-idx1-ubyte")


def test_what_https_refuses_is_downloaded_by_http(
    mirror_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(MNIST, "data", mirror_url.replace("http:", "https:"))  # it speaks no TLS
    assert contents("data") == tiny_files()


def test_archives_in_the_data_folder_are_extracted(mirror: Path) -> None:
    raw_dir("data").mkdir(parents=True)
    for archive in mirror.iterdir():
        archive.rename(raw_dir("data") / archive.name)
    fetch(MNIST, "data", None)
    assert tiny_files().items() <= contents("data").items()


@NEEDS_POSIX
def test_intact_files_are_not_fetched_again(data_dir: str) -> None:
    raw_dir(data_dir).chmod(0o500)
    fetch(MNIST, data_dir, "/there/is/no/mirror")


@pytest.mark.parametrize("damage", [lambda intact: intact[:-100], lambda intact: b"x" + intact[1:]])
def test_a_damaged_file_is_fetched_again(data_dir: str, mirror: Path, damage: Damage) -> None:
    path = raw_dir(data_dir) / "train-images-idx3-ubyte"
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.warns(
        UserWarning, match=r"is damaged: .* kept as train-images-idx3-ubyte\.damaged"
    ):
        fetch(MNIST, data_dir, str(mirror))
    assert contents(data_dir) == {**tiny_files(), f"{path.name}.damaged": damaged}


@pytest.mark.parametrize(
    "damage",
    [
        lambda intact: intact[:-100],
        lambda intact: intact[:50] + b"?" + intact[51:],
        lambda intact: b"",
    ],
    ids=["truncated", "corrupted", "empty"],
)
@pytest.mark.parametrize("by_http", [True, False])
def test_a_damaged_archive_leaves_nothing_behind(
    mirror: Path, mirror_url: str, by_http: bool, damage: Damage
) -> None:
    archive = mirror / "t10k-images-idx3-ubyte.gz"
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(InputError, match=r"tried to get t10k-images-idx3-ubyte\.gz from "):
        fetch(MNIST, "data", mirror_url if by_http else str(mirror))
    intact = tiny_files()
    del intact["t10k-images-idx3-ubyte"], intact["t10k-labels-idx1-ubyte"]
    assert contents("data") == intact  # fetched before the damaged one


def test_the_error_names_missing_files_and_remedies() -> None:
    with pytest.raises(InputError) as caught:
        fetch(MNIST, "data", "http://127.0.0.1:1")  # nothing listens there
    message = str(caught.value)
    for part in (*MNIST.files, "data/MNIST/raw", "http://127.0.0.1:1/", "refused", "--data.mirror"):
        assert part in message
    assert "--data.dataset digits" in message
    assert "\n" not in message
    assert not Path("data").exists()


def test_the_mirror_argument_overrides_the_environment(
    mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FNN_LIGHTNING_MIRROR", "/there/is/no/mirror")
    MNISTDataModule(mirror=str(mirror), val_size=0).prepare_data()
    assert contents("data") == tiny_files()


def test_without_the_argument_the_environment_names_the_mirror(
    mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FNN_LIGHTNING_MIRROR", str(mirror))
    MNISTDataModule(val_size=0).prepare_data()
    assert contents("data") == tiny_files()


def kaggle(name: str) -> str:
    return name.replace("-idx", ".idx")


def tree(folder: str) -> dict[str, bytes]:
    """Read every file in a folder and below."""
    paths = Path(folder).glob("**/*")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


NAMES = {
    "plain": lambda name: name,
    "kaggle": kaggle,
    "folder": lambda name: f"{name}/{name}",
    "unpacked by the browser": lambda name: f"{name}.gz",
    "kaggle, unpacked by the browser": lambda name: f"{kaggle(name)}.gz",
}
# where the files are, and what the user names
PLACES = [
    ("here", "here"),
    ("here/MNIST/raw", "here"),
    ("here/MNIST/raw", "here/MNIST"),
    ("here/MNIST/raw", "here/MNIST/raw"),
    ("here/MNIST", "here"),
    ("here/MNIST", "here/MNIST"),
    ("here/raw", "here"),
    ("here/data/MNIST/raw", "here"),
]


def put(folder: str, form: Callable[[str], str], files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = Path(folder, form(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize(("place", "given"), PLACES)
@pytest.mark.parametrize("form", NAMES.values(), ids=NAMES)
def test_unpacked_files_are_read_where_they_are(
    place: str, given: str, form: Callable[[str], str]
) -> None:
    put(place, form, tiny_files())
    before = tree("here")
    data = MNISTDataModule(data_dir=given, val_size=0)
    data.prepare_data()
    data.setup()
    assert tree("here") == before
    labels = data._splits["test"].labels.to(torch.uint8)
    assert tiny_files()["t10k-labels-idx1-ubyte"].endswith(labels.numpy().tobytes())


@pytest.mark.parametrize(("place", "given"), PLACES)
@pytest.mark.parametrize("form", NAMES.values(), ids=NAMES)
def test_a_mirror_may_hold_unpacked_files(
    place: str, given: str, form: Callable[[str], str]
) -> None:
    put(place, form, tiny_files())
    before = tree("here")
    fetch(MNIST, "data", given)
    assert contents("data") == tiny_files()
    assert tree("here") == before


def test_one_of_the_files_names_the_mirror(mirror: Path) -> None:
    fetch(MNIST, "data", str(mirror / "t10k-labels-idx1-ubyte.gz"))
    assert contents("data") == tiny_files()


@pytest.mark.parametrize(("place", "given"), [*PLACES, ("here/downloads", "here")])
@pytest.mark.parametrize("form", [str, kaggle])
@pytest.mark.parametrize("is_mirror", [True, False])
def test_archives_are_found_where_they_are(
    mirror: Path, place: str, given: str, form: Callable[[str], str], is_mirror: bool
) -> None:
    archives = {path.name: path.read_bytes() for path in mirror.iterdir()}
    put(place, form, archives)
    before = tree("here")
    data_dir = "data" if is_mirror else given
    fetch(MNIST, data_dir, given if is_mirror else None)
    assert tree("here").items() >= before.items()
    assert tiny_files().items() <= contents(data_dir).items()
    assert raw_dir(data_dir).name == "raw"


def test_another_archive_or_data_set_is_not_taken_for_mnist() -> None:
    put("here/FashionMNIST/raw", str, tiny_files())
    put("here/data", NAMES["unpacked by the browser"], {name: b"packed" for name in MNIST.files})
    for data_dir, mirror in (("here", None), ("data", "here")):
        with pytest.raises(InputError, match=r"MNIST is incomplete: .*train-images-idx3-ubyte is"):
            fetch(MNIST, data_dir, mirror)
    assert not Path("here/MNIST").exists()


def test_a_half_filled_folder_is_completed(mirror: Path) -> None:
    files = tiny_files()
    labels = {name: files.pop(name) for name in list(files) if "labels" in name}
    put("data/MNIST/raw", kaggle, files)
    put("data/MNIST/raw", kaggle, {name: content[:20] for name, content in labels.items()})
    before = tree("data")
    with pytest.raises(InputError, match="labels-idx1-ubyte is missing"):
        fetch(MNIST, "data", None)
    assert tree("data") == before
    fetch(MNIST, "data/MNIST/raw", str(mirror))
    assert tree("data") == {**before, **{f"MNIST/raw/{name}": labels[name] for name in labels}}


@pytest.mark.parametrize("place", ["data", "data/MNIST", "data/MNIST/raw"])
def test_a_file_in_place_of_a_folder_is_reported_and_kept(mirror: Path, place: str) -> None:
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).write_text("in the way")
    with pytest.raises(InputError, match=r"`data_dir` to be a folder that can be written"):
        fetch(MNIST, "data", str(mirror))
    assert Path(place).read_text() == "in the way"


def test_a_folder_in_place_of_a_file_is_reported(mirror: Path) -> None:
    (raw_dir("data") / "train-labels-idx1-ubyte").mkdir(parents=True)
    with pytest.raises(InputError, match="train-labels-idx1-ubyte"):
        fetch(MNIST, "data", str(mirror))


def test_idx_files_are_read_as_bytes_and_int64_labels(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(idx_bytes(IMAGES))
    (tmp_path / "labels").write_bytes(idx_bytes(np.array([9, 0, 5], dtype=np.uint8)))
    images, labels = read_images(tmp_path / "images"), read_labels(tmp_path / "labels")
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), IMAGES)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [9, 0, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged: it does not start"),
        (INTACT[:10], "damaged: it does not start"),
        (b"<html>not found</html>", "damaged: it does not start"),
        (idx_bytes(IMAGES[0, 0]), "damaged: it does not start"),
        (INTACT[:-1], "promises 2,368 bytes, but it has 2,367"),
        (INTACT + b"x", "promises 2,368 bytes, but it has 2,369"),
        (idx_bytes(IMAGES[:, :27]), r"28 × 28 pixels in .*, but got \[27, 28\]"),
        (INTACT[:4] + b"\xff" * 12, "damaged: its header promises"),
    ],
)
def test_damaged_image_files_are_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_images(tmp_path / "images")


def test_labels_above_9_are_rejected(data_dir: str) -> None:
    path = raw_dir(data_dir) / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + bytes([10]))
    with pytest.raises(InputError, match=r"labels 0–9 in .*t10k-labels.*, but got 10"):
        MNISTDataModule(data_dir=data_dir).prepare_data()


def test_missing_files_and_folders_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is missing"):
        read_images(tmp_path / "nothing")
    with pytest.raises(InputError, match="is not a file"):
        read_images(tmp_path)
