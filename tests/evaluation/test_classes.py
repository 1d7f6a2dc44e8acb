"""Classes other than ten digits, with names of any text, through everything after the network."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fnn_lightning import FNNLitModule, evaluate, load
from fnn_lightning.commands.demo_page import answer_html, expected_html
from fnn_lightning.commands.main import main
from fnn_lightning.data.datasets import Framing
from fnn_lightning.data.framing import frame_picture
from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation import page as report_page
from fnn_lightning.evaluation import plots
from fnn_lightning.evaluation.class_names import short_name, tag_names
from fnn_lightning.evaluation.measures import measure
from fnn_lightning.evaluation.predictions import Predictions
from fnn_lightning.evaluation.tensorboard import layout
from fnn_lightning.runs.loggers import read_curves
from tests.support import LAST, RUN

Capture = pytest.CaptureFixture[str]
ODD = ["<b>", "a,b", "T-shirt/top"]
MORE = [
    "T-shirt top",
    "お",
    'a "quote"',
    "two\nlines",
    "$x",
    "_hidden",
    "a\tb",
    300 * "long ",
    "=1",
]
NAMES = {3: ODD, 26: [*ODD, *MORE, *"ABCDEFGHIJKLMN"]}


class Stub:
    """A data set of classes that one row of a picture tells apart; the last has no test image."""

    train_size = None
    framing: Framing = "resize"

    def __init__(self, class_names: list[str]) -> None:
        self.class_names = class_names

    def prepare(self) -> None:
        self.labels(train=True)

    def is_present(self) -> bool:
        return True

    def labels(self, train: bool) -> Tensor:
        count = len(self.class_names)
        return torch.arange(8 * count) % count if train else torch.arange(4 * count) % (count - 1)

    def images(self, train: bool) -> Tensor:
        labels = self.labels(train)
        generator = torch.Generator().manual_seed(int(train))
        noise = torch.randint(0, 250, (len(labels), 28, 28), generator=generator)
        noise[torch.arange(len(labels)), labels % 28] = 255
        return noise.to(torch.uint8)


@pytest.fixture(params=NAMES, ids="{} classes".format)
def names(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let `--data.dataset own/stub` name a data set; return the names of its classes."""
    class_names = NAMES[request.param]
    monkeypatch.setattr("fnn_lightning.datamodule.find_dataset", lambda *_: Stub(class_names))
    return class_names


@pytest.fixture
def run(names: list[str], capsys: Capture) -> Path:
    """Train on it."""
    main(["fit", "--data.dataset", "own/stub", "--data.val_size", str(2 * len(names)),
          "--model.hidden_dims", "[8]", "--trainer.max_epochs", "2"])  # fmt: skip
    out = capsys.readouterr().out
    assert f", {len(names)} classes, batches of" in " ".join(out.split())
    return RUN


def predicted_by_hand(names: list[str]) -> tuple[list[int], Tensor]:
    """Return the labels of the test images, and the probabilities of the trained net."""
    stub = Stub(names)
    probabilities = load(RUN).predict(stub.images(train=False)).probabilities
    return stub.labels(train=False).tolist(), probabilities


@pytest.mark.pictures
@pytest.mark.usefixtures("drawn", "run")
def test_the_report_and_tensorboard_name_the_classes(names: list[str]) -> None:
    main(["test", "--ckpt_path", LAST, "--tensorboard.projector", "true"])
    labels, probabilities = predicted_by_hand(names)
    classes = probabilities.argmax(1).tolist()

    with (RUN / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [names[k] for k in labels]
    assert [row["class"] for row in rows] == [names[k] for k in classes]

    results = json.loads((RUN / "metrics.json").read_text())["test"]
    assert [each["class"] for each in results["classes"]] == names
    assert [each["images"] for each in results["classes"]] == [
        labels.count(k) for k in range(len(names))
    ]
    assert results["classes"][-1]["recall"] is None
    pairs = list(zip(labels, classes, strict=True))
    recalls = [pairs.count((k, k)) / labels.count(k) for k in range(len(names) - 1)]
    assert results["balanced_accuracy"] == pytest.approx(sum(recalls) / len(recalls))

    page = (RUN / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert 50 * "long " not in page
    assert "two\nlines" not in page
    assert "class_names" not in page  # among the settings
    wanted = (100 * results["macro"]["f1"], 100 * results["balanced_accuracy"])
    assert "Macro F1 {:.2f} %, balanced accuracy {:.2f} %.".format(*wanted) in page
    anchors = re.findall(r'<section id="([^"]*)"', page)
    wrong = {f"{label}-as-{predicted}" for label, predicted in pairs if label != predicted}
    assert set(anchors) == wrong
    assert set(re.findall(r'<td style[^>]*><a href="#([^"]*)"', page)) == wrong

    curves = read_curves(RUN)
    tags = tag_names(names)
    assert len(set(tags)) == len(names)
    for k, recall in enumerate(recalls):
        assert curves[f"test_acc_of_class/{tags[k]}"][0][1] == pytest.approx(recall)
    assert f"test_acc_of_class/{tags[-1]}" not in curves
    assert {len(name.split("/")) for name in curves if "acc_of_class" in name} == {2}
    (table,) = RUN.rglob("metadata.tsv")
    header, *lines = table.read_text(encoding="utf-8").splitlines()
    assert header.split("\t") == ["class", "predicted", "caption"]
    assert [line.split("\t")[:2] for line in lines] == [
        [short_name(names[label]), short_name(names[predicted])] for label, predicted in pairs
    ]


@pytest.mark.usefixtures("run")
def test_predict_names_the_classes_of_test_images_and_pictures(
    names: list[str], capsys: Capture
) -> None:
    _, probabilities = predicted_by_hand(names)
    wanted = [names[k] for k in probabilities.argmax(1).tolist()]
    for output in ("out.csv", "out.json"):
        main(["predict", "--ckpt_path", LAST, "--output", output])
    capsys.readouterr()
    main(["predict", "--ckpt_path", LAST])
    printed = capsys.readouterr().out
    text = Path("out.csv").read_bytes().decode()
    assert printed == text
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert header == ["index", "class", *(f"p_{name}" for name in names)]
    assert [row[1] for row in rows] == wanted
    found = np.array([row[2:] for row in rows], float)
    assert np.abs(found - probabilities.numpy()).max() < 1e-6
    records = json.loads(Path("out.json").read_text())
    assert [record["class"] for record in records] == wanted
    assert list(records[0]["probabilities"]) == names

    # a picture is resized as it is: cropped and centred, it would be another one
    picture = Image.fromarray(np.arange(56 * 56, dtype=np.float32).reshape(56, 56) // 13 % 256)
    picture = picture.convert("L")
    picture.save("new.png")
    seen = frame_picture(picture, "resize").numpy()
    assert np.abs(seen - np.asarray(picture, float).reshape(28, 2, 28, 2).mean((1, 3))).max() < 20
    main(["predict", "--ckpt_path", LAST, "--data.images", "new.png", "--save_inputs", "seen"])
    assert np.array_equal(np.asarray(Image.open("seen/new.png")), seen)
    lines = capsys.readouterr().out.splitlines()
    expected = load(RUN).predict("new.png")
    assert torch.equal(expected.classes, expected.probabilities.argmax())
    name = short_name(names[int(expected.classes)])
    assert lines[0].split() == ["file", "class", "probability"]
    assert lines[1].startswith("new.png")
    assert f" {name}  " in lines[1]
    assert len(lines) == 2


@pytest.mark.usefixtures("run")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_export_holds_the_names_of_the_classes(
    names: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, probabilities = predicted_by_hand(names)
    main(["export", "--ckpt_path", LAST, "--output", "net.pt2"])
    assert f"to float32 (N, {len(names)})\n" in capsys.readouterr().out
    files = {"fnn_lightning.json": ""}
    program = torch.export.load("net.pt2", extra_files=files).module()
    found = program(Stub(names).images(train=False))
    assert torch.allclose(found, probabilities, atol=1e-6)
    metadata = json.loads(files["fnn_lightning.json"])
    assert json.loads(metadata["class_names"]) == names
    assert metadata["framing"] == "resize"
    right = (probabilities.argmax(1) == torch.tensor(labels)).double().mean()
    assert float(metadata["accuracy"]) == pytest.approx(float(right))

    # the data have got another class since, and then they are gone
    others = Stub([*names, "new"])
    monkeypatch.setattr("fnn_lightning.datamodule.find_dataset", lambda *_: others)
    main(["export", "--ckpt_path", LAST, "--output", "net.pt2"])
    assert "images of random pixels" in capsys.readouterr().out

    def gone(train: bool) -> None:
        raise InputError("there is no such folder")

    monkeypatch.setattr(others, "labels", gone)
    main(["export", "--ckpt_path", LAST, "--output", "net.pt2"])
    assert "images of random pixels" in capsys.readouterr().out


@pytest.mark.usefixtures("run")
def test_runs_are_compared_and_evaluated_on_their_classes_alone(
    names: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(
        ["fit", "--data.dataset", "own/stub", "--run_folder", "other", "--model.hidden_dims", "[9]"]
    )
    capsys.readouterr()
    main(["compare", str(RUN), "other"])
    out = capsys.readouterr().out
    assert "model.class_names" not in out
    assert f"{4 * len(names)} test images" in out

    net, stub = load(RUN), Stub(names)
    result = evaluate(net, MNISTDataModule(dataset="own/stub"))
    assert result.class_names == tuple(names)
    assert result.confusion.shape == (len(names), len(names))
    images, labels = stub.images(train=False), stub.labels(train=False)
    assert torch.equal(evaluate(net, (images, labels)).confusion, result.confusion)
    with pytest.raises(InputError, match=f"labels from 0 to {len(names) - 1}, but got"):
        evaluate(net, (images[:1], [len(names)]))

    others = Stub(names[::-1])
    monkeypatch.setattr("fnn_lightning.datamodule.find_dataset", lambda *_: others)
    with pytest.raises(InputError, match="data of the classes that the net tells apart"):
        evaluate(net, MNISTDataModule(dataset="own/stub"))
    with pytest.raises(SystemExit):
        main(["compare", str(RUN), "other"])
    error = capsys.readouterr().err
    assert "classes that the net tells apart" in error
    assert error.count("\n") == 1


def test_the_demo_shows_the_most_probable_of_many_classes() -> None:
    names = NAMES[26]
    probabilities = torch.arange(26.0).flip(0).softmax(0)  # the first is the most probable
    shown = answer_html(names, torch.zeros(28, 28, dtype=torch.uint8), probabilities)
    bars = re.findall(r"<div class='name'>(.*?)</div>.*?<div class='share'>([\d.]+) %", shown)
    assert [name for name, _ in bars[:3]] == ["&lt;b&gt;", "a,b", "T-shirt/top"]
    assert len(bars) == 10
    assert [float(share) for _, share in bars] == pytest.approx(
        (100 * probabilities[:10]).tolist(), abs=0.06
    )
    assert "<b>" not in shown
    assert "class='name'" not in answer_html(names)  # which ten, nothing says
    assert answer_html(ODD).count("class='name'") == 3
    assert "digit" not in answer_html(names) + expected_html(names, "resize")
    page = expected_html([str(k) for k in range(1000)], "mnist")
    assert "One of 1,000 classes: 0, 1, " in page
    assert ", 49, …." in page


@pytest.fixture
def thousand() -> Predictions:
    """Predict 5,000 images of 1,000 classes, two thirds of them wrong."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 999, (5000,), generator=generator)  # the last has no image
    guesses = torch.where(labels % 3 == 0, labels, (labels * 7 + torch.arange(5000) % 2) % 1000)
    probabilities = torch.full((5000, 1000), 0.0001)
    probabilities[torch.arange(5000), guesses] = 0.9
    names = [f"class {k} <i>" for k in range(1000)]
    images = torch.zeros(5000, 28, 28, dtype=torch.uint8)
    return Predictions(images, torch.arange(5000), labels, probabilities, names)


def test_the_page_of_a_thousand_classes_lists_the_most_frequent_confusions(
    thousand: Predictions,
) -> None:
    module = FNNLitModule(hidden_dims=[8], class_names=thousand.class_names)
    checkpoint = {"hyper_parameters": dict(module.hparams), "global_step": 3}
    tested = report_page.Tested(None, Path("a.ckpt"), checkpoint, module)
    results = {**measure(thousand), "dataset": "own", "checkpoint": "a.ckpt", "step": 3}
    page = report_page.make_page(tested, thousand, results, "test", {})
    assert 'class="matrix' not in page
    assert "<i>" not in page
    counts = thousand.confusion.clone().fill_diagonal_(0)
    assert f"The 100 most frequent of {int((counts > 0).sum()):,} confusions" in page
    row = r'<tr><td>class (\d+) .*?">.*?class (\d+) .*?</td><td>(\d+)</td><td>(\d+)</td></tr>'
    rows = [tuple(map(int, found)) for found in re.findall(row, page)]
    assert [times for _, _, times, _ in rows] == counts.flatten().sort().values[-100:].flip(
        0
    ).tolist()
    for label, predicted, times, images in rows:
        assert times == counts[label, predicted]
        assert images == (thousand.labels == label).sum()
    assert page.count("<tr><td>class ") == 100 + 1000
    assert "class_names" not in page  # among the settings
    assert len(page) < 2_000_000


@pytest.mark.usefixtures("drawn")
def test_a_thousand_classes_are_measured_and_drawn_without_their_names(
    thousand: Predictions,
) -> None:
    results = measure(thousand)
    assert results["classes"][-1]["recall"] is None
    counts = thousand.labels.bincount(minlength=1000)
    recall = thousand.confusion.diagonal()[counts > 0] / counts[counts > 0]
    assert results["balanced_accuracy"] == pytest.approx(float(recall.double().mean()))
    figure = plots.confusion_figure(thousand)
    assert plots.rasterize(figure).shape[0] == 3
    assert not figure.axes[0].texts
    assert list(layout(thousand.class_names)) == ["train and validation"]


@pytest.mark.usefixtures("drawn")
def test_figures_take_any_name(recwarn: pytest.WarningsRecorder) -> None:
    names = NAMES[26]
    images, positions = torch.zeros(26, 28, 28, dtype=torch.uint8), torch.arange(26)
    predictions = Predictions(images, positions, positions, torch.eye(26).roll(1, 0), names)
    curves = {k: [(1, 0.5), (2, 0.6)] for k in range(20)}
    confusion = plots.confusion_figure(predictions)
    drawn = plots.class_curves_figure(curves, names[:20])
    for figure in (confusion, plots.mistakes_figure(predictions), drawn):
        plots.rasterize(figure)
        figure.savefig(io.BytesIO(), format="png")
    assert not recwarn.list
    labels = [label.get_text() for label in confusion.axes[0].get_xticklabels()]
    assert labels[:5] == ["<b>", "a,b", "T-shirt/top", "T-shirt top", "お"]
    assert max(map(len, labels)) <= 15
    assert not confusion.axes[0].texts  # too many to be read
    legend: Any = drawn.axes[0].get_legend()
    assert len(legend.get_texts()) == 20
    assert len({line.get_color() for line in drawn.axes[0].lines}) == 20


def test_the_charts_of_classes_show_each_the_curve_of_one() -> None:
    names = ["a", "ab", "a.b", "a+b", "a b"]
    patterns = layout(names)["accuracy of each class"]["val"][1]
    tags = [f"z_val_acc_of_class/{tag}" for tag in tag_names(names)]
    for k, pattern in enumerate(patterns):
        assert [tag for tag in tags if re.match(pattern, tag)] == [tags[k]]
