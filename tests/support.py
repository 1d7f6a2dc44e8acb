"""What several test files use: tiny MNIST files, Trainers, comparisons, processes."""

import json
import os
import struct
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fnn_lightning.commands.lightning_cli import FNNCLI
from fnn_lightning.commands.main import main
from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.training.multi_step import MultiStep
from tests.forks import Fork

NEEDS_POSIX = pytest.mark.skipif(
    os.name == "nt", reason="needs signals, file modes or links of POSIX"
)
ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
TRAIN_SIZE, TEST_SIZE = 300, 100


def idx_bytes(array: np.ndarray) -> bytes:
    """Encode an array of unsigned bytes as an IDX file."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def tiny_files(train_size: int = TRAIN_SIZE) -> dict[str, bytes]:
    """Make MNIST's four files, small: noise, with a bright row that gives the digit away."""
    rng = np.random.default_rng(0)
    files = {}
    for part, size in (("train", train_size), ("t10k", TEST_SIZE)):
        labels = rng.integers(0, 10, size, dtype=np.uint8)
        images = rng.integers(0, 100, (size, 28, 28), dtype=np.uint8)
        images[np.arange(size), 4 + 2 * labels] = 255
        files[f"{part}-images-idx3-ubyte"] = idx_bytes(images)
        files[f"{part}-labels-idx1-ubyte"] = idx_bytes(labels)
    return files


def write_tiny_files(data_dir: Path) -> str:
    (data_dir / "MNIST" / "raw").mkdir(parents=True)
    for name, content in tiny_files().items():
        (data_dir / "MNIST" / "raw" / name).write_bytes(content)
    return str(data_dir)


def blind_checkpoint(blind: tuple[int, ...] = (), step: int = 6, **data: Any) -> dict[str, Any]:
    """Return a checkpoint of a network that reads the bright row of the tiny images.

    It classifies all test images correctly but those of the digits that it is blind to.
    """
    module = FNNLitModule(hidden_dims=[])
    weight, bias = module.parameters()
    rows = weight.detach().zero_().view(10, 28, 28)
    for digit in range(10):
        rows[digit, 4 + 2 * digit] = 1
    bias.detach().zero_()[list(blind)] = -100
    stored = MNISTDataModule(**data)
    return {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "datamodule_hyper_parameters": dict(stored.hparams),
        "global_step": step,
        "pytorch-lightning_version": "2.6.6",
    }


def trainer(tmp_path: Path, **kwargs: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    limits = {
        "num_sanity_val_steps": 0,
        "max_epochs": 2,
        "log_every_n_steps": 3,
        "default_root_dir": tmp_path,
    }
    return Trainer(**{**quiet, **limits, **kwargs})


def why_single_steps(trainer: Trainer) -> str | None:
    """Return why the Trainer took every step of the last run itself; None if it did not."""
    found = [each for each in trainer.callbacks if isinstance(each, MultiStep)]  # type: ignore[attr-defined]
    return found[0].single_steps_reason


def scalars(folder: str | None) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def assert_same(ours: Any, theirs: Any, where: str = "checkpoint") -> None:
    """Compare two checkpoints, to the bit."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert [Path(str(key)).name for key in ours] == [Path(str(key)).name for key in theirs]
        for key, pair in zip(ours, zip(ours.values(), theirs.values(), strict=True), strict=True):
            assert_same(*pair, f"{where}/{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, str):  # the paths lie in different folders
        assert Path(ours).name == Path(theirs).name, where
    else:
        assert ours == theirs, where


SECONDS = 120  # in which anything here has to end


Start = Callable[..., subprocess.Popen[str]]
Program = subprocess.Popen[str] | Fork


def alive(process: Program) -> bool:
    """Tell whether anything is left of a process and those it has started."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def ended(process: Program, seconds: float = SECONDS) -> tuple[int, str, str]:
    """Wait for the end of a process, and of all it has started; return status, stdout, stderr."""
    begin = time.monotonic()
    out, err = process.communicate(timeout=seconds)
    while alive(process):
        assert time.monotonic() < begin + seconds, "a process was left behind"
        time.sleep(0.05)
    assert process.returncode is not None
    return process.returncode, out, err


STAND_IN = str(Path(__file__).with_name("stand_in.py"))


# a command line whose runs are those of the stand-in
PARENT = (
    "import sys; from fnn_lightning.runs import subprocesses; "
    "from fnn_lightning.commands import main; "
    "subprocesses.PYTHON = [sys.executable, sys.argv[1]]; main.main(sys.argv[2:])"
)


def until(path: Path) -> None:
    """Wait for a file, for a minute at most."""
    begin = time.monotonic()
    while not path.exists():
        assert time.monotonic() < begin + 60, f"there is no {path}"
        time.sleep(0.02)


RUN = Path("lightning_logs/version_0")


LAST = str(RUN / "checkpoints" / "last.ckpt")


def fit(data_dir: str, *words: str) -> FNNCLI:
    small = ["--model.hidden_dims", "[8]", "--trainer.max_epochs", "2"]
    return FNNCLI(["fit", "--data.data_dir", data_dir, *small, *words])


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    before = set(Path().glob("**/*"))
    with pytest.raises(SystemExit) as stop:
        main(words)
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert set(Path().glob("**/*")) == before
    return output.err


def fetch(url: str, question: dict[str, Any] | None = None) -> bytes:
    """Ask a server that may still be starting, for a minute at the most."""
    body = json.dumps(question).encode() if question else None
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    for _ in range(120):
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                content: bytes = response.read()
            if content not in (b"", b"{}", b"[]"):
                return content
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"no answer from {url}: {Path('tensorboard.log').read_text()}")


def ask(url: str, question: dict[str, Any] | None = None) -> Any:
    return json.loads(fetch(url, question))
