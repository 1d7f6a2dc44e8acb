import io
import json
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fnn_lightning import __version__
from fnn_lightning.commands import export
from fnn_lightning.commands.main import main
from fnn_lightning.network import FNN, Activation
from fnn_lightning.runs.load import load_trained
from tests.support import TEST_SIZE

Capture = pytest.CaptureFixture[str]
RUN = "lightning_logs/version_0"

pytest.importorskip("onnx", reason="needs the extra [export]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [export]")
pytestmark = [
    # torch 2.14's exporters call what torch and Python have deprecated
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def run(data_dir: str, capsys: Capture) -> str:
    main(["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8]", "--model.pixel_mean",
          "0.13", "--model.pixel_std", "0.31", "--trainer.max_epochs", "1"])  # fmt: skip
    capsys.readouterr()
    return RUN


def load(path: Path) -> tuple[export.Predict, dict[str, str]]:
    """Load an exported file as a user would, without this project."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        assert [each.name for each in session.get_inputs()] == ["pixels"]
        assert session.get_inputs()[0].type == "tensor(uint8)"
        assert session.get_outputs()[0].type == "tensor(float)"
        return (
            lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0]),
            session.get_modelmeta().custom_metadata_map,
        )
    files = {"fnn_lightning.json": ""}
    program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=files)
    return program.module(), json.loads(files["fnn_lightning.json"])


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_export_agrees_and_its_metadata_says_so(run: str, suffix: str, capsys: Capture) -> None:
    path = Path(f"new/model{suffix}")
    main(["export", "--ckpt_path", run, "--output", str(path)])
    printed = capsys.readouterr().out
    trained = load_trained(run)
    predict, metadata = load(path)
    for count in (1, 2, 777):
        pixels = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8)
        probabilities = predict(pixels)
        assert probabilities.dtype == torch.float32
        assert probabilities.shape == (count, 10)
        assert torch.allclose(probabilities, trained.probabilities(pixels), atol=1e-6)

    data = trained.data()
    data.setup("test")
    source = data.test_dataloader()
    assert not isinstance(source, list)
    right = trained.probabilities(source.images).argmax(dim=1) == source.labels
    accuracy = float(right.double().mean())
    assert metadata["fnn_lightning"] == __version__
    assert json.loads(metadata["config"])["model"]["hidden_dims"] == [8]
    assert json.loads(metadata["config"])["model"]["pixel_mean"] == 0.13
    assert json.loads(metadata["class_names"]) == list("0123456789")
    assert metadata["framing"] == "mnist"
    assert metadata["compared_on"] == f"the {TEST_SIZE} test images"
    assert metadata["classes_agree"] == "all"
    assert float(metadata["accuracy"]) == pytest.approx(accuracy)
    assert 0 <= float(metadata["largest_difference"]) < 1e-5
    assert f"accuracy {100 * accuracy:.2f} %" in printed
    assert str(Path.cwd()).encode() not in path.read_bytes()
    assert str(Path(export.__file__).parent).encode() not in path.read_bytes()
    assert list(Path("new").iterdir()) == [path]


def test_without_data_random_images_are_compared(run: str, data_dir: str, capsys: Capture) -> None:
    Path(data_dir).rename("elsewhere")
    main(["export", "--ckpt_path", run, "--output", "model.pt2"])
    assert "on 1,000 images of random pixels" in capsys.readouterr().out
    metadata = load(Path("model.pt2"))[1]
    assert "accuracy" not in metadata
    assert not Path(data_dir).exists()  # nothing was downloaded


class Together(nn.Module):
    """Several networks in one export, since each export takes seconds."""

    def __init__(self, networks: list[FNN]) -> None:
        super().__init__()
        self.each = nn.ModuleList(map(export.Probabilities, networks))

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.stack([module(pixels) for module in self.each])


@pytest.mark.parametrize("to", [export.to_onnx, export.to_pt2])
def test_every_activation_and_a_net_without_one_export(to: Any) -> None:
    torch.manual_seed(0)
    settings: Any = [([6, 5], activation) for activation in get_args(Activation)]
    networks = [
        FNN(hidden_dims=widths, activation=activation, pixel_mean=0.1307, pixel_std=0.3081)
        for widths, activation in [*settings, ([], "relu")]
    ]
    predict, _ = to(Together(networks).eval())
    pixels = torch.randint(0, 256, (50, 28, 28), dtype=torch.uint8)
    scaled = (pixels.double().flatten(1) / 255 - 0.1307) / 0.3081
    found = predict(pixels)
    assert len(found) == 15
    for probabilities, network in zip(found, networks, strict=True):
        expected = network.layers.double()(scaled).softmax(dim=1).float()
        assert torch.allclose(probabilities, expected, atol=1e-5)
        assert (expected[0] != expected[1]).any()


def test_an_export_that_disagrees_is_not_written(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    original = export.Probabilities.forward

    def forward(self: export.Probabilities, pixels: Tensor) -> Tensor:
        return original(self, pixels).flip(1)

    monkeypatch.setattr(export.Probabilities, "forward", forward)
    Path("model.pt2").write_text("of yesterday")
    with pytest.raises(SystemExit) as stop:
        main(["export", "--ckpt_path", run, "--output", "model.pt2"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Expected the export to predict what the checkpoint does")
    assert error.count("\n") == 1
    assert Path("model.pt2").read_text() == "of yesterday"


def test_without_onnxruntime_the_message_says_how_to_install_it(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit):
        main(["export", "--ckpt_path", run, "--output", "model.onnx"])
    error = capsys.readouterr().err
    assert "onnxruntime is not installed: pip install -e '.[export]'" in error
    assert error.count("\n") == 1


BAD = {
    "": "Expected --output, but got none: python -m fnn_lightning export --output model.onnx",
    "--ckpt_path nothing.ckpt --output a.onnx": "there is no such file",
    f"--ckpt_path {RUN}": "Expected --output, but got none",
    f"--ckpt_path {RUN} --output model.h5": "to end in .onnx or .pt2, but got 'model.h5'",
    f"--ckpt_path {RUN} --output folder.pt2": "it is a folder",
    f"--ckpt_path {RUN} --output {RUN}/config.yaml/a.pt2": "in a folder that can be written",
    f"--ckpt_path {RUN} --outptu a.pt2": "did you mean output?",
    f"--ckpt_path {RUN}/config.yaml --output a.pt2": "it is damaged or something else",
}


@pytest.mark.parametrize("argv", BAD)
@pytest.mark.usefixtures("run")
def test_bad_arguments_end_in_one_line(argv: str, capsys: Capture) -> None:
    Path("folder.pt2").mkdir()
    before = set(Path().glob("**/*"))
    with pytest.raises(SystemExit) as stop:
        main(["export", *argv.split()])
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert BAD[argv] in output.err
    assert set(Path().glob("**/*")) == before


def test_damaged_data_is_an_error(run: str, data_dir: str, capsys: Capture) -> None:
    images = Path(data_dir, "MNIST", "raw", "t10k-images-idx3-ubyte")
    images.write_bytes(images.read_bytes()[:-9])
    with pytest.raises(SystemExit):
        main(["export", "--ckpt_path", run, "--output", "model.pt2"])
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("model.pt2").exists()


def test_onnxruntime_needs_only_numpy_arrays(run: str) -> None:
    main(["export", "--ckpt_path", run, "--output", "model.onnx"])
    probabilities = onnxruntime.InferenceSession("model.onnx").run(
        None, {"pixels": np.zeros((3, 28, 28), np.uint8)}
    )[0]
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(3))
