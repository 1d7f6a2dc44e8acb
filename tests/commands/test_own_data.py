"""Runs on data at a path, from `fit` to `predict`."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fnn_lightning.commands.lightning_cli import FNNCLI
from fnn_lightning.commands.main import main
from fnn_lightning.data.published import raw_dir
from fnn_lightning.runs.load import load
from tests.forks import StartFork
from tests.support import assert_same, idx_bytes
from tests.training.test_processes import done, end_of, ranks

FIT = ["fit", "--trainer.accelerator=cpu", "--model.hidden_dims=[16]", "--trainer.max_epochs=2"]
FIT += ["--tensorboard.enabled=false"]
COLOURS = {"lime": (0, 255, 0), "red": (255, 0, 0), "white": (255, 255, 255)}

Arrays = dict[str, np.ndarray]


def subset(real_data_dir: str) -> Arrays:
    """Return the first images of the real MNIST, named as Keras names them."""
    arrays = {}
    for part, name, count in (("train", "train", 3000), ("t10k", "test", 500)):
        for letter, kind, offset in (("x", "images-idx3", 16), ("y", "labels-idx1", 8)):
            content = (raw_dir(real_data_dir) / f"{part}-{kind}-ubyte").read_bytes()
            array = np.frombuffer(content, np.uint8, offset=offset)
            shape = (-1, 28, 28) if letter == "x" else (-1,)
            arrays[f"{letter}_{name}"] = array.reshape(shape)[:count]
    return arrays


def write_idx(arrays: Arrays, folder: Path, packed: bool = False) -> Path:
    folder.mkdir(parents=True)
    for part, name in (("train", "train"), ("t10k", "test")):
        for letter, kind in (("x", "images-idx3"), ("y", "labels-idx1")):
            content, path = idx_bytes(arrays[f"{letter}_{name}"]), folder / f"{part}-{kind}-ubyte"
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    return folder


def write_packed_idx(arrays: Arrays, folder: Path) -> Path:
    return write_idx(arrays, folder, packed=True)


def write_pngs(arrays: Arrays, folder: Path) -> Path:
    for part in ("train", "test"):
        for digit in range(10):
            (folder / part / str(digit)).mkdir(parents=True)
        pairs = zip(arrays[f"x_{part}"], arrays[f"y_{part}"], strict=True)
        for i, (pixels, digit) in enumerate(pairs):
            Image.fromarray(pixels).save(folder / part / str(digit) / f"{i:05}.png")
    return folder


def write_npz(arrays: Arrays, folder: Path) -> Path:
    path = folder.with_suffix(".npz")
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("write", [write_pngs, write_npz, write_idx, write_packed_idx])
def test_mnist_in_another_form_gives_the_same_weights(
    real_data_dir: str,
    write: Callable[[Arrays, Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arrays = subset(real_data_dir)
    write_idx(arrays, tmp_path / "data" / "MNIST" / "raw")
    main([*FIT, "--run_folder", "mnist"])
    path = write(arrays, tmp_path / "own")
    main([*FIT, "--run_folder", "own_run", "--data.dataset", str(path)])
    main([*FIT, "--run_folder", "again", "--data.dataset", str(path)])  # from the cache
    weights, *others = (end_of(run)["state_dict"] for run in ("mnist", "own_run", "again"))
    assert weights["network.layers.0.weight"].std() > 0
    for other in others:
        assert_same(weights, other)
    assert load("own_run").class_names == tuple("0123456789")

    Path("folder").mkdir()
    monkeypatch.chdir("folder")
    capsys.readouterr()
    main(["test", "--ckpt_path", "../own_run", "--data.dataset", f"../{path.name}"])
    assert str(tmp_path / "own_run" / "report.html") in capsys.readouterr().out


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder of coloured JPEGs of another size, of three classes."""
    rng = np.random.default_rng(0)
    for label, (name, colour) in enumerate(COLOURS.items()):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 60, (40, 60, 3))
            pixels[:, 20 * label : 20 * label + 20] += np.array(colour) * 3 // 4
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.jpg")
    return tmp_path / "pictures"


def test_a_net_trained_on_pictures_predicts_them(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*FIT, "--data.dataset", "pictures", "--data.batch_size=10", "--trainer.max_epochs=20"])
    assert "pictures" in capsys.readouterr().out
    net = load("lightning_logs/version_0")
    assert net.class_names == ("lime", "red", "white")
    assert net.framing == "resize"
    shutil.rmtree(pictures / "lime")  # the data may be gone
    named = [str(pictures / name / f"{i}.jpg") for name in ("red", "white") for i in range(3)]
    main(["predict", "--data.images", *named])
    out = capsys.readouterr().out
    assert "!" not in out  # no mark of what is unlike MNIST's digits
    assert net.predict(named).classes.tolist() == [1, 1, 1, 2, 2, 2]
    with pytest.raises(SystemExit):
        main(["predict", "--data.images", *named, "--data.framing", "mnist"])
    assert "`data.framing` to be resize, as in training, but got mnist" in capsys.readouterr().err


def test_a_run_resumes_on_data_that_have_moved(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [*FIT, "--data.dataset", "pictures", "--trainer.max_epochs"]
    main([*whole, "4", "--run_folder", "whole"])
    main([*whole, "2", "--run_folder", "run"])
    pictures.rename(pictures.with_name("moved"))
    resumed = ["fit", "--run_folder", "../run", "--trainer.max_epochs=4", "--data.dataset"]
    Path("folder").mkdir()
    monkeypatch.chdir("folder")
    main([*resumed, "../moved"])
    assert_same(end_of("../whole")["state_dict"], end_of("../run")["state_dict"])

    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*resumed, "mnist"])
    assert "`data.dataset` to be" in capsys.readouterr().err
    shutil.rmtree("../moved/lime")
    with pytest.raises(SystemExit):
        main([*resumed, "../moved", "--trainer.max_epochs=5"])
    assert "that the net tells apart, lime, red, white (3 classes)" in capsys.readouterr().err


def test_what_is_wrong_with_the_data_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for dataset in ("empty", "nowhere/at/all"):
        with pytest.raises(SystemExit):
            main([*FIT, "--data.dataset", dataset])
        error = capsys.readouterr().err
        assert error.startswith("error: Expected ")
        assert dataset in error
        assert error.count("\n") == 1
    assert not Path("lightning_logs").exists()


def test_several_ranks_read_the_same_pictures(pictures: Path, fork: StartFork) -> None:
    options = ["--data.dataset", "pictures", "--model.hidden_dims=[16]", "--trainer.max_epochs=2"]
    options += ["--tensorboard.enabled=false"]
    done(fork("fit", "--trainer.accelerator=cpu", *options, "--run_folder=one"))
    (pictures / ".fnn_lightning_resize.npz").unlink()
    both = ranks(fork, 2, "fit", *options, "--run_folder=two")
    outputs = [done(each) for each in both]
    assert not outputs[1]
    one, two = (end_of(run)["state_dict"] for run in ("one", "two"))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights)


def test_a_new_run_takes_no_settings_of_other_data(
    data_dir: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--data.framing", "mnist", "--data.class_weights", str([1.0] * 10)]
    FNNCLI([*FIT, "--data.data_dir", data_dir, *words])
    last = "lightning_logs/version_0/checkpoints/last.ckpt"
    cli = FNNCLI([*FIT, "--data.dataset", str(pictures), "--init_from", last])
    assert (cli.model.framing, cli.datamodule.class_weights) == ("resize", None)
    again = FNNCLI([*FIT, "--data.data_dir", data_dir, "--init_from", last])
    assert len(again.datamodule.class_weights) == 10
