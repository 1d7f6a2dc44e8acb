import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from fnn_lightning.commands.given import find_run
from fnn_lightning.commands.main import main
from fnn_lightning.errors import InputError
from fnn_lightning.runs.load import load, load_trained
from fnn_lightning.runs.run_folder import read_metrics
from tests.support import LAST, fit

RUN = Path("lightning_logs/version_0")


@pytest.fixture
def run(data_dir: str) -> Path:
    main(["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8]",
          "--model.pixel_mean", "0.3", "--trainer.max_epochs", "2"])  # fmt: skip
    return RUN


def test_probabilities_equal_those_of_predict(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    main(["predict", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")])
    rows = [line.split(",")[2:] for line in capsys.readouterr().out.splitlines()[1:]]
    trained = load_trained(run)
    data = trained.data(val_size=0)
    data.setup("test")
    source = data.test_dataloader()
    assert not isinstance(source, list)
    probabilities = trained.probabilities(source.images)
    assert torch.allclose(
        probabilities, torch.tensor([[float(p) for p in row] for row in rows]), atol=1e-6
    )
    assert data.val_size == 0
    assert trained.probabilities(source.images[:0]).shape == (0, 10)
    assert torch.equal(trained.probabilities(source.images.float()), probabilities)
    with pytest.raises(InputError, match=r"pixels from 0 to 255, .* but got 0 to 1:"):
        trained.probabilities(source.images / 255)


def test_held_out_images_take_the_place_of_folds(data_dir: str) -> None:
    fit(data_dir, "--data.folds", "3", "--data.fold", "1", "--data.train_size", "50")
    trained = load_trained("lightning_logs/version_0")
    assert (trained.data().folds, trained.data().fold, trained.data().train_size) == (3, 1, 50)
    assert (trained.data(val_size=0).folds, trained.data(val_size=0).val_size) == (None, 0)


def test_a_run_loads_its_best_checkpoint_or_else_its_last(run: Path) -> None:
    assert load_trained(run).path.name == "last.ckpt"
    last = run / "checkpoints" / "last.ckpt"
    last.with_name("best.ckpt").write_bytes(last.read_bytes())
    assert load_trained(str(run)).path.name == "best.ckpt"
    assert load_trained(last).path == last


def test_every_subcommand_takes_the_folder_of_a_run(run: Path) -> None:
    last = run / "checkpoints" / "last.ckpt"
    assert find_run("fit", {"ckpt_path": str(run)}) == (str(last), run.absolute())
    assert find_run("test", {"ckpt_path": str(run)}) == (str(last), run.absolute())
    best = last.with_name("best.ckpt")
    best.write_bytes(last.read_bytes())
    for name in ("validate", "test", "predict"):
        assert find_run(name, {"ckpt_path": str(run)}) == (str(best), run.absolute())
    assert find_run("fit", {"ckpt_path": str(run)})[0] == str(last)
    main(["fit", "--ckpt_path", str(run), "--trainer.max_epochs", "3"])
    assert torch.load(last, weights_only=True)["epoch"] == 2
    main(["test", "--ckpt_path", str(run)])
    assert read_metrics(run)["test"]["checkpoint"] == "checkpoints/best.ckpt"
    last.unlink()
    with pytest.raises(InputError, match=r"but .* holds no checkpoints/last\.ckpt"):
        find_run("fit", {"ckpt_path": str(run)})


def test_the_home_directory_may_be_written_as_a_tilde(
    data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    shutil.move(data_dir, home / "data")
    (home / "given.yaml").write_text("trainer:\n  max_epochs: 1\n  default_root_dir: ~/root\n")
    main(["fit", "--config=~/given.yaml", "--data.data_dir=~/data", "--model.hidden_dims=[8]"])
    (home / "root" / RUN).rename(home / "run")
    main(["fit", "--run_folder=~/run", "--trainer.max_epochs=2"])
    main(["fit", "--ckpt_path=~/run", "--trainer.max_epochs=3"])
    assert torch.load(home / "run/checkpoints/last.ckpt", weights_only=True)["epoch"] == 2
    main(["test", "--ckpt_path=~/run/checkpoints/last.ckpt", "--report_folder=~/report"])
    main(["predict", "--ckpt_path=~/run", "--output=~/out.csv"])
    main(["export", "--ckpt_path=~/run", "--output=~/net.pt2"])
    assert {path.name for path in home.iterdir()} >= {"report", "out.csv", "net.pt2"}
    assert not list(tmp_path.glob("**/~*"))


def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"but .* holds no checkpoints/last\.ckpt"):
        load_trained(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        load_trained(tmp_path / "missing")


def test_settings_of_another_version_are_refused(run: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"]["dropout_of_tomorrow"] = 0.5
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match=r"does not fit fnn_lightning 0\.1\.0: .*dropout_of_tom"):
        load_trained(path)


def test_load_gives_a_model_that_predicts(run: Path) -> None:
    model, trained = load(run), load_trained(run)
    assert not any(each.training for each in model.modules())
    data = trained.data()
    data.setup("test")
    images = data.test_dataloader().images  # type: ignore[union-attr]
    assert torch.equal(model.predict(images).probabilities, trained.probabilities(images))
    assert torch.equal(load(LAST).predict(images).classes, load(str(run)).predict(images).classes)
    with pytest.raises(InputError, match="a checkpoint, but got 'nowhere': there is no such file"):
        load("nowhere")


def test_of_a_folder_of_runs_the_newest_are_named(tmp_path: Path) -> None:
    for seconds, name in enumerate("abcde"):
        last = tmp_path / name / "checkpoints" / "last.ckpt"
        last.parent.mkdir(parents=True)
        last.touch()
        os.utime(last, (seconds, seconds))
    names = ", ".join(re.escape(str(tmp_path / name)) for name in "edc")
    with pytest.raises(InputError, match=rf"is a folder of runs: name one, such as {names} \(new"):
        load_trained(tmp_path)
