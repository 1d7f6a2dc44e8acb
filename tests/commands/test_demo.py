import base64
import html
import io
import os
import re
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from fnn_lightning.commands.demo import free_port
from fnn_lightning.commands.demo_page import (
    HINT,
    answer_drawing,
    answer_html,
    answer_upload,
    data_url,
)
from fnn_lightning.commands.main import main
from fnn_lightning.data.datasets import DIGITS
from fnn_lightning.data.preprocessing import read_picture
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.runs.load import TrainedNetwork, load_trained
from tests.forks import Fork, StartFork
from tests.support import ended, tiny_files

Capture = pytest.CaptureFixture[str]
RUN = "lightning_logs/version_0"
SECONDS = 60  # Gradio is slow to import
SERVES = r"draw at (http://127\.0\.0\.1:\d+), stop with Ctrl-C\n"
PIPED = "import sys; sys.stdout.reconfigure(line_buffering=False)"


@pytest.fixture
def run(data_dir: str, capsys: Capture) -> str:
    main(["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8]",
          "--trainer.max_epochs", "1"])  # fmt: skip
    capsys.readouterr()
    return RUN


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a net; return the folder of its run."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "MNIST" / "raw").mkdir(parents=True)
    for name, content in tiny_files().items():
        (folder / "MNIST" / "raw" / name).write_bytes(content)
    main(["fit", "--data.data_dir", str(folder), "--model.hidden_dims", "[8]",
          "--trainer.max_epochs", "1", "--run_folder", str(folder / "run")])  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def address(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the net, and end that with SIGTERM; return the address."""
    pytest.importorskip("gradio", reason="needs the extra [demo]")
    words = ("demo", "--ckpt_path", str(served), "--port", "0")
    folder = tmp_path_factory.mktemp("outputs") / "fork"
    process = Fork(words, dict(os.environ), folder, before=PIPED)
    try:
        found = re.fullmatch(SERVES, next(process.stdout, ""))
        assert found, process.communicate(SECONDS)
        yield found[1]
        process.send_signal(signal.SIGTERM)
        status, output, errors = ended(process, SECONDS)
        assert status == 0
        assert re.fullmatch(SERVES, output)
        assert errors == ""
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def page(address: str, browser: WebDriver) -> Iterator[WebDriver]:
    """Open the page, until it can be drawn on."""
    browser.get(address)
    wait = WebDriverWait(browser, SECONDS)
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "#sketch canvas[data-tool=pen]"))
    until_answer(browser, HINT)
    yield browser
    browser.get("about:blank")


def shown(browser: WebDriver) -> torch.Tensor:
    """Wait for the 28×28 pixels that the page shows, and read them."""
    wait = WebDriverWait(browser, SECONDS, ignored_exceptions=[StaleElementReferenceException])
    source = wait.until(
        lambda page: page.find_element(By.CSS_SELECTOR, "#answer img").get_attribute("src")
    )
    with urllib.request.urlopen(str(source)) as answer:
        return torch.from_numpy(np.asarray(Image.open(io.BytesIO(answer.read()))).copy())


def answer(browser: WebDriver) -> str:
    return browser.find_element(By.ID, "answer").text


def until_answer(browser: WebDriver, text: str) -> None:
    WebDriverWait(browser, SECONDS).until(lambda page: text in answer(page))


def bars(browser: WebDriver) -> list[tuple[int, float]]:
    """Read the digits and their probabilities in percent, from top to bottom."""
    found = re.findall(r"^(\d)\n([\d.]+) %$", answer(browser), re.MULTILINE)
    return [(int(digit), float(share)) for digit, share in found]


def draw(browser: WebDriver, start: tuple[int, int], *ends: tuple[int, int]) -> None:
    """Draw a line through points; (0, 0) is the centre of the canvas, 280 units wide."""
    canvas = browser.find_element(By.CSS_SELECTOR, "#sketch canvas")
    scale = canvas.size["width"] / 280
    strokes = ActionChains(browser, duration=20)
    points = [(round(scale * x), round(scale * y)) for x, y in (start, *ends)]
    strokes.move_to_element_with_offset(canvas, *points[0]).click_and_hold()
    for point in points[1:]:
        strokes.move_to_element_with_offset(canvas, *point)
    strokes.release().perform()


def press(browser: WebDriver, name: str) -> None:
    """Press a button of the sketchpad."""
    buttons = browser.find_elements(By.CSS_SELECTOR, "#sketch button")
    named = [each for each in buttons if name in (each.text, each.get_attribute("aria-label"))]
    named[0].click()


def upload(browser: WebDriver, path: str) -> None:
    """Give a file to the page, once it takes one."""
    wait = WebDriverWait(browser, SECONDS)
    field = wait.until(lambda page: page.find_element(By.CSS_SELECTOR, "#file input[type=file]"))
    field.send_keys(str(Path(path).absolute()))


def size(pixels: torch.Tensor) -> tuple[int, int]:
    """Return the height and width of what is inked."""
    inked = pixels.gt(127)
    return int(inked.any(dim=1).sum()), int(inked.any(dim=0).sum())


def until_size(browser: WebDriver, fits: Callable[[int, int], bool]) -> None:
    """Wait until the net sees something whose height and width fit."""
    WebDriverWait(browser, SECONDS).until(lambda page: fits(*size(shown(page))))


def is_high(height: int, width: int) -> bool:
    return height > 4 * width


def is_wide(height: int, width: int) -> bool:
    return width > 4 * height


def test_drawing_undoing_erasing_and_clearing(page: WebDriver) -> None:
    for _ in range(2):  # the pen stays selected
        draw(page, (0, -60), (0, 60))
        until_size(page, is_high)
        press(page, "Clear")
        until_answer(page, HINT)
        draw(page, (-60, 0), (60, 0))
        until_size(page, is_wide)
        press(page, "Clear")
        until_answer(page, HINT)

    draw(page, (0, -60), (0, 60))
    until_size(page, is_high)
    draw(page, (-60, 60), (60, 60))
    until_size(page, lambda height, width: abs(height - width) < 3)
    press(page, "Undo")
    until_size(page, is_high)
    press(page, "Undo")
    until_answer(page, HINT)
    keys = ActionChains(page)
    for _ in range(2):
        keys.key_down(Keys.CONTROL).key_down(Keys.SHIFT).send_keys("z")
        keys.key_up(Keys.SHIFT).key_up(Keys.CONTROL)
    keys.perform()
    until_size(page, lambda height, width: abs(height - width) < 3)
    press(page, "Eraser")
    draw(page, (-75, 60), (75, 60))
    until_size(page, is_high)
    press(page, "Clear")
    until_answer(page, HINT)
    draw(page, (-60, 0), (60, 0))  # with the pen again
    until_size(page, is_wide)

    press(page, "Clear")
    draw(page, (0, 0))
    until_answer(page, "too small: draw a larger digit")
    press(page, "Example 4")
    until_size(page, lambda height, width: height > width > 10)
    for digit in (3, 7):
        press(page, f"Example {digit}")
    press(page, "Undo")
    press(page, "Undo")
    until_size(page, lambda height, width: height > width > 10)


def test_all_that_is_drawn_counts_up_to_the_edge(page: WebDriver) -> None:
    draw(page, (-138, -138), (138, -138), (0, 139))
    pixels = shown(page)
    assert size(pixels)[0] == 20
    seven = pixels.gt(127)
    # the line along the edge, half its width cut off, and the slanted one
    assert int(seven[int(seven.any(dim=1).nonzero()[0])].sum()) >= 18


def test_the_page_predicts_drawings_and_uploads_offline(
    page: WebDriver, address: str, served: Path
) -> None:
    trained = load_trained(served)
    wait = WebDriverWait(page, SECONDS, ignored_exceptions=[StaleElementReferenceException])
    draw(page, (-30, -60), (-30, 60), (30, 60))
    pixels = shown(page)
    rows, columns = (pixels.gt(127).any(dim=dim).nonzero().flatten() for dim in (1, 0))
    assert rows[-1] - rows[0] in (18, 19)  # an L in a box 20 high
    assert columns[-1] - columns[0] in (10, 11, 12)
    assert pixels[rows[2], columns[-3]] == 0
    assert pixels[rows[-2], columns[-3]] > 200
    expected = trained.probabilities(pixels[None])[0]
    found = bars(page)
    assert [digit for digit, _ in found] == list(range(10))
    assert [share for _, share in found] == pytest.approx(100 * expected.numpy(), abs=0.06)
    assert answer(page).startswith(f"{int(expected.argmax())}\n")

    picture = np.full((90, 60), 255, np.uint8)
    picture[20:70, 25:33] = 40
    Image.fromarray(picture).save("one.png")
    Path("broken.png").write_bytes(Path("one.png").read_bytes()[:60])
    wanted = read_picture(Path("one.png"))
    for _ in range(2):  # the drawing and the file before make room
        upload(page, "one.png")
        wait.until(lambda _: torch.equal(shown(page), wanted))
        until_answer(page, "one.png")
        upload(page, "broken.png")
        until_answer(page, "damaged")
    draw(page, (-60, 0), (60, 0))
    until_size(page, is_wide)
    assert "broken.png" not in answer(page)

    addresses = page.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert len(addresses) > 20
    assert [each for each in addresses if not each.startswith((address, "data:", "blob:"))] == []


def test_on_a_phone_the_answer_stands_above_the_upload(page: WebDriver) -> None:
    before = page.get_window_size()
    page.set_window_size(400, 800)
    try:
        tops = [page.find_element(By.ID, each).rect["y"] for each in ("sketch", "answer", "file")]
        assert tops == sorted(tops)
        width = page.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert width == 0  # nothing to scroll sideways
    finally:
        page.set_window_size(before["width"], before["height"])


def test_names_and_messages_are_shown_as_text() -> None:
    shown = answer_html(DIGITS, note="<b>", name="<img src=x>.png")
    assert "<b>" not in shown
    assert "&lt;b&gt;" in shown
    assert "<img" not in shown
    assert "&lt;img src=x&gt;.png" in shown


OTHER_PAGE = """
from pathlib import Path
from fnn_lightning import FNNLitModule
from fnn_lightning.commands.demo_page import make_page
from fnn_lightning.runs.load import TrainedNetwork
module = FNNLitModule(hidden_dims=[8], class_names=["<b>", "a,b"], framing="resize")
print(make_page(TrainedNetwork(Path("last.ckpt"), module, {}))[0].get_config_file())
"""


def test_a_page_for_other_classes_says_what_it_expects(fork: StartFork) -> None:
    pytest.importorskip("gradio", reason="needs the extra [demo]")
    # on its own: Gradio leaves an event loop open
    status, shown, err = ended(fork("--version", before=OTHER_PAGE))
    assert status == 0, err
    assert "# Draw or upload a picture" in shown
    assert "One of 2 classes: &lt;b&gt;, a,b." in shown
    assert "Drawing area" in shown
    assert "Example" not in shown
    assert "<b>" not in shown


def test_drawings_and_uploads_become_what_the_net_was_trained_on() -> None:
    torch.manual_seed(0)
    names = ["<b>", "a,b", "T-shirt/top"]
    module = FNNLitModule(hidden_dims=[8], class_names=names, framing="resize").eval()
    trained = TrainedNetwork(Path("last.ckpt"), module, {})
    ink = np.zeros((56, 56, 4), np.uint8)
    ink[:28, :, 3] = 255  # the upper half, which is neither cropped nor centred
    png = io.BytesIO()
    Image.fromarray(ink).save(png, "PNG")
    half = torch.zeros(28, 28, dtype=torch.uint8)
    half[:14] = 255
    Image.fromarray(half.numpy()).save("half.png")
    predicted = html.escape(names[int(module.predict(half).classes)])
    url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    drawn, uploaded = answer_drawing(trained, url), answer_upload(trained, Path("half.png"))
    assert "half.png" in uploaded
    assert data_url(half) in uploaded
    for shown in (drawn, uploaded):
        assert f"'>{predicted}</div><div class='quiet'>" in shown
        assert "MNIST" not in shown
    blank = io.BytesIO()
    Image.fromarray(0 * ink).save(blank, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(blank.getvalue()).decode()}"
    assert "Draw, or upload a picture." in answer_drawing(trained, url)


BAD = {
    "--ckpt_path nothing.ckpt --port 0": "there is no such file",
    f"--ckpt_path {RUN} --port 99999": "Expected --port to be from 0 to 65535, but got 99999",
    f"--ckpt_path {RUN} --port many": "`port` to be int, but got many",
    f"--ckpt_path {RUN} --host 192.0.2.1": "got --host '192.0.2.1' and --port 7860",
    f"--ckpt_path {RUN} --prot 0": "did you mean port?",
}


@pytest.mark.parametrize("argv", BAD)
def test_bad_arguments_end_in_one_line(argv: str, run: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["demo", *argv.split()])
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert BAD[argv] in output.err


def test_a_port_in_use_is_refused(run: str, capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(SystemExit):
            main(["demo", "--ckpt_path", run, "--port", str(port)])
    error = capsys.readouterr().err
    assert f"--port {port} is in use" in error
    assert "--port 0 takes any free one" in error
    assert free_port("127.0.0.1", 0) > 0


def test_without_gradio_the_message_says_how_to_install_it(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit):
        main(["demo", "--ckpt_path", run, "--port", "0"])
    error = capsys.readouterr().err
    assert "gradio is not installed: pip install -e '.[demo]'" in error
    assert error.count("\n") == 1
