"""The table of `runs`: sorted, filtered, as wide as the terminal, as CSV and JSON."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fnn_lightning.commands.main import main
from tests.support import ROOT, refused

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _runs() -> None:
    """Write runs of three settings: two tested, one not, one not finished, one damaged."""
    results: dict[str, tuple[float, float | None]] = {
        "version_9": (0.97, 0.975),
        "version_10": (0.98, 0.985),
        "deeper/in/seed_2": (0.99, None),
    }
    for seed, (name, (val, test)) in enumerate(results.items()):
        fit = {"best": None, "checkpoint": "checkpoints/last.ckpt", "seconds": 60.0 - seed}
        fit |= {"step": 70, "epochs": 2}
        made_with = {"time": f"2026-11-0{seed + 1} 10:00:00+00:00"}
        metrics: dict[str, Any] = {"fit": {**fit, "val/acc": val, "made_with": made_with}}
        if test:
            tested = {"accuracy": test, "total": 10_000, "checkpoint": fit["checkpoint"]}
            metrics["test"] = tested
        write(name, seed, json.dumps(metrics))
    write("unfinished", 3, None)
    write("broken", 4, "{")


def write(name: str, seed: int, metrics: str | None) -> None:
    folder = Path("lightning_logs", name)
    folder.mkdir(parents=True)
    (folder / "hparams.yaml").touch()
    (folder / "config.yaml").write_text(
        f"seed_everything: {seed}\n"
        f"model:\n  hidden_dims: [{100 * (seed + 1)}]\n  activation: relu\n"
        "data:\n  dataset: mnist\n  batch_size: 50\n  val_size: null\n"
    )
    if metrics:
        (folder / "metrics.json").write_text(metrics)


def first_cells(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()[1:6]]


def test_the_best_run_is_first_and_the_table_fits(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["runs"])
    lines = capsys.readouterr().out.splitlines()
    headings = "run recipe params seed val, % test, % time steps epochs when"
    assert lines[0].split() == headings.split()
    # 784 × 200 + 200 + 200 × 10 + 10; the intervals of 4,900 of 5,000, and of 9,850 of 10,000
    words = "version_10 784–200–10 relu, batch_size 50 159k 1 98.00 ±0.39 98.50 ±0.24 59 s 70 2"
    assert lines[1].split() == [*words.split(), "2026-11-02"]
    # tested, then validated, then by name
    order = ["version_10", "version_9", "deeper/in/seed_2", "broken", "unfinished"]
    assert first_cells("\n".join(lines)) == order
    assert "damaged" in lines[4]
    assert "not finished" in lines[5]
    for width in (80, 60):
        monkeypatch.setenv("COLUMNS", str(width))
        main(["runs"])
        narrow = capsys.readouterr().out.splitlines()
        assert max(map(len, narrow[:6])) <= width
        assert narrow[1].split()[0] == "version_10"
        assert "98.50" in narrow[1]
        assert narrow[-1].startswith("no room for steps, epochs, when")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--sort", "val_acc"], ["deeper/in/seed_2", "version_10", "version_9"]),
        (["--sort", "seconds"], ["deeper/in/seed_2", "version_10", "version_9"]),
        (["--sort", "when"], ["deeper/in/seed_2", "version_10", "version_9"]),
        (["--sort", "seed"], ["version_9", "version_10", "deeper/in/seed_2", "unfinished"]),
        (["--filter", "test_acc>0.98"], ["version_10"]),
        (["--filter", "test_acc <= 98%"], ["version_9"]),
        (["--filter", "val_acc>=98%", "seed!=1"], ["deeper/in/seed_2"]),
        (["--filter", "model.hidden_dims=[200]"], ["version_10"]),
        (["--filter", "hidden_dims=[ 200 ]"], ["version_10"]),
        (["--filter", "state=not finished"], ["unfinished"]),
        (["--filter", "when>2026-11-02"], ["version_10", "deeper/in/seed_2"]),
        (["--filter", "seed>1e0", "state=complete"], ["deeper/in/seed_2"]),
        (["--filter", "activation=gelu"], []),
    ],
)
def test_runs_are_sorted_and_filtered(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, options: list[str], names: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    main(["runs", *options])
    output = capsys.readouterr().out
    assert first_cells(output)[: len(names)] == names
    if "--filter" in options:
        assert output.endswith(f"{len(names)} of 5 runs in lightning_logs\n")


def test_files_have_all_columns(capsys: Capture) -> None:
    main(["runs", "lightning_logs", "--output", "runs.csv"])
    main(["runs", "--output", "runs.json", "--filter", "state=complete"])
    assert capsys.readouterr().out.splitlines() == [
        "5 of 5 runs in runs.csv",
        "3 of 5 runs in runs.json",
    ]
    with Path("runs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows][:2] == ["version_10", "version_9"]
    assert rows[0]["test_acc"] == "0.985"
    assert rows[0]["parameters"] == "159010"
    # the settings that differ, and no others
    assert rows[0]["model.hidden_dims"] == "[200]"
    assert "data.batch_size" not in rows[0]
    objects = json.loads(Path("runs.json").read_text(encoding="utf-8"))
    assert objects[0].keys() - {"settings"} == rows[0].keys() - {
        *("model.hidden_dims", "seed_everything")
    }
    assert objects[1]["val_acc"] == 0.97
    assert objects[1]["settings"]["data.batch_size"] == "50"


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_folder_whose_name_is_no_text_is_listed() -> None:
    try:
        write(os.fsdecode(b"\xff"), 5, None)
    except OSError:
        pytest.skip("the file system takes no such name")
    main(["runs", "--output", "runs.csv"])
    main(["runs", "--output", "runs.json"])
    assert "\\udcff," in Path("runs.csv").read_text(encoding="utf-8")
    names = [each["run"] for each in json.loads(Path("runs.json").read_text(encoding="utf-8"))]
    assert os.fsdecode(b"\xff") in names


def test_bad_arguments_end_in_one_line(capsys: Capture) -> None:
    Path("empty").mkdir()
    cases = {
        ("empty",): "Expected a folder with runs, but empty holds none: train one",
        ("nowhere",): "Expected a folder with runs, but nowhere is no folder",
        ("--sort", "accuracy"): "Expected `sort` to be one of 'run', 'recipe'",
        ("--filter", "seed"): "and a value, but got 'seed': give it as",
        ("--filter", "seed=1", "empty"): "but got 'empty': give it as 'test_acc>=98%' or "
        "data.batch_size=200, and a folder before --filter",
        ("--filter", "seed=1", "--filter=seed=2"): "Expected --filter once, but got it twice",
        ("--filter", "parameters>100k"): "parameters in --filter to be a number, but got 100k",
        ("--filter", "sead=1"): "but got sead: did you mean seed?",
        ("--filter", "xyz=1"): "but got xyz: the columns are run, recipe",
        ("--filter", "test_acc>98"): "from 0 to 1, or in per cent, but got 98: give it as "
        "'test_acc>98%'",
        ("--output", "runs.txt"): "Expected --output to end in .csv or .json",
    }
    for words, message in cases.items():
        assert message in refused(["runs", *words], capsys)


def test_neither_torch_nor_scipy_is_imported() -> None:
    code = (
        "import sys; from fnn_lightning.commands.main import main; main(['runs']); "
        "print({'torch', 'scipy', 'lightning'} & {*sys.modules})"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert run.stdout.splitlines()[-1] == "set()"


def test_a_long_name_loses_its_beginning(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    write("x" * 40 + "/the_end", 1, None)
    main(["runs"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "the_end" in line)
    assert line.startswith("…xxx")
    assert len(line) <= 80
