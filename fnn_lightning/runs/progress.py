"""What a terminal shows while something takes its time: a status line, bars, the time left.

Importing this file must stay quick: no torch, no tqdm.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

Bar = TypeVar("Bar", bound="tqdm[Any]")

ROOM = 5  # columns left free: for the cursor, and for what the terminal shows of Ctrl-C, `^C^C`

BAR = "{percentage:3.0f} %|{bar}| {desc}, {n_fmt}/{total_fmt}, {remaining} left"
STOPPING = "stopping: what runs saves its checkpoint …"


class StatusLine:
    """One line on stderr that is rewritten in place, and is gone after the `with` block.

    It is shown in a terminal only, so that no log file holds carriage returns. What is printed
    meanwhile goes through `print`, which keeps the line below it.
    """

    def __init__(self) -> None:
        # on the first rank alone
        self.shown = sys.stderr.isatty() and "LOCAL_RANK" not in os.environ
        """Whether there is a terminal to show it in."""
        self._text = ""

    def __enter__(self) -> "StatusLine":
        return self

    def __exit__(self, *_: object) -> None:
        self.show("")

    def show(self, text: str) -> None:
        """Replace the line.

        Args:
            text: The new one, cut to the width of the terminal; "" clears the line.
        """
        if self.shown and text + self._text:
            width = max(1, terminal_columns() - ROOM)
            line = text if len(text) <= width else f"{text[: width - 1]}…"
            blank = " " * (width + ROOM - 1)  # no escape sequence, which some terminals lack
            print(f"\r{blank}\r{line}", end="", file=sys.stderr, flush=True)
        self._text = text

    def print(self, text: str, file: IO[str] | None = None) -> None:
        """Print whole lines above the line.

        Args:
            text: The lines, without the last line feed.
            file: Where to; stdout by default.
        """
        status = self._text
        self.show("")
        print(text, file=file, flush=True)
        self.show(status)


@contextmanager
def says(what: str) -> Iterator[None]:
    """Show in a terminal what takes its time, such as "loading", until it is done."""
    with StatusLine() as status:
        status.show(f"{what} …")
        yield


class TimeLeft:
    """Estimates when several like tasks will be done, from the time of those done so far.

    As text it is `, about 40 s left`. Before the first is done it is `, 12 s so far`, and after the
    last it is empty.

    Args:
        total: Number of tasks.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._started = self._last_done = time.monotonic()

    def update(self, done: int) -> None:
        """Note how many of the tasks are done."""
        if done > self._done:
            self._done, self._last_done = done, time.monotonic()

    def __str__(self) -> str:
        if self._done >= self._total:
            return ""
        if not self._done:
            return f", {duration(time.monotonic() - self._started)} so far"
        seconds = (self._total - self._done) * (self._last_done - self._started) / self._done
        seconds -= time.monotonic() - self._last_done
        return f", about {duration(max(1, seconds))} left"


def duration(seconds: float) -> str:
    """Write a duration for a reader.

    Example:
        >>> duration(3.2), duration(59.7), duration(754), duration(5430)
        ('3 s', '1 min', '13 min', '1 h 30 min')
    """
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def terminal_columns() -> int:
    """Return the width of the terminal that stderr is; 80 if it does not tell."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):  # not a terminal, or a stream without a descriptor
        return 80


def progress_bar(
    items: Iterable[Any] | None, description: str, shown: bool = True, **kwargs: Any
) -> "tqdm[Any]":
    """Make a bar on stderr, which a terminal alone shows, and which goes when it is closed.

    Args:
        items: What it iterates over, if it does.
        description: What is done with them.
        shown: Whether this process may show it.
        kwargs: Other arguments of `tqdm`.
    """
    from tqdm import tqdm  # slow to import

    disable = None if shown else True  # None: unless stderr is a terminal
    bar = tqdm(items, description, bar_format=BAR, dynamic_ncols=True, disable=disable, **kwargs)
    return leave_room(bar)


def leave_room(bar: Bar) -> Bar:
    """Make a tqdm bar go when it is closed, and narrow enough for `^C^C` after it in its line."""
    if bar.disable:  # as on all ranks but the first; it has no shape then
        return bar
    bar.leave = False
    shape = bar.dynamic_ncols

    def narrower(file: Any) -> tuple[int | None, int | None]:
        columns, rows = shape(file)
        return (max(columns - ROOM + 1, 1) if columns else columns), rows

    if shape:  # None without a terminal
        bar.dynamic_ncols = narrower
    return bar
