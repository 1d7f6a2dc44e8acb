"""Hostile files: each is refused in one line, and no code in it runs."""

import os
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fnn_lightning.commands.main import main
from fnn_lightning.data.idx_file import read_images, read_label_rows, read_labels
from fnn_lightning.errors import InputError
from fnn_lightning.runs.checkpoint_io import read_checkpoint
from tests.support import LAST, NEEDS_POSIX, RUN, fit, tiny_files, write_tiny_files

Capture = pytest.CaptureFixture[str]
WEIGHT = "network.layers.0.weight"


class RunsACommand:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("it-ran",)


def dig(checkpoint: Any, *path: Any) -> Any:
    for key in path[:-1]:
        checkpoint = checkpoint[key]
    return checkpoint


def put(*path: Any) -> Callable[[Any], None]:
    """Return a function that sets a nested entry: its path of keys, then the new value."""

    def change(checkpoint: Any) -> None:
        dig(checkpoint, *path[:-1])[path[-2]] = path[-1]

    return change


# the parser reads this as YAML that names a class
HIDDEN = r'{"class_path": "evilmod\x2eEvil"}'

CHANGES: dict[str, Callable[[Any], None]] = {
    "command": put("extra", RunsACommand()),
    "_instantiator": put("hyper_parameters", "_instantiator", "os.mkdir"),
    "_class_path": put("hyper_parameters", "_class_path", "subprocess.Popen"),
    "optimiser": put(
        "hyper_parameters",
        "optimizer",
        {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", "it-ran"]}},
    ),
    "beside the arguments": put(
        "hyper_parameters", "optimizer", "dict_kwargs", {"x": {"class_path": "evilmod.Evil"}}
    ),
    "hidden dot": put("hyper_parameters", "optimizer", "init_args", "lr", HIDDEN),
    "function": put(
        "hyper_parameters",
        "lr_scheduler",
        {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": HIDDEN}},
    ),
    "file": put("hyper_parameters", "optimizer", "init_args", "weight_decay", "evilcfg"),
    "bytes": put("extra", bytearray(10)),
    "strings for widths": put("hyper_parameters", "hidden_dims", ["8"]),
    "same numbers nine times": put("extra", [torch.ones(10**6)] * 9),
    "negative steps": put("global_step", -5),
    "other argument": put("hyper_parameters", "widths", [3]),
    "NaN": lambda checkpoint: checkpoint["state_dict"][WEIGHT].fill_(torch.nan),
    "whole numbers": put("state_dict", WEIGHT, torch.ones(8, 784, dtype=torch.int64)),
    "complex": put("state_dict", WEIGHT, torch.ones(8, 784, dtype=torch.complex64)),
    "other shape": put("state_dict", WEIGHT, torch.ones(8, 700)),
    "no tensor": put("state_dict", WEIGHT, "weights"),
    "sparse": put("state_dict", WEIGHT, torch.ones(8, 784).to_sparse()),
    "one number for all": put("state_dict", WEIGHT, torch.ones(1).expand(10**6, 10**6)),
    "no weights": put("state_dict", {}),
    "wide": put("hyper_parameters", "hidden_dims", [10**6, 10**6]),
    "endless": put("hyper_parameters", "hidden_dims", [10**18]),
    "negative": put("hyper_parameters", "hidden_dims", [-8]),
    "text for widths": put("hyper_parameters", "hidden_dims", "eight"),
    "steps": put("global_step", "many"),
    "temperature": put("temperature", float("nan")),
    "version": put("pytorch-lightning_version", None),
    "seed": put("datamodule_hyper_parameters", "seed", -5),
    "batch size": put("datamodule_hyper_parameters", "batch_size", 0),
    "data": put("datamodule_hyper_parameters", "dataset", "imagenet"),
}
TRAINING: dict[str, Callable[[Any], None]] = {
    "no optimiser": lambda checkpoint: checkpoint.pop("optimizer_states"),
    "optimiser state": put("optimizer_states", [{"state": {0: "x"}, "param_groups": []}]),
    "optimiser list": put("optimizer_states", 5),
    "schedule": put("lr_schedulers", None),
    "loops": put("loops", "fit_loop", {}),
    "epoch": put("loops", "fit_loop", "epoch_progress", "current", "processed", "x"),
    "negative": put(
        "loops",
        "fit_loop",
        "epoch_progress",
        "current",
        {"ready": -5, "started": -5, "processed": -5, "completed": -7},
    ),
    "logged": put("callbacks", "TrainLog", "logged_step", "x"),
    "sum": put(
        *("callbacks", "TrainLog", "ranks"),
        0,
        "split",
        "train/loss",
        {"mean_value": torch.ones(3, 3), "weight": 1},
    ),
    "sums since the validation": put(
        *("callbacks", "TrainLog", "ranks"), 0, "offset", torch.ones(3, 3)
    ),
    "position": put("loops", "fit_loop", "state_dict", "combined_loader", [{"position": 10**9}]),
    "callbacks": put("callbacks", {"RunCheckpoint": {"monitor": None, "best_score": "x"}}),
    "log": put("callbacks", "TrainLog", 7),
    "resume": put("callbacks", "Resume", 7),
    "ranks": put("callbacks", "TrainLog", "ranks", []),
    "random state": put("callbacks", "Resume", "random_states", 0, "cpu", torch.zeros(3)),
    "random states": put("callbacks", "Resume", "random_states", []),
    "sums": put("callbacks", "TrainLog", "ranks", 0, "split", {}),
    "plateau": put("callbacks", "Resume", "plateau", "x"),
    "all callbacks": put("callbacks", [1]),
    "augmentation": put("datamodule_hyper_parameters", "augmentation", 5),
    "augmentation list": put("datamodule_hyper_parameters", "augmentation", [1]),
    "augmentation code": put(
        *("datamodule_hyper_parameters", "augmentation", "rotation"), {"class_path": "os.system"}
    ),
    "augmentation text": put("datamodule_hyper_parameters", "augmentation", "rotation", "abc"),
    "augmentation name": put("datamodule_hyper_parameters", "augmentation", "twist", 1.0),
}


@pytest.fixture(autouse=True)
def _evil_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Put a module on the path that leaves a mark when it is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    Path("evilmod.py").write_text("import os; os.mkdir('it-ran')\nclass Evil: pass\n")
    Path("evilcfg").write_text("class_path: evilmod.Evil\n")
    yield
    sys.modules.pop("evilmod", None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train once, in a folder of which each test gets a copy."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_tiny_files(Path("tiny"))
        fit("tiny", "--checkpoint.every_n_steps", "1", "--lr_scheduler", "ExponentialLR",
            "--lr_scheduler.gamma", "0.9")  # fmt: skip
    return folder


@pytest.fixture
def run(trained: Path) -> None:
    """Put the run that was trained, and its data, into the working folder."""
    shutil.copytree(trained, Path(), dirs_exist_ok=True)


@pytest.fixture
def checkpoint(run: None) -> Any:
    return torch.load(LAST, weights_only=True)


def refused(command: str, path: str, capsys: Capture) -> str:
    """Run a command that must end in one line and change no file; return that line."""
    capsys.readouterr()
    before = {file: file.read_bytes() for file in Path().rglob("*.*") if file.is_file()}
    with pytest.raises(SystemExit) as stop:
        main([command, "--ckpt_path", path])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 600
    assert out == "" or command == "fit"
    after = {file: file.read_bytes() for file in Path().rglob("*.*") if file.is_file()}
    assert all(after.get(file) == content for file, content in before.items())
    assert not Path("it-ran").exists()
    return err


@pytest.mark.parametrize("kind", CHANGES)
def test_a_tampered_checkpoint_is_refused(checkpoint: Any, kind: str, capsys: Capture) -> None:
    CHANGES[kind](checkpoint)
    torch.save(checkpoint, "evil.ckpt")
    for command in ("test", "fit"):
        refused(command, "evil.ckpt", capsys)


@pytest.mark.parametrize("kind", TRAINING)
def test_a_tampered_training_state_is_refused(checkpoint: Any, kind: str, capsys: Capture) -> None:
    checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] = 1
    TRAINING[kind](checkpoint)
    torch.save(checkpoint, "evil.ckpt")
    refused("fit", "evil.ckpt", capsys)


def test_a_truncated_checkpoint_is_refused(checkpoint: Any, capsys: Capture) -> None:
    content = Path(LAST).read_bytes()
    for tenth in range(10):
        Path("evil.ckpt").write_bytes(content[: len(content) * tenth // 10])
        refused("test", "evil.ckpt", capsys)


@pytest.mark.parametrize("command", ["test", "fit"])
def test_a_zip_bomb_is_refused_without_unpacking_it(
    checkpoint: Any, capsys: Capture, command: str
) -> None:
    with (
        zipfile.ZipFile(LAST) as good,
        zipfile.ZipFile("evil.ckpt", "w", zipfile.ZIP_DEFLATED) as evil,
    ):
        for entry in good.infolist():
            content = good.read(entry)
            evil.writestr(entry.filename, content + bytes(10**8 * entry.filename.endswith("/0")))
    assert Path("evil.ckpt").stat().st_size < 10**6
    resource = pytest.importorskip("resource", reason="Windows does not tell the peak memory")
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "compressed" in refused(command, "evil.ckpt", capsys)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - limit < 50_000 * (
        1024 if sys.platform == "darwin" else 1
    )  # kB, on macOS bytes


@pytest.mark.parametrize("name", ["callbacks", "strategy", "logger", "plugins", "profiler"])
@pytest.mark.parametrize(
    "value",
    ["{class_path: evilmod.Evil}", "evilmod.Evil", f"'{HIDDEN}'", f"'[{HIDDEN}]'", "[evilcfg]",
     "evilcfg", "ModelCheckpoint"],
)  # fmt: skip
def test_code_named_in_a_run_folders_config_is_not_run(
    run: None, capsys: Capture, name: str, value: str
) -> None:
    config = RUN / "config.yaml"
    lines = config.read_text().splitlines()
    config.write_text(
        "\n".join(f"  {name}: {value}" if line.startswith(f"  {name}:") else line for line in lines)
    )
    error = refused("fit", LAST, capsys)
    assert f"may name code, as trainer.{name}, which is not run for a checkpoint" in error


@pytest.mark.parametrize(
    "text",
    ["trainer: {max_epochs: 2001-99-99}", "trainer: {max_epochs: !!int '0b'}", "[" * 3000,
     "trainer:\n  devices: &a [*a]", "trainer: {max_epochs: " + "9" * 5000 + "}",
     "a: &a [1, 1]\n" + "".join(f"b{n}: &b{n} [*{'a' if n == 0 else f'b{n - 1}'}, "
     f"*{'a' if n == 0 else f'b{n - 1}'}]\n" for n in range(40)) + "trainer: *b39"],
    ids=["date", "number", "deep", "circular", "digits", "laughs"],
)  # fmt: skip
def test_a_malformed_config_in_a_run_folder_is_refused(
    run: None, capsys: Capture, text: str
) -> None:
    (RUN / "config.yaml").write_text(text)
    refused("fit", LAST, capsys)


@NEEDS_POSIX
def test_writing_does_not_follow_a_planted_link(run: None) -> None:
    Path("precious").write_text("mine")
    (RUN / "checkpoints" / ".last.ckpt.part").symlink_to(Path("precious").absolute())
    main(["fit", "--ckpt_path", LAST, "--trainer.max_epochs", "3"])
    assert Path("precious").read_text() == "mine"
    assert not Path(LAST).is_symlink()


@pytest.fixture(scope="module")
def good_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "good.ckpt"
    weights = {WEIGHT: torch.rand(8, 784)}
    good = {"state_dict": weights, "hyper_parameters": {"hidden_dims": [8]}, "global_step": 5}
    torch.save({**good, "pytorch-lightning_version": "2.6.6"}, path)
    return path.read_bytes()


FUZZ = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,  # the same files in every run
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
EDITS = st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=9)), max_size=6)


def edited(content: bytes, edits: list[tuple[int, bytes]], length: int) -> bytes:
    changed = bytearray(content)
    for start, new in edits:
        start %= len(changed)
        changed[start : start + len(new)] = new
    return bytes(changed[: length % (len(changed) + 1)]) if length else bytes(changed)


@FUZZ
@given(edits=EDITS, length=st.integers(0, 2**20))
def test_fuzzed_checkpoints_are_read_or_refused_in_one_line(
    tmp_path: Path, good_checkpoint: bytes, edits: list[tuple[int, bytes]], length: int
) -> None:
    path = tmp_path / "fuzzed.ckpt"
    path.write_bytes(edited(good_checkpoint, edits, length))
    try:
        checkpoint = read_checkpoint(str(path))
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())


@FUZZ
@given(
    header=st.tuples(st.integers(0, 2**32 - 1), *[st.sampled_from([0, 1, 28, 300, 2**32 - 1])] * 3),
    edits=EDITS,
    length=st.integers(0, 2**20),
)
def test_fuzzed_idx_files_are_read_or_refused_in_one_line(
    tmp_path: Path, header: tuple[int, ...], edits: list[tuple[int, bytes]], length: int
) -> None:
    path = tmp_path / "fuzzed"
    for content in (
        *(edited(file, edits, length) for file in tiny_files().values()),
        struct.pack(">4I", *header) + bytes(length % 1000),
        struct.pack(">4I", 0x803, *header[1:]) + bytes(28 * 28),
        struct.pack(">3I", 0xC02, *header[1:3]) + bytes(4 * 28),
    ):
        path.write_bytes(content)
        for read in (read_images, read_labels, read_label_rows):
            try:
                tensor = read(path)
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017
            else:
                assert tensor.numel() <= len(content)
