import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from fnn_lightning import FNNLitModule
from fnn_lightning.commands.datamodules import MNISTOrPictures
from fnn_lightning.commands.main import main
from fnn_lightning.data.preprocessing import read_picture
from fnn_lightning.runs.load import TrainedNetwork, load_trained
from tests.support import TEST_SIZE, write_tiny_files

Capture = pytest.CaptureFixture[str]
LAST = "lightning_logs/version_0/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def folder_of_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a network for all tests."""
    folder = tmp_path_factory.mktemp("trained")
    data_dir = write_tiny_files(folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8]",
              "--trainer.max_epochs", "1", "--tensorboard.enabled", "false"])  # fmt: skip
    return folder


@pytest.fixture
def trained(folder_of_run: Path) -> TrainedNetwork:
    shutil.copytree(folder_of_run / "lightning_logs", "lightning_logs")
    return load_trained(LAST)


@pytest.fixture
def scans() -> Path:
    """Make a folder with two pictures of bars, a blank one, and a file that is no picture."""
    folder = Path("scans")
    folder.mkdir()
    for name, (height, width) in {"a.png": (100, 20), "b.jpg": (100, 60)}.items():
        levels = np.full((200, 200), 255, np.uint8)
        levels[50 : 50 + height, 40 : 40 + width] = 0
        Image.fromarray(levels).save(folder / name)
    Image.new("L", (50, 50), 255).save(folder / "blank.png")
    (folder / "c.gif").write_text("not a picture")
    return folder


def predict(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--ckpt_path", LAST, *argv])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_pictures_are_printed_as_a_table_and_failures_as_errors(
    trained: TrainedNetwork, scans: Path, capsys: Capture
) -> None:
    assert predict("--data.images", "scans") == 1
    output = capsys.readouterr()
    pixels = torch.stack([read_picture(scans / name) for name in ("a.png", "b.jpg")])
    probabilities, digits = trained.probabilities(pixels).max(dim=1)
    lines = output.out.splitlines()
    assert lines[0].split() == ["file", "class", "probability"]
    for line, name, digit, probability in zip(
        lines[1:], ("a.png", "b.jpg"), digits.tolist(), probabilities.tolist(), strict=True
    ):
        assert line.split()[:3] == [f"scans/{name}", str(digit), f"{probability:.4f}"]
        assert "! unsure" in line  # after one epoch on noise
    assert output.err.splitlines() == [
        "error: scans/blank.png: it is blank: nothing stands out from the paper",
        "error: scans/c.gif: it is not a PNG, JPEG, BMP, TIFF, GIF or WebP file",
    ]


@pytest.mark.usefixtures("trained")
def test_pictures_need_no_data_set(scans: Path, capsys: Capture) -> None:
    main(["predict", "--ckpt_path", LAST, "--data.images", "scans/a.png", "scans/b.jpg",
          "--data.data_dir", "nowhere"])  # fmt: skip
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert not Path("nowhere").exists()


@pytest.mark.usefixtures("trained")
def test_nothing_is_written_if_no_picture_can_be_read(scans: Path, capsys: Capture) -> None:
    assert predict("--data.images", "scans/c.gif", "--output", "new.csv") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert not Path("new.csv").exists()


def test_predictions_and_inputs_of_pictures_are_written(
    trained: TrainedNetwork, scans: Path, capsys: Capture
) -> None:
    (scans / "more").mkdir()
    (scans / "a.png").rename(scans / "more" / "b.png")
    argv = ["--data.images", "scans", "scans/more/*", "--save_inputs", "seen/deep"]
    assert predict(*argv, "--output", "new/out.csv") == 1
    assert predict(*argv, "--output", "out.json") == 1
    names = ["scans/b.jpg", "scans/more/b.png"]
    pixels = torch.stack([read_picture(Path(name)) for name in names])
    expected = trained.probabilities(pixels)
    rows = list(csv.DictReader(Path("new/out.csv").read_text().splitlines()))
    records = json.loads(Path("out.json").read_text())
    for number, (row, record) in enumerate(zip(rows, records, strict=True)):
        assert row["file"] == record["file"] == names[number]
        assert row["class"] == record["class"] == str(int(expected[number].argmax()))
        probabilities = [float(row[f"p_{digit}"]) for digit in range(10)]
        assert probabilities == pytest.approx(expected[number].tolist(), abs=1e-6)
        assert list(record["probabilities"]) == list("0123456789")
        assert list(record["probabilities"].values()) == pytest.approx(
            expected[number].tolist(), abs=1e-6
        )
        assert row["warning"] == record["warning"]
        assert "unsure" in row["warning"]
    for name, seen in zip(("b.png", "b_2.png"), pixels, strict=True):
        assert np.array_equal(np.asarray(Image.open(Path("seen/deep", name))), seen.numpy())
    assert len(list(Path("seen/deep").iterdir())) == 2


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_predictions_of_the_test_set_are_written(
    trained: TrainedNetwork, suffix: str, capsys: Capture
) -> None:
    main(["predict", "--ckpt_path", LAST, "--output", f"out{suffix}"])
    assert capsys.readouterr().out == f"{TEST_SIZE} predictions written to out{suffix}\n"
    text = Path(f"out{suffix}").read_text()
    if suffix == ".csv":
        main(["predict", "--ckpt_path", LAST])
        assert capsys.readouterr().out == text
    else:
        data = trained.data()
        data.setup("test")
        dataloader = data.test_dataloader()
        assert not isinstance(dataloader, list)
        digits = trained.probabilities(dataloader.images).argmax(dim=1).tolist()
        records = json.loads(text)
        assert [record["class"] for record in records] == list(map(str, digits))
        assert [record["index"] for record in records] == list(range(TEST_SIZE))
        assert "warning" not in records[0]


INVALID = {
    "--data.images": "Expected pictures, but got none",
    "--data.images nothing.png": "got nothing.png: there is no such file",
    "--data.images scans nothing.png": "got nothing.png: there is no such file",
    "--data.images scans/*.bmp": "there is no such file",
    "--data.images=nothing.png": "got nothing.png: there is no such file",
    "--data.images scans --save_inputs scans/a.png/x": "--save_inputs in a folder that can be",
    "--data.image scans": "Unknown option data.image; did you mean data.images",
    "--output out.txt": "Expected --output to end in .csv or .json, but got 'out.txt'",
    "--output out": "Expected --output to end in .csv or .json",
    "--output folder.csv": "folder.csv: it is a folder",
    "--output scans/a.png/out.csv": "Expected --output in a folder that can be written",
    "--save_inputs seen": "Expected --data.images with --save_inputs",
    "--data.images scans --save_inputs scans": "another folder than that of the pictures",
    "--data.images scans --save_inputs scans/a.png": "got scans/a.png: it is a file",
}


@pytest.mark.parametrize("argv", INVALID)
@pytest.mark.usefixtures("trained", "scans")
def test_invalid_options_are_rejected_in_one_line(argv: str, capsys: Capture) -> None:
    Path("folder.csv").mkdir()
    before = set(Path().glob("**/*"))
    assert predict(*argv.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert INVALID[argv] in output.err
    assert set(Path().glob("**/*")) == before


@pytest.mark.usefixtures("trained")
def test_any_file_name_is_written_exactly(capsys: Capture) -> None:
    names = ["[1, 2].png", "null.png", "new\nline.png", "1e3.png", "ünï.png", "😀.png"]
    names.append(f"{251 * 'n'}.png")
    levels = np.full((40, 40), 255, np.uint8)
    levels[10:30, 18:22] = 0
    for name in names:
        Image.fromarray(levels).save(name)
    main(["predict", "--ckpt_path", LAST, "--output", "out.csv", "--data.images", *names])
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(names)
    with Path("out.csv").open(errors="surrogateescape", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == names
    Path("folder").mkdir()
    Path(names[0]).rename("folder/byte\udcff.png")  # not valid UTF-8
    main(["predict", "--ckpt_path", LAST, "--output", "out.csv", "--data.images", "folder"])
    assert b"\nfolder/byte\xff.png," in Path("out.csv").read_bytes()


@pytest.mark.usefixtures("trained")
def test_many_pictures_are_summed_up_when_their_predictions_are_written(
    scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("fnn_lightning.evaluation.prediction_writer.MAX_TABLE", 2)
    written = "predictions written to out.csv"
    images = ["--data.images", "scans/a.png", "scans/b.jpg"]
    main(["predict", "--ckpt_path", LAST, *images, "--output", "out.csv"])
    assert len(capsys.readouterr().out.splitlines()) == 4
    shutil.copy(scans / "a.png", scans / "c.png")
    images.append("scans/c.png")
    main(["predict", "--ckpt_path", LAST, *images, "--output", "out.csv"])
    output = capsys.readouterr()
    assert (output.out, output.err) == (f"3 {written}, 3 of them with a warning\n", "")
    monkeypatch.setattr(
        "fnn_lightning.data.preprocessing.out_of_distribution",
        lambda *_: "",
    )
    main(["predict", "--ckpt_path", LAST, *images, "--output", "out.csv"])
    assert capsys.readouterr().out == f"3 {written}\n"
    main(["predict", "--ckpt_path", LAST, *images])
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.usefixtures("trained")
def test_no_picture_is_overwritten(scans: Path, capsys: Capture) -> None:
    Path("cut").mkdir()
    Path("cut/a.png").write_bytes((scans / "a.png").read_bytes()[:60])
    shutil.copy(scans / "a.png", "a.csv")
    before = {path: path.read_bytes() for path in (Path("cut/a.png"), Path("a.csv"))}
    for argv in ("scans cut --save_inputs cut", "a.csv --output a.csv"):
        assert predict("--data.images", *argv.split()) == 2
        assert "Expected --" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.usefixtures("trained")
def test_limit_predict_batches_limits_the_table(
    scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("fnn_lightning.datamodule.EVAL_BATCH_SIZE", 1)
    argv = [f"--data.images={scans / 'a.png'}", f"--data.images={scans / 'b.jpg'}"]
    main(["predict", "--ckpt_path", LAST, *argv, "--trainer.limit_predict_batches", "1"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        *("file", f"{scans / 'a.png'}")
    ]


def test_the_data_module_serves_pictures_without_the_command_line(scans: Path) -> None:
    torch.manual_seed(0)
    model = FNNLitModule(hidden_dims=[8])
    data = MNISTOrPictures(images=["scans"])
    trainer = Trainer(logger=False, barebones=False, enable_progress_bar=False)
    batches = trainer.predict(model, datamodule=data)
    assert data.pictures == [scans / "a.png", scans / "b.jpg"]
    assert list(data.unread) == [scans / "blank.png", scans / "c.gif"]
    assert batches is not None
    batch = batches[0]
    assert isinstance(batch, dict)
    assert batch["class"].shape == (2,)
