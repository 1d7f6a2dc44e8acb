"""The subcommand demo: a page in the browser to draw a digit on, served by this machine alone."""

import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fnn_lightning.commands.options import make_parser, parse
from fnn_lightning.data.preprocessing import SUFFIXES, out_of_distribution, read_picture, to_mnist
from fnn_lightning.errors import InputError, one_line
from fnn_lightning.runs.load import TrainedNetwork, load_trained
from fnn_lightning.runs.signals import StopSignals

CANVAS = 280  # pixels
BRUSH = 12  # pixels, the radius: on a digit of usual size the strokes are as wide as MNIST's
LARGEST_UPLOAD = "50mb"
# the sketchpad wants its brush to be chosen first
TAKE_THE_BRUSH = """() => {
    const timer = setInterval(() => {
        const brush = document.querySelector('#sketch button[aria-label="Brush"]');
        if (brush) { brush.click(); clearInterval(timer); }
    }, 100);
}"""


def main(argv: list[str]) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        argv: What follows the subcommand.

    Raises:
        InputError: If the argv, the checkpoint or the address cannot be used, or Gradio is not
            installed.
    """
    parser = make_parser(
        "demo",
        "Serves a page to draw a digit on, with what the net makes of it. Nothing leaves this "
        "machine, and no other one is served unless --host says so.",
    )
    parser.add_argument(
        "--ckpt_path", type=str, required=True, help="Checkpoint, or the folder of a run."
    )
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="Address to serve; 0.0.0.0 is all of them."
    )
    parser.add_argument("--port", type=int, default=7860, help="Port; 0 is any that is free.")
    options = parse(parser, argv)
    port = free_port(options.host, options.port)
    trained = load_trained(options.ckpt_path)
    signals = StopSignals()
    with tempfile.TemporaryDirectory(prefix="fnn_lightning_") as folder:
        # Gradio reads them when it is imported: no word to its makers, no upload left behind
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        os.environ["GRADIO_TEMP_DIR"] = folder
        # Gradio asks its own page whether it is there: not by way of a proxy
        for name in ("NO_PROXY", "no_proxy"):
            own = (os.environ.get(name), options.host, "127.0.0.1", "localhost")
            os.environ[name] = ",".join(filter(None, own))
        page, looks = make_page(trained)
        signals.listen()
        try:
            page.launch(
                server_name=options.host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                max_file_size=LARGEST_UPLOAD,
                **looks,
            )
            print(f"draw at http://{options.host}:{port}, Ctrl-C ends it", flush=True)
            while not signals.received:
                time.sleep(0.2)
        finally:
            page.close(verbose=False)
            signals.release()


def free_port(host: str, port: int) -> int:
    """Return the port if it can be served, or any that can for 0.

    Raises:
        InputError: If it cannot.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"Expected --port to be from 0 to {2**16 - 1}, but got {port}")
    try:
        with socket.create_server((host, port)) as server:
            return int(server.getsockname()[1])
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"Expected --host and --port that can be served, but got {host!r} and {port}: {error}"
        ) from None


def make_page(trained: TrainedNetwork) -> tuple[Any, dict[str, Any]]:
    """Make the page.

    Returns:
        Gradio's `Blocks`, and how they are to be launched.

    Raises:
        InputError: If Gradio is not installed.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise InputError(
            f"Expected Gradio, but {error.name} is not installed: pip install -e '.[demo]'"
        ) from error

    def answer(pixels: Any) -> tuple[dict[str, float], Image.Image, str]:
        row = trained.probabilities(pixels[None])[0]
        probabilities = {str(digit): float(p) for digit, p in enumerate(row)}
        enlarged = Image.fromarray(pixels.numpy()).resize((224, 224), Image.Resampling.NEAREST)
        strange = out_of_distribution(pixels, float(row.max()))
        return probabilities, enlarged, f"⚠ {strange}" if strange else ""

    def drawn(value: dict[str, Any] | None) -> tuple[Any, Any, str]:
        if value is None or not np.asarray(value["composite"])[..., 3].any():
            return None, None, ""
        return sent(lambda: to_mnist(value["composite"]))

    def uploaded(path: str | None) -> tuple[Any, Any, str]:
        return (None, None, "") if path is None else sent(lambda: read_picture(Path(path)))

    def sent(get: Any) -> tuple[Any, Any, str]:
        try:
            return answer(get())
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
                    label="Or give a picture", file_types=list(SUFFIXES), elem_id="file", height=120
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
        shown: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        sketch.change(drawn, sketch, outputs, **shown)
        file.change(uploaded, file, outputs, **shown)
    # this theme's fonts come with Gradio
    return page, {"theme": gr.themes.Base(), "js": TAKE_THE_BRUSH, "footer_links": []}


def description(trained: TrainedNetwork) -> str:
    """Say in a line what the net is."""
    widths = [784, *trained.module.hparams["hidden_dims"], 10]
    return f"{'–'.join(map(str, widths))}, {trained.path.name}"
