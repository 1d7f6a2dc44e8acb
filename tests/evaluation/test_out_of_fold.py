import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from fnn_lightning.commands.seeds import Run, write_out_of_fold
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.out_of_fold import predict_out_of_fold
from fnn_lightning.runs.load import load_trained
from tests.support import fit, idx_bytes

FOLDS, COUNT = 3, 121
MEMORISES = ["--model.hidden_dims=[64]", "--optimizer=Adam", "--optimizer.lr=0.003"]
MEMORISES += ["--model.pixel_mean=0.5", "--model.pixel_std=0.3", "--data.batch_size=20"]
MEMORISES += ["--trainer.max_epochs=20"]
# no report and no pictures, which take longer than the training
QUICK = ["--trainer.limit_val_batches=0", "--tensorboard.enabled=false"]


@pytest.fixture
def noise(tmp_path: Path) -> str:
    """Return a `data_dir` of noise whose labels can be known by heart alone."""
    rng = np.random.default_rng(0)
    raw = tmp_path / "noise" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = rng.integers(0, 256, (COUNT, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        labels = rng.integers(0, 10, COUNT, dtype=np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return str(tmp_path / "noise")


def train(data_dir: str, seed: int, *words: str) -> list[Run]:
    """Train a net for each fold, as `seeds` does."""
    runs = [
        Run(seed, Path(f"runs/seed_{seed}/fold_{fold}"), [f"--data.fold={fold}"])
        for fold in range(FOLDS)
    ]
    for run in runs:
        options = ["--data.folds", str(FOLDS), *run.options, "--run_folder", str(run.folder)]
        fit(data_dir, "--seed_everything", str(seed), *options, *QUICK, *words)
    return runs


def test_no_net_predicts_an_image_that_it_was_trained_on(
    noise: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = train(noise, 0, *MEMORISES)
    for run in runs:
        trained = load_trained(run.folder)
        data = trained.data()
        data.setup("fit")
        source = data.train_dataloader()
        known = trained.probabilities(source.images[source.indices]).argmax(dim=1)
        assert (known == source.labels[source.indices]).float().mean() > 0.95

    predictions = predict_out_of_fold([run.folder for run in runs])
    assert predictions.is_correct.float().mean() < 0.3  # 0.1 by chance

    capsys.readouterr()
    write_out_of_fold(Path("runs"), runs)
    correct = int(predictions.is_correct.sum())
    assert capsys.readouterr().out == (
        f"out of fold: {correct} of 121 training images correct ({100 * correct / 121:.2f} %); "
        "see runs/out_of_fold.csv\n"
        f"labels to look at: {121 - correct}, the most suspect first; "
        "see runs/suspect_labels.html\n"
    )
    rows = list(csv.DictReader(Path("runs/out_of_fold.csv").read_text().splitlines()))
    assert [int(row["index"]) for row in rows] == list(range(121))
    assert [int(row["label"]) for row in rows] == source.labels.tolist()
    assert [int(row["class"]) for row in rows] == predictions.classes.tolist()
    suspects = list(csv.DictReader(Path("runs/suspect_labels.csv").read_text().splitlines()))
    assert {each["index"] for each in suspects} == {
        row["index"] for row in rows if row["class"] != row["label"]
    }
    shares = [float(each["p_label"]) for each in suspects]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(
        min(float(predictions.probabilities[k, source.labels[k]]) for k in range(121)), rel=1e-5
    )
    assert Path("runs/suspect_labels.html").read_text().count("<figure>") == 121 - correct
    shown = torch.tensor([[float(row[f"p_{digit}"]) for digit in range(10)] for row in rows])
    assert torch.allclose(shown, predictions.probabilities, atol=1e-6)


def test_probabilities_are_averaged_over_the_seeds(
    data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [*train(data_dir, 0), *train(data_dir, 1)]
    predictions = predict_out_of_fold([run.folder for run in runs])
    assert "".join(predictions.class_names) == "0123456789"
    nets = [load_trained(run.folder) for run in runs]
    for fold in range(FOLDS):
        data = nets[fold].data()
        assert data.fold == fold
        data.setup("validate")
        indices = data.val_dataloader().indices
        images = data.val_dataloader().images[indices]
        first, second = (nets[at].probabilities(images) for at in (fold, FOLDS + fold))
        assert not torch.allclose(first, second)
        assert torch.allclose(predictions.probabilities[indices], (first + second) / 2)

    # a seed that lacks a fold takes no part, so that all images are averaged over the same seeds
    alone = predict_out_of_fold([run.folder for run in runs[:FOLDS]])
    (runs[-1].folder / "metrics.json").unlink()
    capsys.readouterr()
    write_out_of_fold(Path("runs"), runs)
    assert f"out of fold: {int(alone.is_correct.sum())} of 300 " in capsys.readouterr().out
    (runs[0].folder / "metrics.json").unlink()
    write_out_of_fold(Path("runs"), runs)
    assert "no out-of-fold predictions" in capsys.readouterr().out

    with pytest.raises(InputError, match="a network for each fold, but got some more often"):
        predict_out_of_fold([run.folder for run in runs[1:]])


def test_nets_of_other_data_are_refused(data_dir: str) -> None:
    fit(data_dir, "--run_folder", "alone", *QUICK)
    with pytest.raises(InputError, match="that was trained on folds, but got alone"):
        predict_out_of_fold([Path("alone")])
