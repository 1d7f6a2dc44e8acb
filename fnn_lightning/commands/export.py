"""The subcommand export: one file from raw pixels to probabilities, which agrees with its net."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fnn_lightning import __version__
from fnn_lightning.commands.options import make_parser, output_file, parse
from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.data.mnist_files import raw_dir
from fnn_lightning.datamodule import EVAL_BATCH_SIZE
from fnn_lightning.errors import InputError
from fnn_lightning.network import FNN
from fnn_lightning.runs.checkpoint_io import write_atomic
from fnn_lightning.runs.load import TrainedNetwork, load_trained

RANDOM_IMAGES = 1_000  # to compare on, where there is no test set
ENTRY = "fnn_lightning.json"  # what describes the file within a .pt2

Run = Callable[[Tensor], Tensor]
"""Pixels, `uint8` of shape `(N, 28, 28)`, to probabilities, `float32` of shape `(N, 10)`."""


class Probabilities(nn.Module):
    """What is exported: the network with its scaling of the pixels before and softmax after it."""

    def __init__(self, network: FNN) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute probabilities, `float32` of shape `(N, 10)`, from raw pixels `(N, 28, 28)`."""
        probabilities: Tensor = self.network(pixels).float().softmax(dim=1)
        return probabilities


def main(argv: list[str]) -> None:
    """Export a checkpoint to ONNX or to PyTorch's .pt2.

    Args:
        argv: What follows the subcommand.

    Raises:
        InputError: If the argv, the checkpoint or the data cannot be used, a package is missing,
            or what was exported predicts another digit for any image; then no file is left.
    """
    parser = make_parser(
        "export",
        "Writes one file that takes raw pixels, uint8 (N, 28, 28), and gives the probabilities of "
        "the digits, float32 (N, 10), after comparing it with the checkpoint on the test set.",
    )
    parser.add_argument(
        "--ckpt_path", type=str, required=True, help="Checkpoint, or the folder of a run."
    )
    parser.add_argument(
        "--output", type=str, required=True, help="File: .onnx, or .pt2 for torch.export."
    )
    parser.add_argument(
        "--data_dir",
        type=str | None,
        default=None,
        help="Where the test set lives, if it is not where the checkpoint says.",
    )
    options = parse(parser, argv)
    path = output_file(options.output, (".onnx", ".pt2"))
    if path.suffix.lower() == ".onnx":
        check_onnx()
    trained = load_trained(options.ckpt_path)
    images, labels, name = images_to_compare(trained, options.data_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own, about their insides
        export = to_onnx if path.suffix.lower() == ".onnx" else to_pt2
        run, encode = export(Probabilities(trained.module.network).eval())
        found = agreement(run, trained, images, labels)
        content = encode(description(trained, name, found))
    write_atomic(path, content)
    accuracy = f", accuracy {100 * found['accuracy']:.2f} %" if "accuracy" in found else ""
    print(
        f"exported {path}, {len(content):,} bytes: uint8 (N, 28, 28) to float32 (N, 10)\n"
        f"compared with the checkpoint on {name}: the same digits, largest difference "
        f"{found['largest_difference']:.1e}{accuracy}"
    )


def check_onnx() -> None:
    """Refuse to begin without the packages that ONNX needs."""
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
    """Get the test set if it is at hand, without a download, and random pixels otherwise.

    Returns:
        Images, `uint8` of shape `(N, 28, 28)`; their labels, if they have any; what they are.

    Raises:
        InputError: If the test set is at hand, but damaged.
    """
    data = trained.data(test_train_set=False, data_dir=data_dir)
    folder = raw_dir(data.data_dir)
    names = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    if data.dataset == "digits" or all((folder / name).is_file() for name in names):
        data.setup("test")
        source = data.test_dataloader()
        assert isinstance(source, InMemoryDataLoader)
        return source.images, source.labels, f"the {len(source.images):,} test images"
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (RANDOM_IMAGES, 28, 28), generator=generator)
    return pixels.to(torch.uint8), None, f"{RANDOM_IMAGES:,} images of random pixels"


def to_onnx(module: nn.Module) -> tuple[Run, Callable[[dict[str, str]], bytes]]:
    """Export to ONNX.

    Returns:
        What runs the export with onnxruntime, and what encodes it with a description.
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
        del node.metadata_props[:]  # where in the source it comes from, by this machine's paths
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def run(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["probabilities"], {"pixels": pixels.numpy()})[0])

    def encode(description: dict[str, str]) -> bytes:
        import onnx

        onnx.helper.set_model_props(model, description)
        onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString()
        return content

    return run, encode


def to_pt2(module: nn.Module) -> tuple[Run, Callable[[dict[str, str]], bytes]]:
    """Export by `torch.export`, likewise."""
    program = torch.export.export(
        module,
        (torch.zeros(2, 28, 28, dtype=torch.uint8),),
        dynamic_shapes={"pixels": {0: torch.export.Dim("N")}},
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths of this machine

    def encode(description: dict[str, str]) -> bytes:
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={ENTRY: json.dumps(description)})
        return content.getvalue()

    loaded = torch.export.load(io.BytesIO(encode({}))).module()

    def run(pixels: Tensor) -> Tensor:
        probabilities: Tensor = loaded(pixels)
        return probabilities

    return run, encode


@torch.inference_mode()
def agreement(
    run: Run, trained: TrainedNetwork, images: Tensor, labels: Tensor | None
) -> dict[str, float]:
    """Compare an export with its checkpoint.

    Returns:
        `largest_difference` between two probabilities and, with labels, the export's `accuracy`.

    Raises:
        InputError: If they predict another digit for any image.
    """
    expected = trained.probabilities(images)
    probabilities = torch.cat([run(batch) for batch in torch.split(images, EVAL_BATCH_SIZE)])
    digits = probabilities.argmax(dim=1)
    differ = int((digits != expected.argmax(dim=1)).sum())
    if not bool(probabilities.isfinite().all()):
        raise InputError(
            "Expected a network that gives probabilities, but some are not finite numbers; nothing "
            "was written"
        )
    if differ:
        raise InputError(
            "Expected the export to predict what the checkpoint does, but it differs in "
            f"{differ:,} of {len(images):,} digits; nothing was written"
        )
    found = {"largest_difference": float((probabilities - expected).abs().max())}
    if labels is not None:
        found["accuracy"] = float((digits == labels).double().mean())
    return found


def description(trained: TrainedNetwork, name: str, found: dict[str, float]) -> dict[str, str]:
    """Say in an export's metadata where it comes from and how it was compared."""
    data = dict(trained.checkpoint.get("datamodule_hyper_parameters", {}))
    data.pop("data_dir", None)  # of this machine
    config = {"model": trained.checkpoint["hyper_parameters"], "data": data}
    return {
        "fnn_lightning": __version__,
        "torch": str(torch.__version__),
        "checkpoint": Path(trained.path).name,
        "global_step": str(trained.checkpoint["global_step"]),
        "config": json.dumps(config, default=str),
        "compared_on": name,
        "digits_agree": "all",
        **{key: repr(value) for key, value in found.items()},
    }
