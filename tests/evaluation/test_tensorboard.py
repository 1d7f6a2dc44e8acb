"""What TensorBoard shows, asked of a really started one through its HTTP data API."""

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.webdriver.remote.webdriver import WebDriver

from fnn_lightning.commands.lightning_cli import FNNCLI
from fnn_lightning.commands.main import main
from fnn_lightning.runs.load import load_trained
from tests.support import LAST, RUN, ask, fetch


@pytest.fixture
def trained(data_dir: str) -> FNNCLI:
    """Train and test a network, so that there is a run to look at."""
    cli = FNNCLI(["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8, 9]",
                  "--trainer.max_steps", "6", "--trainer.max_epochs", "9",
                  "--data.batch_size", "70", "--trainer.log_every_n_steps", "2",
                  "--tensorboard.histograms", "true"])  # fmt: skip
    main(["test", "--ckpt_path", LAST])
    return cli


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


def test_tensorboard_shows_the_run(trained: FNNCLI, tensorboard: str) -> None:
    # the curves
    tags = set(ask(f"{tensorboard}/plugin/scalars/tags")["version_0"])
    metrics = {
        f"{split}/{metric}" for split in ("train", "val", "test") for metric in ("loss", "acc")
    }
    digits = {f"{split}_acc_of_digit/{k}" for split in ("val", "test") for k in range(10)}
    assert tags == {"lr"} | metrics | digits
    for split in ("val", "test"):
        counts = confusion(split)
        for k in range(10):
            tag = f"{split}_acc_of_digit%2F{k}"
            points = ask(f"{tensorboard}/plugin/scalars/scalars?run=version_0&tag={tag}")
            assert [step for _, step, _ in points] == ([4, 6] if split == "val" else [6])
            right = int(counts[k, k]) / max(1, int(counts[k].sum()))
            assert points[-1][2] == pytest.approx(right)

    # the pictures
    shown = ask(f"{tensorboard}/plugin/images/tags")["version_0"]
    assert set(shown) == {
        *("val/confusion", "val/mistakes", "test/confusion", "test/mistakes", "first_layer")
    }
    images = ask(f"{tensorboard}/plugin/images/images?run=version_0&tag=val/confusion&sample=0")
    assert images[-1]["step"] == 6  # that of the last step is always drawn
    shown = picture(tensorboard, "first_layer")
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
        tag = f"{kind}/layers.4.bias"
        points = ask(f"{tensorboard}/plugin/histograms/histograms?run=version_0&tag={tag}")
        assert [step for _, step, _ in points] == [6]  # the end of training, in mid-epoch
    assert set(histograms) == {f"{kind}/{n}" for kind in ("weights", "gradients") for n in names}

    # the network, and the charts put together
    graph = fetch(f"{tensorboard}/plugin/graphs/graph?run=version_0").decode()
    nodes = ["pixels", "scale", "0_Linear", "1_ReLU", "2_Linear",
             "3_ReLU", "4_Linear", "logits"]  # fmt: skip
    assert [line.split('"')[1] for line in graph.splitlines() if " name:" in line] == nodes
    assert "in_features=8, out_features=9" in graph
    layout = ask(f"{tensorboard}/plugin/custom_scalars/layout")
    charts = {chart["title"]: chart["multiline"]["tag"] for chart in layout["category"][0]["chart"]}
    assert charts["acc"] == ["train/acc", "val/acc", "test/acc"]
    for category in layout["category"]:
        for chart in category["chart"]:
            assert set(chart["multiline"]["tag"]) <= tags


def test_tensorboard_compares_settings_and_results(trained: FNNCLI, tensorboard: str) -> None:
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
    assert shown["val/acc"] == pytest.approx(float(trained.trainer.callback_metrics["val/acc"]))
    assert "test/acc" in shown


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
    trained: FNNCLI, tensorboard: str, browser: WebDriver
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
    assert shows("custom_scalars", "train and validation", "accuracy of each digit")
    assert shows("graphs", "0_Linear", "4_Linear")


def test_tensorboard_plots_can_be_switched_off(data_dir: str) -> None:
    main(["fit", "--data.data_dir", data_dir, "--tensorboard.enabled", "false"])
    assert not (RUN / "loss.png").exists()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = EventAccumulator(str(RUN)).Reload().Tags()
    assert (tags["images"], tags["histograms"], tags["graph"]) == ([], [], False)
    assert not any("digit" in tag for tag in tags["scalars"])
