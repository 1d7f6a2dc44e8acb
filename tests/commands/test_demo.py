import io
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from fnn_lightning.commands.demo import free_port
from fnn_lightning.commands.main import main
from fnn_lightning.data.preprocessing import read_picture
from fnn_lightning.runs.load import load_trained

Capture = pytest.CaptureFixture[str]
RUN = "lightning_logs/version_0"
SECONDS = 60  # Gradio is slow to import


@pytest.fixture
def run(data_dir: str, capsys: Capture) -> str:
    main(["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8]",
          "--trainer.max_epochs", "1"])  # fmt: skip
    capsys.readouterr()
    return RUN


@pytest.fixture
def demo(run: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    pytest.importorskip("gradio", reason="needs the extra [demo]")
    command = [sys.executable, "-m", "fnn_lightning", "demo", "--ckpt_path", run, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.fullmatch(r"draw at (http://127\.0\.0\.1:\d+), stop with Ctrl-C\n", line)
        assert address, line
        yield process, address[1]
    finally:
        process.kill()
        process.communicate()


def shown(browser: WebDriver) -> torch.Tensor:
    """Wait for the 28×28 pixels that the page shows, and read them."""
    wait = WebDriverWait(browser, SECONDS)
    image = wait.until(lambda page: page.find_element(By.CSS_SELECTOR, "#seen img"))
    with urllib.request.urlopen(str(image.get_attribute("src"))) as answer:
        levels = np.asarray(Image.open(io.BytesIO(answer.read())).convert("L"))
    assert levels.shape == (224, 224)
    return torch.from_numpy(levels[4::8, 4::8].copy())


def bars(browser: WebDriver) -> dict[int, int]:
    """Read the probability of each digit, in percent."""
    text = browser.find_element(By.ID, "label").text
    return {int(digit): int(share) for digit, share in re.findall(r"(\d)\s+(\d+)\s*%", text)}


def until_ready_to_draw(browser: WebDriver) -> None:
    WebDriverWait(browser, SECONDS).until(
        lambda page: (
            page.find_elements(By.CSS_SELECTOR, "#sketch button[aria-label='Erase']")
            and "draw tool" not in page.find_element(By.ID, "sketch").text
        )
    )


def draw(browser: WebDriver, start: tuple[int, int], *ends: tuple[int, int]) -> None:
    """Draw a line through points; (0, 0) is the centre of the canvas, 280 pixels wide."""
    canvas = browser.find_element(By.CSS_SELECTOR, "#sketch canvas")
    strokes = ActionChains(browser, duration=20)
    strokes.move_to_element_with_offset(canvas, *start).click_and_hold()
    x, y = start
    for end_x, end_y in ends:
        for _ in range(10):
            strokes.move_by_offset((end_x - x) // 10, (end_y - y) // 10)
        x, y = end_x, end_y
    strokes.release().perform()


def clear(browser: WebDriver) -> None:
    """Press Clear, and wait until no answer is shown."""
    browser.find_element(By.CSS_SELECTOR, "#sketch button[aria-label='Clear canvas']").click()
    wait = WebDriverWait(browser, SECONDS)
    wait.until_not(lambda page: page.find_elements(By.CSS_SELECTOR, "#seen img"))
    wait.until_not(bars)
    assert browser.find_element(By.ID, "note").text == ""
    until_ready_to_draw(browser)


def size(pixels: torch.Tensor) -> tuple[int, int]:
    """Return the height and width of what is inked."""
    inked = pixels.gt(127)
    return int(inked.any(dim=1).sum()), int(inked.any(dim=0).sum())


def strokes(row: torch.Tensor) -> int:
    """Count the separate strokes that a row of inked pixels crosses."""
    return int((row[1:] & ~row[:-1]).sum())


def draw_clear_draw(browser: WebDriver) -> None:
    for _ in range(2):
        draw(browser, (0, -60), (0, 60))
        height, width = size(shown(browser))
        assert 4 * width < height
        clear(browser)
        draw(browser, (-60, 0), (60, 0))
        height, width = size(shown(browser))
        assert 4 * height < width
        clear(browser)

    # a 4 whose longer stroke touches the edge
    draw(browser, (-60, -90), (-60, 10), (50, 10))
    shown(browser)
    draw(browser, (40, -90), (40, 130))
    wait = WebDriverWait(browser, SECONDS)
    wait.until(lambda page: size(shown(page))[1] < 15)  # with the first stroke alone it is 20
    four = shown(browser).gt(127)
    top = int(four.any(dim=1).nonzero()[0])
    # both strokes in the upper part, the longer one alone below
    assert [strokes(four[top + 3]), strokes(four[top + 16])] == [2, 1]
    clear(browser)


def test_the_page_predicts_drawings_and_uploads_offline(
    demo: tuple[subprocess.Popen[str], str], browser: WebDriver
) -> None:
    process, address = demo
    trained = load_trained(RUN)
    wait = WebDriverWait(browser, SECONDS)
    browser.get(address)
    until_ready_to_draw(browser)
    draw_clear_draw(browser)
    draw(browser, (-30, -60), (-30, 60), (30, 60))
    pixels = shown(browser)
    rows, columns = (pixels.gt(127).any(dim=dim).nonzero().flatten() for dim in (1, 0))
    assert rows[-1] - rows[0] in (18, 19)  # an L in a box 20 high
    assert columns[-1] - columns[0] in (10, 11, 12)
    assert pixels[rows[2], columns[-3]] == 0
    assert pixels[rows[-2], columns[-3]] > 200
    expected = trained.probabilities(pixels[None])[0]
    found = bars(browser)
    assert sorted(found) == list(range(10))
    for digit, share in found.items():
        assert share == pytest.approx(100 * float(expected[digit]), abs=1)

    picture = np.full((90, 60), 255, np.uint8)
    picture[20:70, 25:33] = 40
    Image.fromarray(picture).save("one.png")
    upload = browser.find_element(By.CSS_SELECTOR, "#file input[type=file]")
    upload.send_keys(str(Path("one.png").absolute()))
    wanted = read_picture(Path("one.png"))
    wait.until(lambda page: torch.equal(shown(page), wanted))

    browser.find_element(By.CSS_SELECTOR, "#file button[aria-label='Clear']").click()
    Path("broken.png").write_bytes(Path("one.png").read_bytes()[:60])
    upload = wait.until(lambda page: page.find_element(By.CSS_SELECTOR, "#file input[type=file]"))
    upload.send_keys(str(Path("broken.png").absolute()))
    wait.until(lambda page: "damaged" in page.find_element(By.ID, "note").text)

    addresses = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert len(addresses) > 20
    assert [each for each in addresses if not each.startswith((address, "data:", "blob:"))] == []

    browser.get("about:blank")
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert output == errors == ""


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
    assert "Address already in use" in capsys.readouterr().err
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
