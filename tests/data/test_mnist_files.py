import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fnn_lightning.data.mnist_files import FILES, fetch_mnist, raw_dir
from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.errors import InputError
from tests.support import tiny_files

Damage = Callable[[bytes], bytes]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror_url(mirror: Path) -> Iterator[str]:
    """Serve the mirror's folder over HTTP, on a free port of the loopback interface."""
    handler = partial(QuietHandler, directory=str(mirror))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(timeout=10)


def contents(data_dir: str) -> dict[str, bytes]:
    """Read all that lies where the data should be, whatever it is."""
    return {path.name: path.read_bytes() for path in raw_dir(data_dir).glob("**/*")}


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}"])
def test_from_a_folder(mirror: Path, form: str) -> None:
    fetch_mnist("data", form.format(mirror))
    assert contents("data") == tiny_files()


@pytest.mark.parametrize("form", ["{}", "{}/"])
def test_from_a_server(mirror_url: str, form: str) -> None:
    fetch_mnist("data", form.format(mirror_url))
    assert contents("data") == tiny_files()


def test_from_archives_in_their_place(mirror: Path) -> None:
    raw_dir("data").mkdir(parents=True)
    for archive in mirror.iterdir():
        archive.rename(raw_dir("data") / archive.name)
    fetch_mnist("data", None)
    assert tiny_files().items() <= contents("data").items()


def test_what_is_there_is_not_fetched_again(data_dir: str) -> None:
    raw_dir(data_dir).chmod(0o500)
    fetch_mnist(data_dir, "/there/is/no/mirror")


@pytest.mark.parametrize("damage", [lambda good: good[:-100], lambda good: b"x" + good[1:]])
def test_a_damaged_file_is_fetched_again(data_dir: str, mirror: Path, damage: Damage) -> None:
    path = raw_dir(data_dir) / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    fetch_mnist(data_dir, str(mirror))
    assert contents(data_dir) == tiny_files()


@pytest.mark.parametrize(
    "damage",
    [lambda good: good[:-100], lambda good: good[:50] + b"?" + good[51:], lambda good: b""],
    ids=["truncated", "corrupted", "empty"],
)
@pytest.mark.parametrize("by_http", [True, False])
def test_a_damaged_archive_leaves_nothing_behind(
    mirror: Path, mirror_url: str, by_http: bool, damage: Damage
) -> None:
    archive = mirror / "t10k-images-idx3-ubyte.gz"
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(InputError, match=r"tried to get t10k-images-idx3-ubyte\.gz from "):
        fetch_mnist("data", mirror_url if by_http else str(mirror))
    good = tiny_files()
    del good["t10k-images-idx3-ubyte"], good["t10k-labels-idx1-ubyte"]
    assert contents("data") == good  # what came before the damaged one, sound


def test_the_error_says_what_is_missing_and_what_to_do() -> None:
    with pytest.raises(InputError) as caught:
        fetch_mnist("data", "http://127.0.0.1:1")  # nothing listens there
    message = str(caught.value)
    for part in (*FILES, "data/MNIST/raw", "http://127.0.0.1:1/", "refused", "--data.mirror"):
        assert part in message
    assert "--data.dataset digits" in message
    assert "\n" not in message
    assert not Path("data").exists()


def test_the_argument_wins_over_the_environment(
    mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FNN_LIGHTNING_MIRROR", "/there/is/no/mirror")
    MNISTDataModule(mirror=str(mirror), val_size=0).prepare_data()
    assert contents("data") == tiny_files()


def test_the_environment_names_a_mirror(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FNN_LIGHTNING_MIRROR", str(mirror))
    MNISTDataModule(val_size=0).prepare_data()
    assert contents("data") == tiny_files()


@pytest.mark.parametrize("place", ["data", "data/MNIST", "data/MNIST/raw"])
def test_a_file_in_the_way(mirror: Path, place: str) -> None:
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).write_text("in the way")
    with pytest.raises(InputError, match=r"`data_dir` to be a folder that can be written"):
        fetch_mnist("data", str(mirror))
    assert Path(place).read_text() == "in the way"


def test_a_folder_in_place_of_a_file(mirror: Path) -> None:
    (raw_dir("data") / "train-labels-idx1-ubyte").mkdir(parents=True)
    with pytest.raises(InputError, match="train-labels-idx1-ubyte"):
        fetch_mnist("data", str(mirror))
