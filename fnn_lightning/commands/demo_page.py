"""The page of `demo`, made with Gradio: a sketchpad, examples, an upload, and the net's answer."""

import base64
import html
import io
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fnn_lightning.data.preprocessing import (
    SUFFIXES,
    FloatImage,
    drawing_to_mnist,
    out_of_distribution,
    read_picture,
)
from fnn_lightning.errors import InputError, one_line
from fnn_lightning.network import NUM_CLASSES
from fnn_lightning.runs.load import TrainedNetwork

HINT = "Draw a digit, try an example, or upload a picture."


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

    def answer(read: Callable[[], Tensor], name: str = "") -> str:
        try:
            pixels = read()
        except InputError as error:
            return answer_html(note=one_line(str(error)), name=name)
        probabilities = trained.probabilities(pixels[None])[0]
        note = out_of_distribution(pixels, float(probabilities.max()))
        return answer_html(pixels, probabilities, note and f"may be wrong: {note}", name)

    def on_drawing(url: str) -> str:
        ink = read_drawing(url)
        return answer(lambda: drawing_to_mnist(ink)) if ink.any() else answer_html()

    def on_upload(path: str) -> tuple[str, str, None]:
        # the sketchpad and the box of the upload become empty: the answer is about one picture
        return answer(lambda: read_picture(Path(path)), Path(path).name), "", None

    with gr.Blocks(title="fnn_lightning", analytics_enabled=False) as page:
        gr.Markdown(f"# Draw a digit\n{trained.module.network.summary}, {trained.path.name}")
        with gr.Row():
            with gr.Column():
                sketch = gr.HTML(
                    "",
                    html_template=read_asset("sketchpad.html"),
                    js_on_load=read_asset("sketchpad.js"),
                    apply_default_css=False,
                    container=True,
                    padding=True,
                    elem_id="sketch",
                )
            with gr.Column():
                shown = gr.HTML(
                    answer_html(),
                    apply_default_css=False,
                    container=True,
                    padding=True,
                    elem_id="answer",
                )
                file = gr.File(
                    label="Or upload a picture",
                    file_types=list(SUFFIXES),
                    height=120,
                    elem_id="file",
                )
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        sketch.input(on_drawing, sketch, shown, trigger_mode="always_last", **quiet)
        file.upload(on_upload, file, [shown, sketch, file], **quiet)
    # other themes load their fonts from the web
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    options = {"theme": theme, "css": read_asset("demo.css"), "footer_links": []}
    return page, options


def read_asset(name: str) -> str:
    """Read a file of the page."""
    return (resources.files("fnn_lightning.commands") / name).read_text(encoding="utf-8")


def read_drawing(url: str) -> FloatImage:
    """Read what the sketchpad sends.

    Args:
        url: A PNG with an alpha channel as a data URL; "" for an empty page.

    Returns:
        The ink, from 0 (paper) to 1 (full ink), shape `(H, W)`.
    """
    png = base64.b64decode(url.partition(",")[2])
    if not png:
        return np.zeros((1, 1), np.float32)
    with Image.open(io.BytesIO(png), formats=["PNG"]) as drawing:
        ink: FloatImage = np.asarray(drawing.getchannel("A"), np.float32) / np.float32(255)
    return ink


def answer_html(
    pixels: Tensor | None = None,
    probabilities: Tensor | None = None,
    note: str = "",
    name: str = "",
) -> str:
    """Lay out the answer: the digit, what the net saw, and a bar for each of the ten digits.

    Args:
        pixels: The net's input, `uint8` of shape `(28, 28)`; None if there is none.
        probabilities: Of the ten digits, shape `(10,)`; None if there is no answer.
        note: A warning in plain text.
        name: The picture's file; "" for a drawing.
    """
    digit, bars = "", ""
    for each in range(NUM_CLASSES):
        share = ""
        width = 0.0
        if probabilities is not None:
            width = 100 * float(probabilities[each])
            share = f"{width:.1f} %"
        bars += (
            f"<div>{each}</div><div class='bar'><div style='width: {width:.1f}%'></div></div>"
            f"<div class='share'>{share}</div>"
        )
    if probabilities is not None:
        digit = str(int(probabilities.argmax()))
    text = f"⚠ {html.escape(note)}" if note else "" if digit else HINT
    seen = "<div class='blank'></div>"
    if pixels is not None:
        seen = f"<img alt='28 × 28 pixels' src='{data_url(pixels)}'>"
    return (
        f"<div class='head'><div role='status'><div class='digit'>{digit}</div>"
        f"<div class='quiet'>{html.escape(name)}</div><div class='note'>{text}</div></div>"
        f"<figure>{seen}<figcaption class='quiet'>What the net sees</figcaption></figure></div>"
        f"<div class='bars'>{bars}</div>"
    )


def data_url(pixels: Tensor) -> str:
    """Write an image, `uint8` of shape `(H, W)`, as a PNG in a URL."""
    png = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(png, "PNG")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
