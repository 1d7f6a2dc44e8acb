"""What a terminal of 80 columns shows after Ctrl-C."""

import os
import select
import struct
import subprocess
import sys
import time

import pytest

from tests.support import LAST, fit

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a Unix terminal")
COLUMNS, SECONDS = 80, 100
# evaluation is slow, so that Ctrl-C comes while its bar is there
PROGRAM = """
import fcntl, sys, termios, time
from fnn_lightning import FNNLitModule
from fnn_lightning.commands.main import main

def slow(step):
    return lambda *args: [time.sleep(0.5), step(*args)][1]

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
FNNLitModule.validation_step = slow(FNNLitModule.validation_step)
FNNLitModule.test_step = slow(FNNLitModule.test_step)
main(sys.argv[1:])
"""


def screen(output: str) -> list[str]:
    """Lay out what was written to a terminal that is as high as need be; without blank lines."""
    rows: dict[int, dict[int, str]] = {}
    row = column = 0
    for character in output.replace("\x1b[A", "\x1b"):
        if character == "\x1b":
            row -= 1
        elif character == "\n":
            row += 1
        elif character == "\r":
            column = 0
        else:
            if column == COLUMNS:
                row, column = row + 1, 0
            rows.setdefault(row, {})[column] = character
            column += 1
    lines = [
        "".join(cells.get(place, " ") for place in range(COLUMNS)).rstrip()
        for _, cells in sorted(rows.items())
    ]
    return [line for line in lines if line]


def type_ctrl_c(words: list[str], when: str, times: int) -> tuple[int, list[str]]:
    """Run the command line in a terminal, and press Ctrl-C once it shows a text."""
    import fcntl
    import pty
    import termios

    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        stdin=its, stdout=its, stderr=its, start_new_session=True,
    )  # fmt: skip
    os.close(its)
    output, typed, end = b"", False, time.monotonic() + SECONDS
    try:
        while select.select([ours], [], [], max(end - time.monotonic(), 0))[0]:
            try:
                output += os.read(ours, 65536)
            except OSError:  # how a terminal ends on Linux
                break
            if not typed and when in output.decode(errors="replace"):
                typed = True
                for _ in range(times):
                    os.write(ours, b"\x03")
                    time.sleep(0.05)
        return process.wait(max(end - time.monotonic(), 1)), screen(output.decode())
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize(
    ("times", "message"), [(1, "stopped by SIGINT, saved"), (2, "interrupted")]
)
def test_ctrl_c_leaves_one_closed_bar_and_a_line(data_dir: str, times: int, message: str) -> None:
    words = ["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8]",
             "--data.batch_size", "10", "--trainer.val_check_interval", "7"]  # fmt: skip
    status, lines = type_ctrl_c(words, "Validation DataLoader", times)
    assert status == 130
    bars = [line for line in lines if "Epoch" in line or "Validation" in line]
    assert len(bars) == 1
    assert bars[0].startswith("Epoch 0")
    last = lines.index(bars[0])
    assert lines[last + 1].startswith(message)
    assert all(line.startswith(("network", "optimizer", "device", "step")) for line in lines[:last])
    assert "^C" in "".join(lines[4 : last + 1])  # the terminal's, at the end of a line


def test_ctrl_c_in_test_says_so(data_dir: str) -> None:
    fit(data_dir)
    status, lines = type_ctrl_c(["test", "--ckpt_path", LAST], "Testing DataLoader", 1)
    assert status == 130
    assert len(lines) == 2
    assert lines[0].startswith("Testing")
    assert lines[1] == "interrupted"
