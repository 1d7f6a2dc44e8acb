import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time


def read_until(terminal: int, pattern: str, output: bytes = b"") -> bytes:
    """Read what appears in a terminal until it matches, for a minute at most."""
    begin = time.monotonic()
    while not re.search(pattern.encode(), output):
        assert time.monotonic() < begin + 60, output
        output += os.read(terminal, 4096)
    return output


def test_ctrl_c_closes_the_progress_bar(data_dir: str) -> None:
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    command = [sys.executable, "-m", "fnn_lightning", "fit", "--data.data_dir", data_dir]
    command += ["--trainer.max_epochs", "100000", "--data.batch_size", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=end, stderr=end, env=environment)
    os.close(end)
    try:
        output = read_until(terminal, r"it/s(.|\s)*it/s")
        process.send_signal(signal.SIGINT)
        output = read_until(terminal, r"last\.ckpt\r\n", output)
        assert process.wait(timeout=60) == 130
        try:
            while more := os.read(terminal, 4096):
                output += more
        except OSError:  # the terminal is closed
            pass
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    before, _, after = output.decode().partition("stopped by SIGINT")
    assert re.search(r"\r +\r$", before), "the bar was not cleared"
    assert "it/s" not in after, "a bar was drawn below the message"
    assert re.fullmatch(r", saved; resume with: .*last\.ckpt\r\n", after)
