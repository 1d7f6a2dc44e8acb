"""The page of `demo`, made with Gradio: a sketchpad, examples, an upload, and the net's answer."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fnn_lightning.data.datasets import DIGITS, Framing
from fnn_lightning.data.framing import read_framed, resize_picture
from fnn_lightning.data.preprocessing import (
    SUFFIXES,
    FloatImage,
    drawing_to_mnist,
    out_of_distribution,
)
from fnn_lightning.errors import InputError, one_line
from fnn_lightning.evaluation.attribution import (
    AGAINST,
    FOR,
    attribute,
    css_colour,
    draw_attribution,
)
from fnn_lightning.evaluation.class_names import short_name
from fnn_lightning.evaluation.novelty import stored_novelty
from fnn_lightning.runs.load import TrainedNetwork

HINT = "Draw a digit, try an example, or upload a picture."
OTHER_HINT = "Draw, or upload a picture."  # the examples are digits
PNG_URL = "data:image/png;base64,"
MAX_BARS = 10  # of more classes, the most probable
MAX_NAMES = 50  # that the page lists of what it expects
EXAMPLES = '<div class="examples">'  # the last part of the sketchpad


def make_page(trained: TrainedNetwork) -> tuple[Any, dict[str, Any]]:
    """Make the page.

    Returns:
        Gradio's `Blocks`, and arguments for its `launch`.

    Raises:
        InputError: If Gradio is not installed, or the checkpoint holds a damaged detector.
    """
    stored_novelty(trained.checkpoint, str(trained.path))  # refused now, not at every drawing
    try:
        import gradio as gr
    except ImportError as error:
        raise InputError(
            f"Expected Gradio, but {error.name} is not installed: pip install -e '.[demo]'"
        ) from error

    class_names, framing = trained.module.class_names, trained.module.framing
    of_digits = class_names == DIGITS

    def on_drawing(url: str) -> str:
        return answer_drawing(trained, url)

    def on_upload(path: str) -> tuple[str, str, None]:
        # the sketchpad and the box of the upload become empty: the answer is about one picture
        return answer_upload(trained, Path(path)), "", None

    title = "Draw a digit" if of_digits else "Draw or upload a picture"
    sketchpad = read_asset("sketchpad.html")
    if not of_digits:
        sketchpad = sketchpad.partition(EXAMPLES)[0]

    with gr.Blocks(title="fnn_lightning", analytics_enabled=False) as page:
        gr.Markdown(f"# {title}\n{trained.module.network.summary}, {trained.path.name}")
        if not of_digits:
            gr.HTML(expected_html(class_names, framing), padding=False, elem_id="expected")
        with gr.Row():
            with gr.Column():
                sketch = gr.HTML(
                    "",
                    html_template=sketchpad,
                    js_on_load=read_asset("sketchpad.js"),
                    apply_default_css=False,
                    container=True,
                    padding=True,
                    elem_id="sketch",
                )
            with gr.Column():
                shown = gr.HTML(
                    answer_html(class_names),
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


def answer_drawing(trained: TrainedNetwork, url: str) -> str:
    """Answer what the sketchpad sends, a URL as `read_drawing` takes it."""
    ink = read_drawing(url)
    if not ink.any():
        return answer_html(trained.module.class_names)
    return answer(trained, lambda: frame_drawing(ink, trained.module.framing))


def answer_upload(trained: TrainedNetwork, path: Path) -> str:
    """Answer a picture that was uploaded."""
    return answer(trained, lambda: read_framed(path, trained.module.framing), path.name)


def answer(trained: TrainedNetwork, read: Callable[[], Tensor], name: str = "") -> str:
    """Predict what `read` returns, or show why it fails.

    Args:
        trained: The net.
        read: Returns the net's input, `uint8` of shape `(28, 28)`.
        name: The picture's file; "" for a drawing.
    """
    class_names = trained.module.class_names
    try:
        pixels = read()
    except InputError as error:
        return answer_html(class_names, note=one_line(str(error)), name=name)
    probabilities = trained.probabilities(pixels[None])[0]
    like_mnist = class_names == DIGITS and trained.module.framing == "mnist"
    detector = stored_novelty(trained.checkpoint, str(trained.path))
    novel = detector is not None and bool(detector.marks(trained.module, pixels[None]))
    note = out_of_distribution(pixels, float(probabilities.max()), like_mnist, novel)
    note = note and f"may be wrong: {note}"
    why = why_html(trained, pixels, probabilities)
    return answer_html(class_names, pixels, probabilities, note, name, why)


def why_html(trained: TrainedNetwork, pixels: Tensor, probabilities: Tensor) -> str:
    """Show which pixels speak for the answer, and which for the second most probable class.

    Args:
        trained: The net.
        pixels: Its input, `uint8` of shape `(28, 28)`.
        probabilities: Of the classes, shape `(classes,)`.

    Returns:
        A figure with its legend; "" if there is but one class.
    """
    names = trained.module.class_names
    if len(names) < 2:
        return ""
    first, second = probabilities.topk(2).indices
    contributions = attribute(trained.module, pixels[None], first[None], second[None])[0]
    legend = " ".join(
        f"<span class='key' style='--key: {css_colour(colour)}'>"
        f"{html.escape(short_name(names[int(which)]))}</span>"
        for colour, which in ((FOR, first), (AGAINST, second))
    )
    return (
        "<figure><img alt='pixels that speak for the answer, and against it' "
        f"src='{PNG_URL}{draw_attribution(contributions)}'>"
        f"<figcaption class='quiet'>What speaks for {legend}</figcaption></figure>"
    )


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


def expected_html(class_names: Sequence[str], framing: Framing) -> str:
    """Say which classes the net tells apart, and what becomes of a picture."""
    names = [html.escape(short_name(name)) for name in class_names[:MAX_NAMES]]
    if len(class_names) > MAX_NAMES:
        names.append("…")
    becomes = {
        "mnist": "A picture is brought to the form of MNIST's: the ink alone, cropped and centred.",
        "resize": "A picture is used as it is, in grey and resized to 28 × 28 pixels; a drawing "
        "is light on dark.",
    }[framing]
    return f"<p>One of {len(class_names):,} classes: {', '.join(names)}.<br>{becomes}</p>"


def frame_drawing(ink: FloatImage, framing: Framing) -> Tensor:
    """Bring a drawing to 28 × 28 pixels, `uint8` of shape `(28, 28)`, light on dark.

    Args:
        ink: From 0 (paper) to 1 (full ink), shape `(H, W)`.
        framing: `mnist`: as `drawing_to_mnist` does; `resize`: the whole canvas.

    Raises:
        InputError: If it is too small for MNIST's form.
    """
    if framing == "mnist":
        return drawing_to_mnist(ink)
    return resize_picture(Image.fromarray(np.rint(255 * ink).astype(np.uint8)))


def answer_html(
    class_names: Sequence[str],
    pixels: Tensor | None = None,
    probabilities: Tensor | None = None,
    note: str = "",
    name: str = "",
    why: str = "",
) -> str:
    """Lay out the answer: the class, what the net saw, and a bar for each of up to ten classes.

    Of more classes, the ten most probable have one, the most probable first.

    Args:
        class_names: Name of each class.
        pixels: The net's input, `uint8` of shape `(28, 28)`; None if there is none.
        probabilities: Of the classes, shape `(classes,)`; None if there is no answer.
        note: A warning in plain text.
        name: The picture's file; "" for a drawing.
        why: A figure of what speaks for the answer, as HTML.
    """
    predicted, bars = "", ""
    shown = list(range(len(class_names)))
    if len(class_names) > MAX_BARS:
        shown = [] if probabilities is None else probabilities.topk(MAX_BARS).indices.tolist()
    for each in shown:
        share = ""
        width = 0.0
        if probabilities is not None:
            width = 100 * float(probabilities[each])
            share = f"{width:.1f} %"
        label = html.escape(short_name(class_names[each]))
        bars += (
            f"<div class='name'>{label}</div>"
            f"<div class='bar'><div style='width: {width:.1f}%'></div></div>"
            f"<div class='share'>{share}</div>"
        )
    if probabilities is not None:
        predicted = short_name(class_names[int(probabilities.argmax())])
    hint = HINT if tuple(class_names) == DIGITS else OTHER_HINT
    text = f"⚠ {html.escape(note)}" if note else "" if predicted else hint
    seen = "<div class='blank'></div>"
    if pixels is not None:
        seen = f"<img alt='28 × 28 pixels' src='{data_url(pixels)}'>"
    return (
        f"<div class='head'><div role='status'>"
        f"<div class='class{' word' * (len(predicted) > 2)}'>{html.escape(predicted)}</div>"
        f"<div class='quiet'>{html.escape(name)}</div><div class='note'>{text}</div></div>"
        f"<figure>{seen}<figcaption class='quiet'>What the net sees</figcaption></figure>"
        f"{why}</div>"
        f"<div class='bars'>{bars}</div>"
    )


def data_url(pixels: Tensor) -> str:
    """Write an image, `uint8` of shape `(H, W)`, as a PNG in a URL."""
    png = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(png, "PNG")
    return PNG_URL + base64.b64encode(png.getvalue()).decode()
