import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.errors import InputError
from tests.support import assert_same, fit, refused, trainer


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def threads_of(path: Path | str) -> int:
    states = torch.load(path, weights_only=True)["callbacks"]
    return int(states["Threads"]["count"])


def seen_by(module: FNNLitModule) -> list[int]:
    seen: list[int] = []
    forward = module.network.forward

    def watch(images: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return forward(images)

    module.network.forward = watch  # type: ignore[method-assign, assignment]
    return seen


@pytest.mark.parametrize(
    ("hidden_dims", "batch_size", "expected"),
    [
        ([100], 100, 1),  # 48 million operations a step
        ([500], 100, 2),  # 238 million
        ([500], 150, 3),  # 357 million
        ([4000], 150, 4),  # more than there are threads for
    ],
)
def test_the_work_of_a_step_chooses_the_number(
    hidden_dims: list[int], batch_size: int, expected: int, data_dir: str, tmp_path: Path
) -> None:
    module = FNNLitModule(hidden_dims=hidden_dims)
    seen = seen_by(module)
    data = MNISTDataModule(data_dir=data_dir, batch_size=batch_size)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=data)
    assert set(seen) == {expected}
    assert torch.get_num_threads() == 4, "the process keeps its own"
    seen.clear()
    run.validate(module, datamodule=data, verbose=False)
    run.test(module, datamodule=data, verbose=False)
    assert set(seen) == {expected}
    assert torch.get_num_threads() == 4


def test_the_cores_limit_the_number(
    data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    module = FNNLitModule(hidden_dims=[4000])
    seen = seen_by(module)
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=MNISTDataModule(data_dir=data_dir))
    assert set(seen) == {1}


def test_the_option_is_kept_by_the_checkpoint_and_by_resuming(
    data_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    options = ["--data.data_dir", data_dir, "--run_folder", run]
    fit(data_dir, "--model.num_threads", "3", "--run_folder", run, "--trainer.max_epochs", "1")
    assert "cpu, 3 threads" in capsys.readouterr().out
    last = f"{run}/checkpoints/last.ckpt"
    assert threads_of(last) == 3
    # neither the option nor this machine's cores
    fit(data_dir, "--model.num_threads=null", *options[2:], "--trainer.max_epochs", "2")
    assert "cpu, 3 threads" in capsys.readouterr().out
    assert threads_of(last) == 3
    with pytest.warns(UserWarning, match="began with 3 threads and is resumed with 2"):
        fit(data_dir, "--model.num_threads=2", *options[2:], "--trainer.max_epochs", "3")
    assert threads_of(last) == 2


def test_an_error_gives_the_threads_back(data_dir: str, tmp_path: Path) -> None:
    module = FNNLitModule(num_threads=2)
    module.network.forward = lambda images: images / 0  # type: ignore[method-assign, assignment]
    with pytest.raises(Exception):  # noqa: B017, PT011
        trainer(tmp_path).fit(module, datamodule=MNISTDataModule(data_dir=data_dir))
    assert torch.get_num_threads() == 4


def test_no_number_is_refused(data_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="`num_threads` to be 1 or more, or None, but got"):
            FNNLitModule(num_threads=wrong)  # type: ignore[arg-type]
    words = ["fit", "--data.data_dir", data_dir, "--model.num_threads", "0"]
    assert "`num_threads` to be 1 or more" in refused(words, capsys)


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity")
    or len(os.sched_getaffinity(0)) < 2
    or not shutil.which("taskset"),
    reason="needs two cores, and taskset to give a process one of them",
)
@pytest.mark.parametrize("first", [1, 2])
def test_a_run_resumed_on_other_cores_ends_with_the_same_bits(
    first: int, data_dir: str, tmp_path: Path
) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]

    def run_on(count: int, name: str, epochs: int, threads: int = first) -> Any:
        env = {each: value for each, value in os.environ.items() if each != "OMP_NUM_THREADS"}
        words = ["fit", "--data.data_dir", data_dir, "--run_folder", str(tmp_path / name)]
        words += ["--model.hidden_dims=[400,300]", "--data.batch_size=137", "--model.dropout=0.1"]
        words += ["--trainer.max_epochs", str(epochs), "--tensorboard.enabled=false"]
        pinned = ["taskset", "-c", ",".join(map(str, cores[:count]))]
        subprocess.run(
            [*pinned, sys.executable, "-m", "fnn_lightning", *words],
            env=env,
            check=True,
            timeout=120,
            stdout=subprocess.DEVNULL,
        )
        path = tmp_path / name / "checkpoints" / "last.ckpt"
        assert threads_of(path) == threads
        return torch.load(path, weights_only=True)

    whole = run_on(first, "whole", epochs=4)
    run_on(first, "resumed", epochs=2)
    assert_same(run_on(3 - first, "resumed", epochs=4)["state_dict"], whole["state_dict"])
    assert_same(run_on(first, "again", epochs=4)["optimizer_states"], whole["optimizer_states"])
    other = run_on(3 - first, "other", epochs=4, threads=3 - first)
    weights = "network.layers.0.weight"
    assert not torch.equal(other["state_dict"][weights], whole["state_dict"][weights]), (
        "the number of threads changes no bit here: this shows nothing"
    )
