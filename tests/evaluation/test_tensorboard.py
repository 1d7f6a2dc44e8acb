"""What TensorBoard shows, asked of a really started one through its HTTP data API."""

import io
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image
from selenium.webdriver.remote.webdriver import WebDriver
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fnn_lightning.commands.main import main
from fnn_lightning.data.datasets import DIGITS
from fnn_lightning.evaluation import plots
from fnn_lightning.runs.load import load_trained
from fnn_lightning.runs.loggers import read_curves
from fnn_lightning.runs.run_folder import read_metrics
from tests.support import LAST, RUN, ask, fetch, fit, write_tiny_files

pytestmark = pytest.mark.pictures


@pytest.fixture(scope="module")
def folder_of_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and test a network for all tests, so that there is a run to look at."""
    folder = tmp_path_factory.mktemp("trained")
    data_dir = write_tiny_files(folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8, 9]",
              "--trainer.max_steps", "6", "--trainer.max_epochs", "9",
              "--data.batch_size", "70", "--trainer.log_every_n_steps", "2",
              "--tensorboard.histograms", "true"])  # fmt: skip
        main(["test", "--ckpt_path", LAST, "--tensorboard.projector", "true"])
    return folder


@pytest.fixture
def trained(folder_of_run: Path) -> Path:
    """Return the folder of a run that has been trained and tested."""
    shutil.copytree(folder_of_run / "lightning_logs", "lightning_logs")
    return RUN


def confusion(split: str) -> torch.Tensor:
    """Count by hand which digit was taken for which."""
    trained = load_trained(LAST)
    data = trained.data()
    data.setup("fit" if split == "val" else "test")
    source = data.val_dataloader() if split == "val" else data.test_dataloader()
    assert not isinstance(source, list)
    counts = torch.zeros(10, 10, dtype=torch.long)
    digits = trained.probabilities(source.images[source.indices]).argmax(1)
    for label, digit in zip(source.labels[source.indices], digits, strict=True):
        counts[label, digit] += 1
    return counts


def picture(url: str, tag: str, index: int = 0) -> np.ndarray:
    shown = ask(f"{url}/plugin/images/images?run=version_0&tag={tag}&sample=0")
    return np.asarray(Image.open(io.BytesIO(fetch(
        f"{url}/plugin/images/individualImage?{shown[index]['query']}"))))  # fmt: skip


def test_tensorboard_shows_the_run(trained: Path, tensorboard: str) -> None:
    # the curves
    tags = set(ask(f"{tensorboard}/plugin/scalars/tags")["version_0"])
    metrics = {
        f"{split}/{metric}" for split in ("train", "val", "z_test") for metric in ("loss", "acc")
    }
    digits = {f"z_{split}_acc_of_class/{k}" for split in ("val", "test") for k in range(10)}
    metrics |= {f"z_{split}/{name}" for split in ("val", "test") for name in ("balanced_acc", "f1")}
    assert tags == {"z_train/lr"} | metrics | digits
    for split in ("val", "test"):
        counts = confusion(split)
        for k in range(10):
            tag = f"z_{split}_acc_of_class%2F{k}"
            points = ask(f"{tensorboard}/plugin/scalars/scalars?run=version_0&tag={tag}")
            assert [step for _, step, _ in points] == ([4, 6] if split == "val" else [6])
            right = int(counts[k, k]) / max(1, int(counts[k].sum()))
            assert points[-1][2] == pytest.approx(right)

    # the pictures
    shown = ask(f"{tensorboard}/plugin/images/tags")["version_0"]
    assert set(shown) == {
        f"z_pictures/{name}"
        for name in (
            *("val_confusion", "val_mistakes", "val_acc_of_class"),
            *("test_confusion", "test_mistakes", "first_layer"),
        )
    }
    tag = "z_pictures/val_confusion"
    images = ask(f"{tensorboard}/plugin/images/images?run=version_0&tag={tag}&sample=0")
    assert images[-1]["step"] == 6  # that of the last step is always drawn
    shown = picture(tensorboard, "z_pictures/first_layer")
    assert shown.shape == (60 + 4, 8 * (56 + 4) + 4, 3)
    weight = torch.load(LAST, weights_only=True)["state_dict"]["network.layers.0.weight"]
    for unit in range(8):
        tile = shown[4:60:2, 4 + 60 * unit : 60 + 60 * unit : 2, 0]
        grey = (weight[unit] / weight[unit].abs().max() / 2 + 0.5).view(28, 28)
        assert np.abs(tile / 255 - grey.numpy()).max() < 0.01

    # weights and gradients
    names = {f"layers.{k}.{part}" for k in (0, 2, 4) for part in ("weight", "bias")}
    histograms = ask(f"{tensorboard}/plugin/histograms/tags")["version_0"]
    for kind in ("weights", "gradients"):
        tag = f"z_{kind}/layers.4.bias"
        points = ask(f"{tensorboard}/plugin/histograms/histograms?run=version_0&tag={tag}")
        assert [step for _, step, _ in points] == [6]  # the end of training, in mid-epoch
    assert set(histograms) == {f"z_{kind}/{n}" for kind in ("weights", "gradients") for n in names}

    # the network, and the charts put together
    graph = fetch(f"{tensorboard}/plugin/graphs/graph?run=version_0").decode()
    nodes = ["pixels", "scale", "0_Linear", "1_ReLU", "2_Linear",
             "3_ReLU", "4_Linear", "logits"]  # fmt: skip
    assert [line.split('"')[1] for line in graph.splitlines() if " name:" in line] == nodes
    assert "in_features=8, out_features=9" in graph
    layout = ask(f"{tensorboard}/plugin/custom_scalars/layout")
    charts = {chart["title"]: chart["multiline"]["tag"] for chart in layout["category"][0]["chart"]}
    for shown in (["train/acc", "val/acc", "z_test/acc"], ["train/acc", "val/acc", "test/acc"]):
        assert all(map(re.match, charts["acc"], shown)), "our logger's tags and Lightning's"
    for category in layout["category"]:
        for chart in category["chart"]:
            for pattern in chart["multiline"]["tag"]:
                assert len([tag for tag in tags if re.match(pattern, tag)]) == 1


def test_tensorboard_compares_settings_and_results(trained: Path, tensorboard: str) -> None:
    experiment = ask(f"{tensorboard}/plugin/hparams/experiment", {"experimentName": ""})
    metrics = [info["name"]["tag"] for info in experiment["metricInfos"]]
    statuses = {"allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"]}
    columns = {"colParams": [{"metric": {"tag": tag}} for tag in metrics], "sliceSize": 10}
    groups = ask(f"{tensorboard}/plugin/hparams/session_groups", {**statuses, **columns})
    (run,) = groups["sessionGroups"]
    settings = {
        **{"depth": 2, "width": 9, "activation": "relu", "hidden_dims": "[8, 9]"},
        **{"optimizer": "SGD", "lr": 0.1, "batch_size": 70},
    }
    assert settings.items() <= run["hparams"].items()
    shown = {value["name"]["tag"]: value["value"] for value in run["metricValues"]}
    assert "hp_metric" not in shown
    assert shown["val/acc"] == pytest.approx(read_metrics(trained)["fit"]["val/acc"])
    assert "z_test/acc" in shown
    # the tab shows the first five metrics
    assert metrics[:5] == ["train/acc", "train/loss", "val/acc", "val/loss", "z_test/acc"]


def test_settings_that_differ_are_the_first_columns(data_dir: str, tensorboard: str) -> None:
    command = ["fit", "--data.data_dir", data_dir, "--trainer.max_epochs", "1"]
    main([*command, "--model.hidden_dims", "[8]"])
    main([*command, "--model.hidden_dims", "[9]"])
    for _ in range(60):
        experiment = ask(f"{tensorboard}/plugin/hparams/experiment", {"experimentName": ""})
        if any(info.get("differs") for info in experiment["hparamInfos"]):
            break
        time.sleep(0.5)  # it has not read the second run yet
    differs = {info["name"] for info in experiment["hparamInfos"] if info.get("differs")}
    assert differs == {"hidden_dims", "width"}
    assert {info["name"] for info in experiment["hparamInfos"][:2]} == differs


@pytest.mark.parametrize("load_fast", ["true", "false"])
def test_tags_have_names_and_descriptions(
    data_dir: str, load_fast: str, start_tensorboard: Callable[[str], str]
) -> None:
    main(["fit", "--data.data_dir", data_dir, "--trainer.max_epochs", "1"])
    main(["test", "--ckpt_path", LAST])
    url = start_tensorboard(load_fast)
    shown = ask(f"{url}/plugin/scalars/tags")["version_0"]
    assert shown["z_test/acc"]["displayName"] == "test/acc"
    assert "test images classified correctly" in shown["z_test/acc"]["description"]
    assert "Learning rate" in shown["z_train/lr"]["description"]
    assert "validation images of this class" in shown["z_val_acc_of_class/3"]["description"]
    assert all(info["description"] for info in shown.values())
    pictures = ask(f"{url}/plugin/images/tags")["version_0"]
    assert pictures["z_pictures/val_confusion"]["displayName"] == "val_confusion"
    assert all(info["description"] for info in pictures.values())


def texts(run: Path) -> dict[str, str]:
    events = EventAccumulator(str(run)).Reload()
    named = {tag.removesuffix("/text_summary"): tag for tag in events.Tags()["tensors"]}
    return {
        name: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for name, tag in named.items()
        if tag.endswith("/text_summary")
    }


def test_text_holds_config_and_layers(data_dir: str) -> None:
    fit(data_dir)
    shown = texts(RUN)
    config = (RUN / "config.yaml").read_text(encoding="utf-8")
    assert shown["run_config"] == f"```yaml\n{config}```"
    assert shown["layers"].splitlines()[-2:] == [
        "| `2` Linear | (B, 10) | 90 |",
        f"| total | | {784 * 8 + 8 + 90:,} |",
    ]
    assert "notes" not in shown


def test_notes_say_which_curves_cannot_be_compared(data_dir: str) -> None:
    fit(data_dir, "--model.label_smoothing", "0.1", "--data.val_size", "0")
    notes = texts(RUN)["notes"]
    assert "`train/loss` is not comparable with `val/loss`" in notes
    assert "`label_smoothing` is 0.1" in notes
    assert "measured on the test set" in notes


def test_the_projector_shows_the_last_hidden_layer(trained: Path, tensorboard: str) -> None:
    fetch(f"{tensorboard}/plugin/images/tags")  # it has started, and read the run
    (shown,) = ask(f"{tensorboard}/plugin/projector/info?run=version_0")["embeddings"]
    name = quote(shown["tensorName"])
    assert shown["tensorShape"] == [100, 9]
    values = fetch(f"{tensorboard}/plugin/projector/tensor?run=version_0&name={name}")
    net = load_trained(LAST)
    data = net.data()
    data.setup("test")
    source = data.test_dataloader()
    assert not isinstance(source, list)
    network = net.module.network.eval()
    with torch.no_grad():
        expected = network.layers[:-1](network.scale(source.images[source.indices]))
    shape = (100, 9)
    assert np.abs(np.frombuffer(values, np.float32).reshape(shape) - expected.numpy()).max() < 6e-4
    table = fetch(f"{tensorboard}/plugin/projector/metadata?run=version_0&name={name}").decode()
    header, *rows = [line.split("\t") for line in table.splitlines()]
    assert header == ["class", "predicted", "caption"]
    assert [int(row[0]) for row in rows] == source.labels[source.indices].tolist()
    assert all((row[0] == row[2]) == (row[0] == row[1]) for row in rows)
    sprite = fetch(f"{tensorboard}/plugin/projector/sprite_image?run=version_0&name={name}")
    pixels = np.asarray(Image.open(io.BytesIO(sprite)).convert("L"))
    assert pixels.shape == (280, 280)
    assert np.array_equal(pixels[28:56, 84:112], source.images[source.indices[13]])


def test_a_second_test_replaces_the_projection(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["test", "--ckpt_path", LAST, "--tensorboard.projector", "true"])
    assert "warning" not in capsys.readouterr().out


def test_the_curves_of_the_digits_go_on_when_a_run_resumes(
    data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(plots, "rasterize", lambda figure: torch.zeros(3, 2, 2))
    monkeypatch.setattr(plots, "class_curves_figure", lambda curves, _: drawn.append(curves))
    fit(data_dir, "--trainer.max_epochs", "1")
    main(["fit", "--ckpt_path", LAST, "--trainer.max_epochs", "2"])
    logged = read_curves(RUN)
    for digit, curve in drawn[-1].items():
        assert [step for step, _ in curve] == [3, 6]
        shares = [share for _, share in logged[f"val_acc_of_class/{digit}"]]
        assert [share for _, share in curve] == pytest.approx(shares)


def test_each_digit_has_its_own_colour() -> None:
    curves = {digit: [(1, 0.5), (2, 0.1 * digit)] for digit in range(10) if digit != 3}
    (axes,) = plots.class_curves_figure(curves, DIGITS).axes
    colours = {line.get_label(): to_hex(line.get_color()) for line in axes.lines}
    assert colours["4"] == "#9467bd"  # the fifth of tab10, though digit 3 has no images
    assert len(set(colours.values())) == 9


# TensorBoard's pages are components in one another, each a document of its own to the browser.
DRAWN = """
const drawn = [];
const visit = node => {
  if (node.matches?.("img") && node.complete && node.naturalWidth) drawn.push(node.src);
  if (node.nodeType === Node.TEXT_NODE) drawn.push(node.textContent.trim());
  for (const child of [...(node.shadowRoot?.childNodes ?? []), ...node.childNodes]) visit(child);
};
visit(document.body);
return drawn;
"""


def test_tensorboard_shows_its_pictures_in_a_browser(
    trained: Path, tensorboard: str, browser: WebDriver
) -> None:
    fetch(f"{tensorboard}/plugin/images/tags")  # it has started, and read the run
    page = tensorboard.removesuffix("/data")

    def shows(tab: str, *wanted: str) -> bool:
        browser.get(f"{page}/#{tab}")
        browser.refresh()
        drawn: list[str] = []
        for _ in range(60):
            drawn = browser.execute_script(DRAWN)
            if all(any(text in each for each in drawn) for text in wanted):
                return True
            time.sleep(0.5)
        raise AssertionError(drawn)

    assert shows("images", "first_layer", "confusion", "mistakes", "individualImage")
    assert shows("text", "layers/text_summary", "6,280")
    assert shows("custom_scalars", "train and validation", "accuracy of each class")
    assert shows("graphs", "0_Linear", "4_Linear")


def test_tensorboard_plots_can_be_switched_off(data_dir: str) -> None:
    main(["fit", "--data.data_dir", data_dir, "--tensorboard.enabled", "false"])
    assert not (RUN / "loss.png").exists()
    tags = EventAccumulator(str(RUN)).Reload().Tags()
    assert (tags["images"], tags["histograms"], tags["graph"]) == ([], [], False)
    assert not any("acc_of_class" in tag for tag in tags["scalars"])
