"""The subcommand `export`: one file that turns raw pixels into probabilities, checked first."""

import io
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fnn_lightning import __version__
from fnn_lightning.commands.options import add_ckpt_path, load_given, make_parser, parse
from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.data.datasets import check_classes, is_path
from fnn_lightning.datamodule import EVAL_BATCH_SIZE, MNISTDataModule
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.calibration import to_probabilities
from fnn_lightning.network import FNN
from fnn_lightning.runs.files import output_file, write_atomic
from fnn_lightning.runs.load import TrainedNetwork
from fnn_lightning.runs.progress import says
from fnn_lightning.training.hparams import OF_DATA

RANDOM_IMAGES = 1_000  # to compare on without a test set
METADATA_FILE = "fnn_lightning.json"  # within a .pt2

Predict = Callable[[Tensor], Tensor]
"""From pixels, `uint8` of shape `(N, 28, 28)`, to probabilities, `float32` of shape
`(N, classes)`."""


class Probabilities(nn.Module):
    """The module to export: the network, which scales the pixels itself, and a softmax.

    Args:
        network: The network.
        temperature: What its logits are divided by; None for 1.

    Example:
        >>> pixels = torch.zeros(2, 28, 28, dtype=torch.uint8)
        >>> Probabilities(FNN(hidden_dims=[8]))(pixels).shape
        torch.Size([2, 10])
    """

    def __init__(self, network: FNN, temperature: float | None = None) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, pixels: Tensor) -> Tensor:
        """Turn pixels, `uint8` `(N, 28, 28)`, into probabilities, `float32` `(N, classes)`."""
        return to_probabilities(self.network(pixels).float(), self.temperature)


def main(argv: list[str]) -> None:
    """Export a checkpoint to ONNX or to PyTorch's .pt2.

    Args:
        argv: The command line after `export`.

    Raises:
        InputError: If an argument, the checkpoint or the data set is invalid, a package is
            missing, or the export predicts another class for any image. No file is written then.
    """
    parser = make_parser(
        "export",
        "Writes one file that turns raw pixels, uint8 (N, 28, 28), into the probabilities of the K "
        "classes, float32 (N, K). First compares it with the checkpoint on the test set.",
    )
    add_ckpt_path(parser)
    parser.add_argument(
        "--output", type=str, required=True, help="File: .onnx, or .pt2 for torch.export."
    )
    parser.add_argument(
        "--data_dir",
        type=str | None,
        default=None,
        help="Folder of the data; by default that of the run.",
    )
    options = parse(parser, argv)
    path = output_file(options.output, (".onnx", ".pt2"))
    if path.suffix.lower() == ".onnx":
        check_onnx()
    trained = load_given(options.ckpt_path, "export")
    images, labels, name = images_to_compare(trained, options.data_dir)
    with says(f"exporting {path}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about their own internals
        export = to_onnx if path.suffix.lower() == ".onnx" else to_pt2
        predict, encode = export(
            Probabilities(trained.module.network, trained.module.temperature).eval()
        )
        agreement = check_agreement(predict, trained, images, labels)
        content = encode(metadata(trained, name, agreement))
    write_atomic(path, content)
    accuracy = f", accuracy {100 * agreement['accuracy']:.2f} %" if "accuracy" in agreement else ""
    print(
        f"exported {path}, {len(content):,} bytes: uint8 (N, 28, 28) to float32 "
        f"(N, {len(trained.module.class_names)})\n"
        f"compared with the checkpoint on {name}: the same classes, largest difference "
        f"{agreement['largest_difference']:.1e}{accuracy}"
    )


def check_onnx() -> None:
    """Check that the packages for ONNX are installed.

    Raises:
        InputError: If one is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"Expected onnx, onnxruntime and onnxscript, but {error.name} is not installed: "
            "pip install -e '.[export]', or export to .pt2"
        ) from error


def images_to_compare(
    trained: TrainedNetwork, data_dir: str | None
) -> tuple[Tensor, Tensor | None, str]:
    """Load the test set or, if that would need a download or it is gone, make random images.

    Returns:
        Images, `uint8` of shape `(N, 28, 28)`; their labels, None for random images; what they
        are, in words.

    Raises:
        InputError: If MNIST's test set is damaged.
    """
    data = trained.data(data_dir=data_dir)
    if has_test_set(data, trained.module.class_names):
        source = data.test_dataloader()
        assert isinstance(source, InMemoryDataLoader)
        return source.images, source.labels, f"the {len(source.images):,} test images"
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (RANDOM_IMAGES, 28, 28), generator=generator)
    return pixels.to(torch.uint8), None, f"{RANDOM_IMAGES:,} images of random pixels"


def has_test_set(data: MNISTDataModule, class_names: Sequence[str]) -> bool:
    """Read the test set into memory, if it is there and has the classes of the network.

    Raises:
        InputError: If MNIST's test set is damaged.
    """
    if not is_path(data.dataset):
        here = data.is_present()
        if here:
            data.setup("test")
        return here
    try:
        data.prepare_data()  # downloads nothing
        data.setup("test")
        check_classes(class_names, data.class_names)
    except InputError:  # data of one's own may have changed since, or be gone
        return False
    return True


def to_onnx(module: nn.Module) -> tuple[Predict, Callable[[dict[str, str]], bytes]]:
    """Export to ONNX.

    Returns:
        A function that predicts with the exported model, in onnxruntime, and one that returns the
        file's content, given its metadata.
    """
    import onnxruntime

    program = torch.onnx.export(
        module,
        (torch.zeros(2, 28, 28, dtype=torch.uint8),),
        input_names=["pixels"],
        output_names=["probabilities"],
        dynamic_shapes={"pixels": {0: torch.export.Dim("N")}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # paths of source files on this machine
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def predict(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["probabilities"], {"pixels": pixels.numpy()})[0])

    def encode(metadata: dict[str, str]) -> bytes:
        import onnx

        onnx.helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString()
        return content

    return predict, encode


def to_pt2(module: nn.Module) -> tuple[Predict, Callable[[dict[str, str]], bytes]]:
    """Export to PyTorch's .pt2 with `torch.export`; returns the same as `to_onnx`."""
    program = torch.export.export(
        module,
        (torch.zeros(2, 28, 28, dtype=torch.uint8),),
        dynamic_shapes={"pixels": {0: torch.export.Dim("N")}},
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of source files on this machine

    def encode(metadata: dict[str, str]) -> bytes:
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={METADATA_FILE: json.dumps(metadata)})
        return content.getvalue()

    loaded = torch.export.load(io.BytesIO(encode({}))).module()

    def predict(pixels: Tensor) -> Tensor:
        probabilities: Tensor = loaded(pixels)
        return probabilities

    return predict, encode


@torch.inference_mode()
def check_agreement(
    predict: Predict, trained: TrainedNetwork, images: Tensor, labels: Tensor | None
) -> dict[str, float]:
    """Check that an export predicts what its checkpoint does.

    Args:
        predict: Predicts with the export.
        trained: The checkpoint.
        images: `uint8` of shape `(N, 28, 28)`.
        labels: Their classes, of shape `(N,)`, if known.

    Returns:
        `largest_difference` of any probability and, with labels, the export's `accuracy`.

    Raises:
        InputError: If they predict different classes for any image, or a probability is not
            finite.
    """
    expected = trained.probabilities(images)
    probabilities = torch.cat([predict(batch) for batch in torch.split(images, EVAL_BATCH_SIZE)])
    classes = probabilities.argmax(dim=1)
    differ = int((classes != expected.argmax(dim=1)).sum())
    if not bool(probabilities.isfinite().all()):
        raise InputError(
            "Expected finite probabilities of the export, but got NaN or infinity; nothing was "
            "written"
        )
    if differ:
        raise InputError(
            "Expected the export to predict what the checkpoint does, but got another class for "
            f"{differ:,} of {len(images):,} images; nothing was written"
        )
    agreement = {"largest_difference": float((probabilities - expected).abs().max())}
    if labels is not None:
        agreement["accuracy"] = float((classes == labels).double().mean())
    return agreement


def metadata(trained: TrainedNetwork, name: str, agreement: dict[str, float]) -> dict[str, str]:
    """Collect an export's metadata: where it comes from, and how it was compared.

    Args:
        trained: The checkpoint.
        name: What it was compared on.
        agreement: What `check_agreement` returns.
    """
    data = dict(trained.checkpoint.get("datamodule_hyper_parameters", {}))
    data.pop("data_dir", None)  # a path on this machine
    stored = trained.checkpoint["hyper_parameters"]
    model = {name: value for name, value in stored.items() if name not in OF_DATA}
    config = {"model": model, "data": data}
    return {
        "fnn_lightning": __version__,
        "torch": str(torch.__version__),
        "checkpoint": Path(trained.path).name,
        "global_step": str(trained.checkpoint["global_step"]),
        "class_names": json.dumps(list(trained.module.class_names)),
        "framing": trained.module.framing,
        "temperature": repr(trained.module.temperature or 1.0),
        "config": json.dumps(config, default=str),
        "compared_on": name,
        "classes_agree": "all",
        **{key: repr(value) for key, value in agreement.items()},
    }
