"""What a terminal and a log file show while something runs."""

import io
import os
import struct
import sys

import pytest

from fnn_lightning.runs import progress
from fnn_lightning.runs.progress import StatusLine, TimeLeft
from tests.support import NEEDS_POSIX


class Terminal(io.StringIO):
    """A terminal that keeps what it was sent."""

    def isatty(self) -> bool:
        return True


def screen(sent: str) -> list[str]:
    """Return the lines that a terminal shows after what it was sent."""
    lines = []
    for row in sent.split("\n"):
        shown = ""
        for text in row.split("\r"):
            shown = text + shown[len(text) :]
        lines.append(shown.rstrip())
    return lines


def terminal_of_40_columns(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Let stdout and stderr be one terminal."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "terminal_columns", lambda: 40)
    return terminal


def test_the_line_is_rewritten_and_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of_40_columns(monkeypatch)
    with StatusLine() as status:
        status.show("seed 0 (1 of 2), 59 s so far")
        status.show("seed 1 (2 of 2)")
        assert screen(terminal.getvalue()) == ["seed 1 (2 of 2)"]
        status.print("seed 0   val/acc 97.00 %")
        assert screen(terminal.getvalue()) == ["seed 0   val/acc 97.00 %", "seed 1 (2 of 2)"]
    print("the end")
    assert screen(terminal.getvalue()) == ["seed 0   val/acc 97.00 %", "the end", ""]


def test_a_long_line_is_cut_and_leaves_room_for_what_ctrl_c_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = terminal_of_40_columns(monkeypatch)
    with StatusLine() as status:
        status.show(50 * "x")
        assert screen(terminal.getvalue()) == [34 * "x" + "…"]
        terminal.write("^C^C")  # as a terminal does
        status.show("stopping")
        assert screen(terminal.getvalue()) == ["stopping"]
    assert max(map(len, terminal.getvalue().split("\r"))) < 40  # nothing wraps


@pytest.mark.parametrize("is_rank", [True, False])
def test_a_log_file_and_other_ranks_get_whole_lines_alone(
    monkeypatch: pytest.MonkeyPatch, is_rank: bool
) -> None:
    log: io.StringIO = terminal_of_40_columns(monkeypatch)
    if is_rank:
        monkeypatch.setenv("LOCAL_RANK", "1")
    else:
        log = io.StringIO()
        monkeypatch.setattr(sys, "stderr", log)
    with StatusLine() as status:
        assert not status.shown
        status.show("seed 0 (1 of 2)")
        status.print("a warning", sys.stderr)
    assert log.getvalue() == "a warning\n"


@NEEDS_POSIX
def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import pty
    import termios

    leader, follower = pty.openpty()
    with os.fdopen(leader, "wb"), os.fdopen(follower, "w") as terminal:
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 61, 0, 0))
        monkeypatch.setattr(sys, "stderr", terminal)
        assert progress.terminal_columns() == 61
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert progress.terminal_columns() == 80


def test_the_time_left_is_that_of_the_tasks_done_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("fnn_lightning.runs.progress.time.monotonic", lambda: now)
    left = TimeLeft(4)
    now = 103.0
    assert str(left) == ", 3 s so far"
    now = 110.0
    left.update(1)
    assert str(left) == ", about 30 s left"
    now = 114.0
    left.update(1)
    assert str(left) == ", about 26 s left"
    now = 170.0
    assert str(left) == ", about 1 s left"  # the second takes longer than the first
    left.update(3)
    assert str(left) == ", about 23 s left"
    left.update(4)
    assert str(left) == ""
    assert str(TimeLeft(0)) == ""
