"""Tiny MNIST-format files made from a seed, and a command line that runs in a folder of its own."""

import gzip
import hashlib
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver
from torchvision.datasets import MNIST

from fnn_lightning.download import fetch_mnist
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.mnist import MNISTDataModule

TRAIN_SIZE, TEST_SIZE = 300, 100
REAL_MIRROR = os.environ.get("FNN_LIGHTNING_MIRROR")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Write under tmp_path, and never reach for the network or the real data by accident."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FNN_LIGHTNING_MIRROR", raising=False)
    monkeypatch.setattr(MNIST, "mirrors", [])


def idx_bytes(array: np.ndarray) -> bytes:
    """Encode an array of unsigned bytes as an IDX file."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def tiny_files() -> dict[str, bytes]:
    """Make MNIST's four files, small: noise, with a bright row that gives the digit away."""
    rng = np.random.default_rng(0)
    files = {}
    for part, size in (("train", TRAIN_SIZE), ("t10k", TEST_SIZE)):
        labels = rng.integers(0, 10, size, dtype=np.uint8)
        images = rng.integers(0, 100, (size, 28, 28), dtype=np.uint8)
        images[np.arange(size), 4 + 2 * labels] = 255
        files[f"{part}-images-idx3-ubyte"] = idx_bytes(images)
        files[f"{part}-labels-idx1-ubyte"] = idx_bytes(labels)
    return files


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    """Return a `data_dir` that holds tiny files."""
    folder = tmp_path / "tiny"
    (folder / "MNIST" / "raw").mkdir(parents=True)
    for name, content in tiny_files().items():
        (folder / "MNIST" / "raw" / name).write_bytes(content)
    return str(folder)


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
    fetch_mnist(folder, REAL_MIRROR)
    return folder
