import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from selenium.webdriver.remote.webdriver import WebDriver

from fnn_lightning.commands.main import main
from fnn_lightning.errors import DivergenceError
from fnn_lightning.evaluation import plots, report
from fnn_lightning.evaluation.measures import measure, reliability
from fnn_lightning.evaluation.predictions import Predictions
from fnn_lightning.evaluation.report import predictions_csv
from fnn_lightning.runs.load import load_trained
from fnn_lightning.runs.loggers import read_curves
from fnn_lightning.runs.run_folder import fit_completed, read_metrics
from tests.support import LAST, RUN, refused


def four_predictions(last_confidence: float = 0.8) -> Predictions:
    """Predict four images: right at 0.9, wrong at 0.8, right at 0.6, wrong at 0.8."""
    probabilities = torch.zeros(4, 10)
    for row, (digit, p) in enumerate([(3, 0.9), (5, 0.8), (5, 0.6), (1, last_confidence)]):
        probabilities[row] = (1 - p) / 9
        probabilities[row, digit] = p
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1).expand(4, 28, 28)
    return Predictions(images, torch.arange(4), torch.tensor([3, 3, 5, 5]), probabilities)


def test_the_most_confident_mistakes_come_first() -> None:
    predictions = four_predictions()
    assert predictions.most_confident_mistakes(9) == [1, 3]
    assert predictions.most_confident_mistakes(1) == [1]
    assert four_predictions(last_confidence=0.88).most_confident_mistakes(9) == [3, 1]


def test_results_equal_those_computed_by_hand() -> None:
    results = measure(four_predictions())
    assert (results["correct"], results["total"], results["accuracy"]) == (2, 4, 0.5)
    # 0.15003899 and 0.84996101: Wilson's formula with z = 1.959964
    assert results["interval_95"] == pytest.approx([0.150039, 0.849961], abs=1e-6)
    f1 = pytest.approx(2 / 3)
    three, five, one = (results["classes"][digit] for digit in (3, 5, 1))
    assert three == {"class": "3", "images": 2, "precision": 1.0, "recall": 0.5, "f1": f1}
    assert five == {"class": "5", "images": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert one == {"class": "1", "images": 0, "precision": 0.0, "recall": None, "f1": 0.0}
    absent = {"precision": None, "recall": None, "f1": None}
    assert results["classes"][7] == {"class": "7", "images": 0, **absent}
    # over the digits 1, 3 and 5
    assert results["macro"] == pytest.approx(
        {"precision": (0 + 1 + 0.5) / 3, "recall": (0 + 0.5 + 0.5) / 3, "f1": (0 + 2 / 3 + 0.5) / 3}
    )
    assert results["balanced_accuracy"] == (0.5 + 0.5) / 2  # 1 has no image
    # of 15 bins: 0.6 (right), 0.8 twice (both wrong), 0.9 (right)
    bins = reliability(four_predictions())
    assert [count for _, _, count in bins] == [1, 2, 1]
    assert [accuracy for _, accuracy, _ in bins] == [1.0, 0.0, 1.0]
    error = (abs(0.6 - 1) + 2 * abs(0.8 - 0) + abs(0.9 - 1)) / 4
    assert results["expected_calibration_error"] == pytest.approx(error, abs=1e-6)
    assert predictions_csv(four_predictions()).decode().splitlines()[1] == "0,3,3,0.900000"


def test_the_confusion_matrix_has_true_digits_in_its_rows() -> None:
    figure = plots.confusion_figure(four_predictions())
    numbers = [int(text.get_text()) for text in figure.axes[0].texts]
    counts = {divmod(cell, 10): count for cell, count in enumerate(numbers) if count}
    assert counts == {(3, 3): 1, (3, 5): 1, (5, 5): 1, (5, 1): 1}
    assert figure.axes[0].get_xlabel() == "Predicted class"


def test_reliability_bins_add_up_to_the_calibration_error() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 10, generator=generator)
    labels = torch.randint(0, 10, (500,), generator=generator)
    images = torch.zeros(500, 28, 28, dtype=torch.uint8)
    predictions = Predictions(images, torch.arange(len(labels)), labels, logits.softmax(1))
    bins = reliability(predictions)
    error = sum(abs(confidence - accuracy) * n for confidence, accuracy, n in bins) / 500
    assert measure(predictions)["expected_calibration_error"] == pytest.approx(error, abs=1e-5)


@pytest.fixture
def fit(data_dir: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    def run(*argv: str) -> None:
        main(["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8]",
              "--trainer.max_epochs", "2", *argv])  # fmt: skip
        capsys.readouterr()

    return run


def test_the_report_holds_the_predictions_and_results_of_the_test(
    fit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fit()
    main(["test", "--ckpt_path", LAST, "--data.test_train_set", "true"])
    assert f"report     {RUN}/report.html" in capsys.readouterr().out
    trained = load_trained(LAST)
    data = trained.data()
    data.setup("test")
    dataloader: Any = data.test_dataloader()
    probabilities = trained.probabilities(dataloader.images)
    digits = probabilities.argmax(1)

    with (RUN / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(100))
    assert [int(row["label"]) for row in rows] == dataloader.labels.tolist()
    assert [int(row["class"]) for row in rows] == digits.tolist()
    assert [float(row["probability"]) for row in rows] == pytest.approx(
        probabilities.amax(1).tolist(), abs=1e-6
    )

    metrics = json.loads((RUN / "metrics.json").read_text())
    correct = int((digits == dataloader.labels).sum())
    assert metrics["test"]["correct"] == correct
    assert metrics["test"]["checkpoint"] == "checkpoints/last.ckpt"
    assert metrics["test"]["step"] == metrics["fit"]["step"] == 6
    assert metrics["test"]["train_set"]["total"] == 275
    # for `runs`: 784 × 8 + 8 + 8 × 10 + 10, and the 300 − 275 images that validate
    assert metrics["fit"]["network"] == "784–8–10 relu"
    assert metrics["fit"]["parameters"] == 6370
    assert metrics["fit"]["val_images"] == 25
    assert torch.__version__.startswith(metrics["test"]["made_with"]["torch"])

    page = (RUN / "report.html").read_text()
    assert f"{correct} of 100" in page
    # the page loads nothing: every link is embedded data or leads into the page
    links = re.findall(r"""(?:src|href|url)\s*=?\s*["'(]([^"')]*)""", page)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "<script" not in page
    wrong = int((digits != dataloader.labels).sum())
    assert page.count('alt="image ') == min(12, wrong) + wrong
    for text in ("train/loss", "val/acc", "training loss of the batch", "hidden_dims:", "Wilson"):
        assert text in page

    assert metrics["test"]["dataset"] == "mnist"
    assert "of the test images of mnist" in page

    # another test replaces these results and keeps those of `fit`
    main(["test", "--ckpt_path", LAST, "--trainer.limit_test_batches", "1"])
    again = json.loads((RUN / "metrics.json").read_text())
    assert again["fit"] == metrics["fit"]
    assert "train_set" not in again["test"]


def test_fit_reports_on_the_validation_images(
    fit: Callable[..., None], data_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8]",
            "--model.label_smoothing", "0.1", "--checkpoint.monitor", "val/acc"]  # fmt: skip
    main([*argv, "--trainer.max_epochs", "4"])
    assert f"report     {RUN}/report.html\n" in capsys.readouterr().out
    metrics = json.loads((RUN / "metrics.json").read_text())
    assert metrics.keys() == {"fit"}
    assert metrics["fit"]["epochs"] == 4
    page = (RUN / "report.html").read_text()
    score = f"{100 * metrics['fit']['best']['score']:.2f} %"
    assert f'<span class="figure">{score}</span> of the validation images of mnist' in page
    steps = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)["global_step"]
    assert f"checkpoints/best.ckpt, after {steps} steps" in page
    assert "selected by val/acc" in page
    assert page.count("cannot be compared") == 1
    assert "784–8–10 relu" in page
    assert "label smoothing 0.1" in page
    assert '<td>model.label_smoothing</td><td class="words">0.1</td>' in page
    assert "<td>model.dropout</td>" not in page  # at its default
    assert "test images are" not in page
    assert not (RUN / "predictions.csv").exists()

    main(["test", "--ckpt_path", str(RUN)])
    tested = (RUN / "report.html").read_text()
    assert "of the test images of mnist" in tested
    capsys.readouterr()
    main(["fit", "--ckpt_path", LAST])  # all steps are done: nothing new to report
    assert "report     " not in capsys.readouterr().out
    assert (RUN / "report.html").read_text() == tested


def test_a_resumed_run_reports_on_its_best_checkpoint_though_it_is_older(
    fit: Callable[..., None],
) -> None:
    fit("--checkpoint.monitor", "val/acc", "--trainer.max_epochs", "1")
    score = json.loads((RUN / "metrics.json").read_text())["fit"]["best"]["score"]
    checkpoint = torch.load(LAST, weights_only=True)
    checkpoint["callbacks"]["RunCheckpoint"]["best_score"] = 1.0  # never to be exceeded
    torch.save(checkpoint, LAST)
    main(["fit", "--ckpt_path", LAST, "--trainer.max_epochs", "2"])
    assert torch.load(LAST, weights_only=True)["global_step"] == 6
    page = (RUN / "report.html").read_text()
    assert "checkpoints/best.ckpt, after 3 steps" in page
    assert f'<span class="figure">{100 * score:.2f} %' in page


def test_validation_on_the_test_set_or_on_part_of_the_images_shows_in_the_report(
    fit: Callable[..., None],
) -> None:
    fit("--data.val_size", "0", "--run_folder", "a")
    page = Path("a/report.html").read_text()
    assert "Validation watches the test set" in page
    assert "of the test images" in page
    fit("--data.val_size", "50", "--trainer.limit_val_batches", "0.5", "--run_folder", "b")
    score = json.loads(Path("b/metrics.json").read_text())["fit"]["val/acc"]
    assert f"{round(25 * score)} of 25;" in Path("b/report.html").read_text()


@pytest.mark.pictures
@pytest.mark.parametrize(
    "option",
    ["limit_val_batches=0", "logger=false", "fast_dev_run=true", "enable_checkpointing=false"],
)
def test_no_report_of_a_fit_without_validation_or_checkpoint(
    fit: Callable[..., None], option: str
) -> None:
    fit(f"--trainer.{option}")
    assert not list(Path().rglob("report.html"))


def test_fit_keeps_a_page_of_another_origin(
    fit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fit("--trainer.max_epochs", "1")
    (RUN / "report.html").write_text("mine")
    main(["fit", "--ckpt_path", LAST, "--trainer.max_epochs", "2"])
    assert "report.html is of another origin, and is kept" in capsys.readouterr().out
    error = refused(["test", "--ckpt_path", LAST], capsys)
    assert "holds report.html of something else: name another folder" in error
    assert (RUN / "report.html").read_text() == "mine"


def test_a_fit_whose_report_fails_has_its_result_all_the_same(
    fit: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    data_dir: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def diverge(*_: object) -> None:
        raise DivergenceError("Expected finite outputs")

    monkeypatch.setattr(report, "check_finite", diverge)
    main(["fit", "--data.data_dir", data_dir, "--trainer.max_epochs", "1"])
    assert "report     none: Expected finite outputs\n" in capsys.readouterr().out
    assert "fit" in json.loads((RUN / "metrics.json").read_text())


def test_a_link_shows_the_mistakes_of_one_pair(
    fit: Callable[..., None], browser: WebDriver
) -> None:
    fit("--trainer.max_epochs", "1", "--run_folder", "a<b>&c")
    page = Path("a<b>&c/report.html")
    assert "a&lt;b&gt;&amp;c" in page.read_text()
    browser.get(page.absolute().as_uri())
    shown = """return [...document.querySelectorAll('.all section')]
        .filter(each => each.checkVisibility()).map(each => each.id)"""
    assert browser.execute_script(shown) == []  # folded
    link = browser.find_element("css selector", ".matrix td a")
    pair = str(link.get_attribute("href")).partition("#")[2]
    link.click()
    assert browser.execute_script(shown) == [pair]
    images = f"return document.getElementById('{pair}').querySelectorAll('img').length"
    assert browser.execute_script(images) == int(link.text)
    browser.find_element("link text", "all").click()
    assert len(browser.execute_script(shown)) > 1


def test_a_browser_shows_all_images_and_loads_nothing(
    fit: Callable[..., None], browser: WebDriver
) -> None:
    fit()
    main(["test", "--ckpt_path", LAST])
    browser.get((RUN / "report.html").absolute().as_uri())
    widths = "return [...document.images].map(each => each.naturalWidth)"
    wrong = 100 - json.loads((RUN / "metrics.json").read_text())["test"]["correct"]
    # the first twelve with what speaks for the mistake beside them
    assert browser.execute_script(widths) == [28] * (2 * min(12, wrong) + wrong)
    figures = "return [...document.querySelectorAll('svg')].filter(s => s.clientWidth > 200).length"
    assert browser.execute_script(figures) == 4
    fetched = "return performance.getEntriesByType('resource').map(each => each.name)"
    assert all(name.startswith("data:") for name in browser.execute_script(fetched))


def test_a_checkpoint_outside_a_run_is_reported_where_asked(
    fit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fit("--trainer.max_epochs", "1")
    shutil.move(LAST, "alone.ckpt")
    main(["test", "--ckpt_path", "alone.ckpt"])
    assert "--report_folder" in capsys.readouterr().out
    assert not Path("report.html").exists()
    main(["test", "--ckpt_path", "alone.ckpt", "--report_folder", "a/b"])
    page = Path("a/b/report.html").read_text()
    assert "training loss of the batch" in page
    assert "hidden_dims:" in page
    assert json.loads(Path("a/b/metrics.json").read_text()).keys() == {"test"}


def test_files_of_the_run_are_escaped_in_the_page(fit: Callable[..., None]) -> None:
    fit()
    with (RUN / "config.yaml").open("a") as file:
        file.write("# <script>alert(1)</script>\n")
    (RUN / "metrics.json").write_text('{"fit": {"made_with": {"torch": "<b>"}, "seconds": "x"}}')
    main(["test", "--ckpt_path", LAST])
    page = (RUN / "report.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "<b>" not in page


def test_a_report_in_another_folder_shows_the_run_of_the_checkpoint(
    fit: Callable[..., None],
) -> None:
    fit("--run_folder", "a", "--model.activation", "tanh")
    fit("--run_folder", "b", "--tensorboard.enabled", "false")
    main(["test", "--ckpt_path", "a/checkpoints/last.ckpt", "--report_folder", "b"])
    page = Path("b/report.html").read_text()
    assert "activation: tanh" in page
    assert "train/loss" in page
    assert json.loads(Path("b/metrics.json").read_text()).keys() == {"test"}


def test_no_accuracy_is_logged_for_digits_without_images(fit: Callable[..., None]) -> None:
    fit("--data.val_size", "3", "--data.data_dir", "tiny")
    data = load_trained(LAST).data()
    data.setup("fit")
    dataloader = data.val_dataloader()
    digits = set(dataloader.labels[dataloader.indices].tolist())
    logged = {tag for tag in read_curves(RUN) if tag.startswith("val_acc_of_class")}
    assert logged == {f"val_acc_of_class/{digit}" for digit in digits}


def test_outputs_that_are_not_finite_are_an_error_and_leave_no_report(
    fit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fit("--trainer.max_epochs", "1", "--tensorboard.enabled", "false")
    checkpoint = torch.load(LAST, weights_only=True)
    for weight in checkpoint["state_dict"].values():
        if weight.is_floating_point() and weight.dim() == 2:
            weight.fill_(3e38)
    torch.save(checkpoint, LAST)
    page = (RUN / "report.html").read_text()  # of `fit`
    with pytest.raises(SystemExit, match="1"):
        main(["test", "--ckpt_path", LAST])
    assert (
        "Expected finite outputs of the network, but got infinity or NaN for "
        in capsys.readouterr().err
    )
    assert (RUN / "report.html").read_text() == page
    assert "test" not in json.loads((RUN / "metrics.json").read_text())


@pytest.mark.parametrize(
    "content", ["", "[]", "[" * 200_000, "{", '{"fit": 3}', '{"fit": {"made_with": 1}}']
)
def test_a_damaged_metrics_file_is_replaced(fit: Callable[..., None], content: str) -> None:
    fit("--trainer.max_epochs", "1", "--tensorboard.enabled", "false")
    (RUN / "metrics.json").write_text(content)
    main(["test", "--ckpt_path", LAST])
    assert json.loads((RUN / "metrics.json").read_text())["test"]["total"] == 100


def test_a_report_replaces_no_file_of_another_origin(
    fit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fit()
    Path("mine").mkdir()
    Path("mine/predictions.csv").write_text("mine")
    command = ["test", "--ckpt_path", LAST, "--report_folder", "mine"]
    capsys.readouterr()
    assert "mine holds predictions.csv of something else" in refused(command, capsys)
    assert Path("mine/predictions.csv").read_text() == "mine"
    Path("mine/predictions.csv").unlink()
    for _ in range(2):  # the second one replaces its own
        main(command)
    assert Path("mine/report.html").is_file()


@pytest.mark.pictures
def test_no_report_without_a_logger_or_a_writable_folder(
    fit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fit()
    (RUN / "report.html").unlink()  # of `fit`
    main(["test", "--ckpt_path", LAST, "--trainer.logger", "false"])
    main(["test", "--ckpt_path", LAST, "--trainer.fast_dev_run", "true"])
    assert not (RUN / "report.html").exists()
    Path("file").touch()
    with pytest.raises(SystemExit, match="2"):
        main(["test", "--ckpt_path", LAST, "--report_folder", "file"])
    assert "Expected --report_folder to be a folder, but got file" in capsys.readouterr().err


def test_what_test_wrote_goes_when_the_run_is_trained_further(fit: Callable[..., None]) -> None:
    fit()
    main(["test", "--ckpt_path", LAST])
    assert "test" in read_metrics(RUN)
    more = ["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs", "3"]
    main([*more, "--trainer.limit_val_batches", "0"])
    assert "test" not in read_metrics(RUN)
    assert not (RUN / "predictions.csv").exists()
    assert not (RUN / "report.html").exists(), "no validation, no page"
    main([*more, "--trainer.limit_val_batches", "1.0"])  # all steps are done, the page is missing
    assert "of the validation images" in (RUN / "report.html").read_text()


@pytest.mark.parametrize(("steps", "epochs"), [("2", 0), ("3", 1), ("5", 1), ("6", 2)])
def test_only_complete_epochs_are_counted(
    fit: Callable[..., None], steps: str, epochs: int
) -> None:
    fit("--trainer.max_steps", steps)
    assert read_metrics(RUN)["fit"]["epochs"] == epochs


def test_a_run_is_complete_whatever_happens_to_its_page(
    data_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("fnn_lightning.commands.fit.report_fit", fail)
    main(["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8]"])
    assert "report     none: no memory\n" in capsys.readouterr().out
    assert fit_completed(read_metrics(RUN))


def test_a_test_on_other_data_leaves_the_report_of_the_run(
    fit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fit()
    before = (RUN / "report.html").read_bytes()
    other = ["test", "--ckpt_path", LAST, "--data.dataset", "digits"]
    main(other)
    out = capsys.readouterr().out
    assert "test set of digits: Got " in out
    assert "report     none: the run has other data: name a folder by --report_folder\n" in out
    assert (RUN / "report.html").read_bytes() == before
    assert "test" not in read_metrics(RUN)
    main([*other, "--report_folder", "other"])
    assert read_metrics(Path("other"))["test"]["dataset"] == "digits"
