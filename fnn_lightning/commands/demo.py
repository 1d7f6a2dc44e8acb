"""The subcommand `demo`: a page in the browser to draw digits on, served on this machine only."""

import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fnn_lightning.commands.options import add_ckpt_path, load_given, make_parser, parse
from fnn_lightning.data.preprocessing import SUFFIXES, out_of_distribution, read_picture, to_mnist
from fnn_lightning.errors import InputError, one_line
from fnn_lightning.runs.load import TrainedNetwork
from fnn_lightning.runs.signals import StopSignals

CANVAS = 280  # pixels
MARGIN = 20  # pixels of paper around it
BRUSH = 12  # radius in pixels: strokes as wide as MNIST's on a digit of usual size
MAX_UPLOAD = "50mb"
# otherwise the user would have to select the sketchpad's brush before drawing
SELECT_BRUSH = """() => {
    const timer = setInterval(() => {
        const brush = document.querySelector('#sketch button[aria-label="Brush"]');
        if (brush) { brush.click(); clearInterval(timer); }
    }, 100);
}"""


def main(argv: list[str]) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        argv: The command line after `demo`.

    Raises:
        InputError: If an argument or the checkpoint is invalid, the address is not free, or Gradio
            is not installed.
    """
    parser = make_parser(
        "demo",
        "Serves a page to draw a digit on, with the net's prediction. No data leaves this machine, "
        "and only this machine can open the page unless --host says otherwise.",
    )
    add_ckpt_path(parser)
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="Address to serve on; 0.0.0.0: all addresses."
    )
    parser.add_argument("--port", type=int, default=7860, help="Port; 0: any free one.")
    options = parse(parser, argv)
    port = free_port(options.host, options.port)
    trained = load_given(options.ckpt_path, "demo")
    signals = StopSignals()
    with tempfile.TemporaryDirectory(prefix="fnn_lightning_") as folder:
        # Gradio reads these when it is imported: no telemetry, and no upload is left behind
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        os.environ["GRADIO_TEMP_DIR"] = folder
        # Gradio checks that its own page answers, which a proxy would break
        for name in ("NO_PROXY", "no_proxy"):
            own = (os.environ.get(name), options.host, "127.0.0.1", "localhost")
            os.environ[name] = ",".join(filter(None, own))
        page, launch_options = make_page(trained)
        signals.listen()
        try:
            page.launch(
                server_name=options.host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                max_file_size=MAX_UPLOAD,
                **launch_options,
            )
            print(f"draw at http://{options.host}:{port}, stop with Ctrl-C", flush=True)
            while not signals.received:
                time.sleep(0.2)
        finally:
            page.close(verbose=False)
            signals.release()


def free_port(host: str, port: int) -> int:
    """Check that a port is free.

    Args:
        host: Address to serve on.
        port: The port; 0 for any.

    Returns:
        The port; for 0 one that is free.

    Raises:
        InputError: If it is not free, or there is no such address or port.

    Example:
        >>> free_port("127.0.0.1", 0) > 0
        True
    """
    if not 0 <= port < 2**16:
        raise InputError(f"Expected --port to be from 0 to {2**16 - 1}, but got {port}")
    try:
        with socket.create_server((host, port)) as server:
            return int(server.getsockname()[1])
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"Expected a free address, but got --host {host!r} and --port {port}: {error}"
        ) from None


def make_page(trained: TrainedNetwork) -> tuple[Any, dict[str, Any]]:
    """Make the page.

    Returns:
        Gradio's `Blocks`, and arguments for its `launch`.

    Raises:
        InputError: If Gradio is not installed.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise InputError(
            f"Expected Gradio, but {error.name} is not installed: pip install -e '.[demo]'"
        ) from error

    def predict(pixels: Any) -> tuple[dict[str, float], Image.Image, str]:
        row = trained.probabilities(pixels[None])[0]
        probabilities = {str(digit): float(p) for digit, p in enumerate(row)}
        enlarged = Image.fromarray(pixels.numpy()).resize((224, 224), Image.Resampling.NEAREST)
        warning = out_of_distribution(pixels, float(row.max()))
        return probabilities, enlarged, f"⚠ {warning}" if warning else ""

    def on_drawing(value: dict[str, Any] | None) -> tuple[Any, Any, str]:
        drawing = value and value["composite"]
        if not drawing or not np.asarray(drawing)[..., 3].any():
            return None, None, ""
        # a drawing may touch the edge, but of a photo what touches the edge is no digit
        return predict_or_warn(lambda: to_mnist(ImageOps.expand(drawing, MARGIN)))

    def on_upload(path: str | None) -> tuple[Any, Any, str]:
        if path is None:
            return None, None, ""
        return predict_or_warn(lambda: read_picture(Path(path)))

    def predict_or_warn(read: Any) -> tuple[Any, Any, str]:
        try:
            return predict(read())
        except InputError as error:
            return None, None, f"⚠ {one_line(str(error))}"

    with gr.Blocks(title="fnn_lightning", analytics_enabled=False) as page:
        gr.Markdown(f"# Draw a digit\n{description(trained)}")
        with gr.Row():
            with gr.Column():
                sketch = gr.Sketchpad(
                    label="Draw here",
                    type="pil",
                    format="png",
                    canvas_size=(CANVAS, CANVAS),
                    fixed_canvas=True,
                    brush=gr.Brush(BRUSH, colors=["#000000"], color_mode="fixed"),
                    layers=False,
                    transforms=(),
                    buttons=[],
                    elem_id="sketch",
                )
                file = gr.File(
                    label="Or upload a picture",
                    file_types=list(SUFFIXES),
                    elem_id="file",
                    height=120,
                )
            with gr.Column():
                label = gr.Label(label="Probabilities", num_top_classes=10, elem_id="label")
            with gr.Column():
                seen = gr.Image(
                    label="What the net sees, 28×28",
                    format="png",
                    interactive=False,
                    buttons=[],
                    width=280,
                    elem_id="seen",
                )
                note = gr.Markdown(elem_id="note")
        outputs = [label, seen, note]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        sketch.change(on_drawing, sketch, outputs, **quiet)
        sketch.clear(None, js=SELECT_BRUSH, **quiet)
        file.change(on_upload, file, outputs, **quiet)
    # other themes load their fonts from the web
    return page, {"theme": gr.themes.Base(), "js": SELECT_BRUSH, "footer_links": []}


def description(trained: TrainedNetwork) -> str:
    """Describe a net in one line: its layers' widths and its file."""
    widths = [784, *trained.module.hparams["hidden_dims"], 10]
    return f"{'–'.join(map(str, widths))}, {trained.path.name}"
