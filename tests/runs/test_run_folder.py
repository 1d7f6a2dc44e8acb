import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fnn_lightning.runs.loggers import RunLogger
from fnn_lightning.runs.run_folder import (
    claim_version,
    final_test_accuracy,
    fit_completed,
    read_metrics,
    val_result,
)

FIT = {"best": None, "checkpoint": "checkpoints/last.ckpt", "seconds": 1.5, "val/acc": 0.9}


def test_a_new_version_is_one_above_the_highest() -> None:
    parent = Path("a/runs")
    assert claim_version(parent) == parent / "version_0"
    (parent / "version_7").mkdir()
    (parent / "version_x").mkdir()
    assert claim_version(parent) == parent / "version_8"
    assert (parent / "version_8").is_dir()


def test_runs_that_start_together_get_different_versions() -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(claim_version, [Path("runs")] * 40))
    assert {folder.name for folder in folders} == {f"version_{number}" for number in range(40)}


def test_a_logger_keeps_the_version_that_it_claimed() -> None:
    first, second = RunLogger("."), RunLogger(".")
    assert first.version == second.version == 0  # nothing is claimed before there is a log
    for logger in (first, second):
        logger.log_metrics({"loss": 1.0}, step=0)
        logger.finalize("success")
    assert (first.version, second.version) == (0, 1)
    assert Path(second.log_dir).name == "version_1"
    assert any(Path(second.log_dir).glob("events*"))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'"fit"'])
def test_damaged_metrics_read_as_empty(content: bytes) -> None:
    assert read_metrics(Path()) == {}
    Path("metrics.json").write_bytes(content)
    assert read_metrics(Path()) == {}


@pytest.mark.parametrize("fit", [None, [], "best checkpoint seconds", {}, {"best": None}])
def test_metrics_without_all_results_of_fit_are_incomplete(fit: Any) -> None:
    assert not fit_completed({})
    assert not fit_completed({"fit": fit})
    assert fit_completed({"fit": FIT})


def test_only_a_test_of_the_resulting_checkpoint_counts() -> None:
    test = {"accuracy": 0.8, "checkpoint": "checkpoints/last.ckpt"}
    assert val_result({"fit": FIT, "test": test}) == ("val/acc", 0.9)
    assert final_test_accuracy({"fit": FIT, "test": test}) == 0.8
    other = {**test, "checkpoint": "checkpoints/best.ckpt"}
    assert final_test_accuracy({"fit": FIT, "test": other}) is None
    assert final_test_accuracy({"fit": FIT}) is None


def test_seeds_and_sweep_start_without_importing_torch() -> None:
    code = "import sys, fnn_lightning.commands.seeds, fnn_lightning.commands.sweep; "
    code += "print({'torch', 'lightning', 'optuna'} & sys.modules.keys())"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "set()\n"
