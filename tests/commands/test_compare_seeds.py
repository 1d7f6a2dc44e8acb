"""`compare` with folders of `seeds`: networks that are blind to some digits, so all is known."""

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import ttest_rel

from fnn_lightning.commands.main import main
from fnn_lightning.datamodule import MNISTDataModule
from tests.support import TEST_SIZE, blind_checkpoint, refused, write_tiny_files

Capture = pytest.CaptureFixture[str]
Save = Callable[..., Path]


@pytest.fixture
def save(data_dir: str) -> Save:
    """Return a function that writes a run that is blind to some digits, as `seeds` leaves it."""

    def write(
        run: str, blind: tuple[int, ...] = (), complete: bool = True, folds: int | None = None,
        step: int = 6, **data: Any,
    ) -> Path:  # fmt: skip
        folder = Path(run)
        (folder / "checkpoints").mkdir(parents=True)
        checkpoint = blind_checkpoint(blind, step, **{"data_dir": data_dir, **data})
        torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
        fit = {"best": None, "checkpoint": "checkpoints/last.ckpt", "seconds": 1.0}
        if complete:
            (folder / "metrics.json").write_text(json.dumps({"fit": fit}))
        parent = next(each for each in folder.parents if not each.name.startswith("seed_"))
        (parent / "seeds.yaml").write_text(f"data: {{folds: {json.dumps(folds)}}}\n")
        return folder

    return write


@pytest.fixture
def labels(data_dir: str) -> torch.Tensor:
    """Return the labels of the test images."""
    data = MNISTDataModule(data_dir=data_dir)
    data.setup("test")
    return data.predict_dataloader().labels


def test_recipes_are_compared_over_their_seeds(
    save: Save, labels: torch.Tensor, capsys: Capture
) -> None:
    blind = {"a": [(0,), (0, 1), (0,)], "b": [(2, 3, 5, 6), (2, 3, 4, 5, 6), (2, 3, 5, 6)]}
    for recipe, digits in blind.items():
        for seed, each in enumerate(digits):
            batch = {"a": 100, "b": 50}[recipe]
            save(f"{recipe}/seed_{seed}", each, seed=seed, step=6 + seed, batch_size=batch)
    save("b/seed_3", complete=False)
    (Path("b/seed_9 of old")).mkdir()
    main(["compare", "a", "b"])
    output = capsys.readouterr()
    assert output.err == ""
    lines = output.out.splitlines()
    assert lines[:3] == ["A  a", "B  b", "   without what has not completed: seed 3"]
    # neither the seed nor the steps, which are other in every seed
    assert [line.split() for line in lines[4:6]] == [
        ["settings", "that", "differ", "A", "B"],
        ["data.batch_size", "100", "50"],
    ]
    assert f"{TEST_SIZE} test images of mnist" in lines
    accuracies = {
        recipe: [
            statistics.fmean(100.0 * ~torch.isin(labels, torch.tensor(each)).numpy())
            for each in digits
        ]
        for recipe, digits in blind.items()
    }
    for label, values in zip("AB", accuracies.values(), strict=True):
        mean, deviation = statistics.fmean(values), statistics.stdev(values)
        assert re.search(rf"^{label} +3 +{mean:.2f} ± {deviation:.2f} ", output.out, re.MULTILINE)
    (pair,) = re.findall(r"^A, B +([-+.\d]+) +\S+ to \S+ +([<.\d ]+?) +(\d+) ", output.out, re.M)
    first, second = map(statistics.fmean, accuracies.values())
    assert pair[0] == f"{first - second:+.2f}"
    assert int(pair[2]) < 10
    assert "A is better, more than chance" in output.out


def test_folds_of_a_seed_count_as_one(save: Save, labels: torch.Tensor, capsys: Capture) -> None:
    # in each seed one fold is blind to 0 and one to nothing: all seeds are alike, half right on 0
    for seed in range(2):
        for fold, blind in enumerate([(0,), ()]):
            save(f"a/seed_{seed}/fold_{fold}", blind, folds=2)
            save(f"c/seed_{seed}/fold_{fold}", blind, folds=2, complete=seed + fold == 0)
        save(f"b/seed_{seed}", (1,))
    main(["compare", "a", "b"])
    output = capsys.readouterr().out
    zeros, ones = (labels == 0).double(), (labels == 1).double()
    assert re.search(rf"^A +2 +{100 - 50 * zeros.mean():.2f} ± 0.00 ", output, re.MULTILINE)
    p_value = ttest_rel(1 - zeros / 2, 1 - ones).pvalue
    assert re.search(rf"^A, B .* {p_value:.4f} ", output, re.MULTILINE)
    message = refused(["compare", "a", "c"], capsys)
    assert "Expected 2 or more completed seeds in c, but got 0: train more of them" in message


def test_what_cannot_be_compared_is_refused(save: Save, tmp_path: Path, capsys: Capture) -> None:
    for seed in range(2):
        save(f"a/seed_{seed}")
        save(f"digits/seed_{seed}", dataset="digits")
    save("one/seed_0")
    other = tmp_path / "other"
    write_tiny_files(other)
    file = other / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    for seed in range(2):
        save(f"elsewhere/seed_{seed}", data_dir=str(other))
    Path("damaged/seed_0").mkdir(parents=True)
    Path("damaged/seeds.yaml").write_text("- 1\n")
    Path("many").mkdir()
    Path("a").rename("many/a")
    Path("a").symlink_to("many/a")
    cases = {
        ("a", "many/a/seed_0"): "several seeds and many/a/seed_0, which is none: train its config",
        ("a", "one"): "Expected 2 or more completed seeds in one, but got 1: train more of them, "
        "python -m fnn_lightning seeds 5 --folder one",
        ("a", "many/a"): "twice",
        ("a", "digits"): "Expected networks of one data set",
        ("a", "elsewhere"): "Expected networks of the same test images",
        ("a", "damaged"): "Expected damaged/seeds.yaml as `seeds` writes it, but it is damaged",
        ("many/a/seed_0", "many"): "many holds several: name one, such as many/a",
        ("a",): "Expected 2 to 26 runs, but got 1",
    }
    for paths, message in cases.items():
        assert message in refused(["compare", *paths], capsys)
    main(["compare", "a", "elsewhere", "--data_dir", str(other)])
    assert "could be chance" in capsys.readouterr().out
