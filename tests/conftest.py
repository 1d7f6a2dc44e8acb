"""Tiny MNIST-format files made from a seed, and a command line that runs in a folder of its own."""

import gzip
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# before torch is imported: each worker of pytest gets one thread
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from matplotlib.figure import Figure
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver
from torchvision.datasets import EMNIST, KMNIST, MNIST, QMNIST, FashionMNIST

from fnn_lightning.data.downloads import fetch
from fnn_lightning.data.published import PUBLISHED
from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.evaluation.tensorboard import TensorBoardPlots
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.runs import subprocesses
from tests.forks import Fork, StartFork
from tests.support import STAND_IN, Start, alive, tiny_files, write_tiny_files

REAL_MIRROR = os.environ.get("FNN_LIGHTNING_MIRROR")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that no worker is left alone with one at the end.

    The first worker begins with them; the others steal from the end of its list.
    """
    if hasattr(config, "workerinput"):
        long = {"soak", "slow"}
        items.sort(key=lambda item: long.isdisjoint(mark.name for mark in item.iter_markers()))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: each worker of pytest has to collect the same names.

    A gzip archive made while tests are collected holds the second in which it was made.
    """
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Write under tmp_path, and never reach for the network or the real data by accident."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FNN_LIGHTNING_MIRROR", raising=False)
    for each in (MNIST, FashionMNIST, KMNIST):
        monkeypatch.setattr(each, "mirrors", [])
    nowhere = "http://127.0.0.1:1/"
    resources = {
        part: [(nowhere + url.rpartition("/")[2], md5) for url, md5 in each]
        for part, each in QMNIST.resources.items()
    }
    monkeypatch.setattr(QMNIST, "resources", resources)
    monkeypatch.setattr(EMNIST, "url", f"{nowhere}gzip.zip")


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk, which takes a tenth of a tiny run: no test cuts the power.

    Module fixtures, and processes that are not forks, still do.
    """
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every figure, but put no ink on it, which takes half of the time of a tiny run."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(Figure, "tight_layout", lambda self: None)
        monkeypatch.setattr(Figure, "draw", lambda self, renderer: None)


@pytest.fixture
def drawn() -> None:
    """Draw the figures, for a test that looks at them."""


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out TensorBoard's pictures and histograms, but for tests marked `pictures`.

    They take a third of a tiny run, without ink too. Module fixtures still draw, and so do
    processes that are not forks.
    """
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(TensorBoardPlots, "_draw", lambda *_: None)


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    """Return a `data_dir` that holds tiny files."""
    return write_tiny_files(tmp_path / "tiny")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that holds the archives of tiny files, whose digests torchvision expects."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    digests = []
    for name, content in tiny_files().items():
        archive = gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(archive)
        digests.append((f"{name}.gz", hashlib.md5(archive).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", digests)
    return folder


@pytest.fixture
def make_data(data_dir: str) -> Callable[..., MNISTDataModule]:
    """Return a function that makes a data module of the tiny files."""
    return lambda **kwargs: MNISTDataModule(data_dir=data_dir, **kwargs)


@pytest.fixture
def make_model() -> Callable[..., FNNLitModule]:
    """Return a function that makes a small module with the same weights every time."""
    import torch

    def make(**kwargs: object) -> FNNLitModule:
        torch.manual_seed(0)
        return FNNLitModule(**{"hidden_dims": [8], **kwargs})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """Start a headless Chromium with an empty profile, and end it."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Chromium and chromedriver: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-dev-shm-usage", "--window-size=1400,1000"),
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    started = Chrome(options, Service(driver))
    try:
        yield started
    finally:
        started.quit()


@pytest.fixture(scope="session")
def real_data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a `data_dir` that holds the real MNIST."""
    if not REAL_MIRROR:
        pytest.skip("needs the real MNIST: set FNN_LIGHTNING_MIRROR to a folder or URL with it")
    folder = str(tmp_path_factory.mktemp("data"))
    fetch(PUBLISHED["mnist"], folder, REAL_MIRROR)
    return folder


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts Python, or bash; what still runs at the end is killed."""
    if os.name == "nt":
        pytest.skip("needs process groups of POSIX")
    processes: list[subprocess.Popen[str]] = []

    def run(*words: str, **env: str) -> subprocess.Popen[str]:
        command = list(words) if words[0] == "bash" else [sys.executable, *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **env}
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return processes[-1]

    yield run
    for process in processes:
        if alive(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def fork(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartFork]:
    """Return a function that runs the command line in a fork; what still runs is killed."""
    if os.name == "nt":
        pytest.skip("needs forks of POSIX")
    forks: list[Fork] = []

    def run(
        *words: str, files: tuple[Any, Any] = (None, None), before: str = "", **env: str
    ) -> Fork:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
        folder = tmp_path / f"fork{len(forks)}"
        pictures = request.node.get_closest_marker("pictures") is not None
        forks.append(Fork(words, environment, folder, *files, before=before, pictures=pictures))
        return forks[-1]

    yield run
    for each in forks:
        each.kill()
        each.communicate()


@pytest.fixture
def forked_runs(fork: StartFork, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `seeds` and `sweep` start their runs as forks."""

    def start(self: subprocesses.Subprocesses, argv: list[str], **kwargs: Any) -> Any:
        sys.stdout.flush()
        out = kwargs.get("stdout", sys.stdout)
        err = kwargs.get("stderr", sys.stderr)
        child: Any = fork(*argv, files=(out, out if err == subprocess.STDOUT else err))
        self.running.append(child)
        return child

    monkeypatch.setattr(subprocesses.Subprocesses, "start", start)


@pytest.fixture
def start_tensorboard() -> Iterator[Callable[[str], str]]:
    """Return a function that starts TensorBoard on a free port of the loopback interface.

    It takes the option `--load_fast` and returns the URL. What it started is ended.
    """
    processes = []

    def start(load_fast: str) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", "lightning_logs"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--load_fast", load_fast]
        with Path("tensorboard.log").open("w") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        return f"http://127.0.0.1:{port}/data"

    yield start
    for process in processes:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def tensorboard(start_tensorboard: Callable[[str], str]) -> str:
    """Start TensorBoard, which reads the runs itself; return its URL."""
    return start_tensorboard("false")


@pytest.fixture
def postgres() -> Iterator[str]:
    """Start PostgreSQL on a free port of the loopback interface, and end it; return its URL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = str(found[-1]) if found else shutil.which("initdb")
    if initdb is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    as_user: dict[str, Any] = {}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # not in tmp_path: others than root cannot enter it
    with tempfile.TemporaryDirectory() as folder:
        if as_user:
            shutil.chown(folder, "nobody", "nogroup")
        init = [initdb, "-D", f"{folder}/db", "-U", "sweep", "-A", "trust", "--no-sync"]
        subprocess.run(init, cwd=folder, stdout=subprocess.DEVNULL, check=True, **as_user)
        server = [str(Path(initdb).with_name("postgres")), "-D", f"{folder}/db", "-F"]
        server += ["-h", "127.0.0.1", "-p", str(port), "-k", ""]
        with Path("postgres.log").open("w") as log:
            process = subprocess.Popen(server, cwd=folder, stderr=log, **as_user)
        try:
            yield f"postgresql+psycopg://sweep@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # ends the connections that are left, too
            process.wait(timeout=30)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocesses, "PYTHON", [sys.executable, STAND_IN])
