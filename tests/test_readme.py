"""README.md as a user follows it: its commands in order, and its Python, on tiny images."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.forks import StartFork
from tests.support import ROOT, ended, tiny_files

README = (ROOT / "README.md").read_text(encoding="utf-8")
LEFT_OUT = {
    "pip": "what it installs is there",
    "tensorboard": "serves until it is stopped; tests/evaluation/test_tensorboard.py starts it",
    "fnn demo": "serves until it is stopped; tests/commands/test_demo.py starts it",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.+?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if not line.startswith(tuple(LEFT_OUT))]


@pytest.fixture
def in_a_new_folder() -> None:
    """Put tiny files where MNIST would be downloaded to, and a folder of pictures."""
    noise = np.random.default_rng(0)
    for name in ("cat", "dog"):
        folder = Path("my_pictures", name)
        folder.mkdir(parents=True)
        for i in range(20):
            pixels = noise.integers(0, 256, (9, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    raw = Path("data/MNIST/raw")
    raw.mkdir(parents=True)
    for name, content in tiny_files().items():
        (raw / name).write_bytes(content)


@pytest.mark.slow
@pytest.mark.pictures
@pytest.mark.usefixtures("in_a_new_folder")
def test_the_commands_work_in_order_as_they_stand(fork: StartFork) -> None:
    printed = {}
    for command in commands():
        program, *words = shlex.split(command, comments=True)
        assert program == "fnn", f"neither run nor left out with a reason: {command}"
        status, printed[command], err = ended(fork(*words))
        assert status == 0, f"{command}\n{err}"
        assert "error" not in err
        assert "Warning" not in err, f"{command}\n{err}"
    reports = [out for command, out in printed.items() if command.startswith("fnn test")]
    assert len(reports) == 2
    assert re.search(r"^test set of digits: Got \d+ / 360 correct \(\d", reports[0], re.MULTILINE)
    # the line that README shows, with the numbers of the tiny files
    (shown,) = re.findall(r"^test set.*: Got .* correct .*$", README, re.MULTILINE)
    pattern = re.sub(r"[\d,.]+", r"[0-9.]+", re.escape(shown).replace(r"\.", "."))
    assert re.search(f"^{pattern}$", reports[1], re.MULTILINE), reports[1]
    # the newest run when `test`, `predict` and `export` come is the one on MNIST
    fits = [shlex.split(command) for command in commands() if command.startswith("fnn fit")]
    named = [Path(words[-1]) for words in fits if "--run_folder" in words]
    numbered = [Path(f"lightning_logs/version_{n}") for n in range(len(fits) - len(named))]
    runs = [*named, *numbered]
    assert all((run / "checkpoints" / "last.ckpt").is_file() for run in runs)
    assert all((run / "report.html").is_file() for run in runs)
    tested = {run for run in runs if "test" in json.loads((run / "metrics.json").read_text())}
    assert tested == {Path("runs/quickstart"), numbered[0]}
    assert "batch_norm: true" in (numbered[0] / "config.yaml").read_text(), "not of the quickstart"
    assert len(Path("digits.csv").read_text().splitlines()) == 1 + 100
    assert Path("model.onnx").is_file()
    made = {path.name for path in Path().iterdir() if not path.name.startswith("fork")}
    assert made == {"data", "my_pictures", "runs", "lightning_logs", "digits.csv", "model.onnx"}


@pytest.mark.pictures
@pytest.mark.usefixtures("drawn", "in_a_new_folder")
def test_its_python_works_as_it_stands(fork: StartFork, capsys: pytest.CaptureFixture[str]) -> None:
    train, callback = blocks("python")
    exec(train, {"__name__": "__main__"})
    assert re.search(r"^Evaluation: \d+ / 100 correct", capsys.readouterr().out, re.MULTILINE)
    assert Path("mistakes.png").is_file()
    assert Path("lightning_logs/version_0/checkpoints").is_dir()
    Path("my_callbacks.py").write_text(callback)
    option = re.search(r"`(--trainer\.callbacks my_callbacks\.\w+)`", README)
    assert option
    status, out, err = ended(fork("fit", *option[1].split()))
    assert status == 0, err
    assert [line for line in out.splitlines() if re.fullmatch(r"\d 0\.1", line)] == [
        f"{epoch} 0.1" for epoch in range(5)
    ]
