import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy.stats import binomtest

from fnn_lightning.commands.runs import read_records
from fnn_lightning.commands.runs_table import to_table
from fnn_lightning.evaluation.run_card import section_defaults
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.runs.records import find_runs, flatten, parameters, read_record, read_settings
from tests.support import CONFIGS


def write_run(folder: Path, config: Any, metrics: Any) -> Path:
    """Write the files of a run that tell of it; a text goes in as it is."""
    folder.mkdir(parents=True)
    (folder / "hparams.yaml").touch()
    for name, content in (("config.yaml", config), ("metrics.json", metrics)):
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
    return folder


MNIST = {"seed_everything": 3, "data": {"dataset": "mnist", "val_size": None}}
FIT = {"best": None, "checkpoint": "checkpoints/last.ckpt", "seconds": 31.9, "val/acc": 0.98}


def test_accuracies_are_of_the_result_and_have_wilsons_interval(tmp_path: Path) -> None:
    best = {"monitor": "val/acc", "score": 0.9}
    test = {"accuracy": 81 / 263, "correct": 81, "total": 263, "checkpoint": FIT["checkpoint"]}
    run = write_run(
        tmp_path / "a", MNIST, {"fit": {**FIT, "best": best, "val_images": 20}, "test": test}
    )
    columns = read_record(run, tmp_path).columns
    assert columns["run"] == "a"
    assert columns["seed"] == 3
    expected = binomtest(18, 20).proportion_ci(method="wilson")
    assert (columns["val_low"], columns["val_high"]) == pytest.approx(expected)
    # R. G. Newcombe, 1998, table I
    assert (columns["test_low"], columns["test_high"]) == pytest.approx((0.2553, 0.3662), abs=5e-5)

    # the number of validation images follows from the settings of older runs
    run = write_run(tmp_path / "b", MNIST, {"fit": FIT, "test": {**test, "checkpoint": "other"}})
    columns = read_record(run, tmp_path).columns
    assert columns["val_acc"] == 0.98
    expected = binomtest(4900, 5000).proportion_ci(method="wilson")
    assert (columns["val_low"], columns["val_high"]) == pytest.approx(expected)
    assert columns["test_acc"] is None
    watched = {"data": {"dataset": "mnist", "val_size": 0}}
    run = write_run(tmp_path / "c", watched, {"fit": FIT})
    assert read_record(run, tmp_path).columns["val_acc"] is None  # the test set


@pytest.mark.parametrize(
    ("config", "metrics", "output", "state"),
    [
        (MNIST, {"fit": FIT}, None, "complete"),
        (MNIST, None, None, "not finished"),
        (MNIST, None, "epoch 1\nerror: The training loss became nan\n", "failed"),
        (MNIST, None, "error: once, but resumed\nepoch 2\n", "not finished"),
        (MNIST, "{", None, "damaged"),
        ("a: [", {"fit": FIT}, None, "complete"),
        ("- 1", {"fit": {**FIT, "best": 3, "seconds": "x"}, "test": []}, None, "complete"),
        ({"optimizer": {"class_path": 3}, "data": 4}, {"fit": 1}, None, "not finished"),
        (MNIST, {"fit": {**FIT, "val/acc": "1"}, "test": {"accuracy": 7, "total": -1}}, None,
         "complete"),
        (f"seed_everything: '{'1' * 5000}'\nmodel: {{hidden_dims: {'9' * 4000}}}",
         {"fit": {**FIT, "val_images": 1e308, "parameters": 10**400, "made_with": {"time": [3]}}},
         None, "complete"),
    ],
)  # fmt: skip
def test_damaged_and_unfinished_runs_are_told(
    tmp_path: Path, config: Any, metrics: Any, output: str | None, state: str
) -> None:
    run = write_run(tmp_path / "run", config, metrics)
    if output:
        (run / "output.txt").write_text(output)
    record = read_record(run, tmp_path)
    assert record.columns["state"] == state
    assert to_table(read_records(tmp_path))
    assert isinstance(record.columns["when"], str | None)  # to sort by


def test_runs_are_found_wherever_they_are_and_once(tmp_path: Path) -> None:
    for name in ("seeds/version_0/seed_10", "seeds/version_0/seed_9", "a"):
        write_run(tmp_path / name, MNIST, None)
    (tmp_path / "python" / "checkpoints").mkdir(parents=True)
    (tmp_path / "python" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "seeds" / "loop").symlink_to(tmp_path)
    write_run(tmp_path / "elsewhere", MNIST, None).rename(tmp_path / ".hidden")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "config.yaml").touch()  # of another program, perhaps
    assert [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)] == [
        *("a", "python", "seeds/version_0/seed_9", "seeds/version_0/seed_10")
    ]
    assert read_record(tmp_path / "python", tmp_path).columns["state"] == "from Python"
    assert read_record(tmp_path / "a", tmp_path / "a").columns["run"] == "a"


def test_settings_are_those_of_the_whole_file(tmp_path: Path) -> None:
    for config in CONFIGS.glob("*.yaml"):
        text = config.read_text(encoding="utf-8")
        run = write_run(tmp_path / config.stem, text, None)
        assert read_settings(run) == flatten(yaml.safe_load(text))
    run = write_run(tmp_path / "anchors", "a: &x\n- 1\nb: *x\n", None)
    assert read_settings(run) == {"a": "[1]", "b": "[1]"}


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("hidden_dims", [[], [30], [30, 20]])
def test_parameters_are_those_of_the_network(hidden_dims: list[int], batch_norm: bool) -> None:
    module = FNNLitModule(hidden_dims=hidden_dims, batch_norm=batch_norm and bool(hidden_dims))
    settings = {"model.batch_norm": str(batch_norm).lower()}
    count = sum(each.numel() for each in module.parameters())
    assert parameters(settings, [784, *hidden_dims, 10]) == count
    assert "model.batch_norm" in section_defaults()["model"]
