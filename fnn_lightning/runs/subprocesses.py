"""Subcommands that another subcommand runs, each in a process of its own."""

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, NoReturn

from fnn_lightning.errors import InputError
from fnn_lightning.runs.progress import StatusLine
from fnn_lightning.runs.signals import StopSignals

PYTHON = [sys.executable, "-m", "fnn_lightning"]
POLL_SECONDS = 0.1


class Subprocesses:
    """Runs subcommands in processes of their own; none outlives the `with` block.

    A stop signal (Ctrl-C, SIGTERM) is passed on as SIGTERM, on which `fit` saves a checkpoint. Not
    as SIGINT: the terminal sends Ctrl-C to all processes anyway, and on a second one `fit` would
    not save. A child that was itself stopped by a signal stops all others. Windows has no SIGTERM:
    there the children only get the Ctrl-C of the terminal.
    """

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        """The children not yet returned by `wait`."""
        self._signals = StopSignals()
        self._terminated = False

    def __enter__(self) -> "Subprocesses":
        self._signals.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.running:
            child.kill()
        for child in self.running:
            child.wait()
        self._signals.release()

    @property
    def stop_signal(self) -> int:
        """The stop signal that came, 0 if none did. Once it has come, start nothing more."""
        return self._signals.received

    def start(self, argv: list[str], **kwargs: Any) -> subprocess.Popen[bytes]:
        """Start a subcommand.

        Args:
            argv: Its command line after `python -m fnn_lightning`.
            kwargs: Arguments of `Popen`. What goes to a file given as `stdout` is UTF-8.
        """
        if "stdout" in kwargs:
            env = kwargs.get("env") or os.environ
            kwargs["env"] = {**env, "PYTHONIOENCODING": "utf-8"}
        sys.stdout.flush()  # the child may write there too
        if os.name == "nt":
            kwargs.pop("pass_fds", None)  # which Windows cannot
        child = subprocess.Popen([*PYTHON, *argv], stdin=subprocess.DEVNULL, **kwargs)
        self.running.append(child)
        return child

    def wait(self, timeout: float = math.inf) -> list[subprocess.Popen[bytes]]:
        """Wait until a child ends.

        Args:
            timeout: Longest wait in seconds.

        Returns:
            The children that have ended; none if the time is up.
        """
        deadline = time.monotonic() + timeout
        while True:
            ended = [child for child in self.running if child.poll() is not None]
            for child in ended:
                self.running.remove(child)
                self._signals.received = self.stop_signal or signal_in_status(child.returncode)
            if self.stop_signal and not self._terminated:
                self._terminated = True
                for child in self.running if os.name != "nt" else ():
                    child.terminate()
            if ended or time.monotonic() > deadline:
                return ended
            time.sleep(POLL_SECONDS)

    def check_output(self, argv: list[str]) -> str:
        """Run a subcommand that checks settings to its end, and return what it prints.

        Raises:
            InputError: If it fails; the message is the last line of its stderr.
            SystemExit: If a stop signal came.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            with StatusLine() as status:
                status.show("checking the settings …")
                child = self.start(argv, stdout=out, stderr=err)
                self.wait()
            if self.stop_signal:
                exit_stopped(self.stop_signal, "nothing was started")
            out.seek(0)
            err.seek(0)
            if child.returncode:
                raise InputError(failure_reason(err.read(), child.returncode))
            return out.read().decode()


def signal_in_status(status: int) -> int:
    """Return the stop signal that ended a process, 0 if none did.

    Args:
        status: The process's exit status: minus the signal, or 128 plus it.

    Example:
        >>> signal_in_status(143) == signal_in_status(-15) == signal.SIGTERM
        True
        >>> signal_in_status(1)
        0
    """
    signum = -status if status < 0 else status - 128
    stop_signals = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)]
    return signum if signum in stop_signals else 0


def signal_name(signum: int) -> str:
    """Return a signal's name, or its number if it has none, such as a real-time signal.

    Example:
        >>> signal_name(15), signal_name(35)
        ('SIGTERM', 'signal 35')
    """
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def exit_stopped(signum: int, hint: str) -> NoReturn:
    """Exit as after a signal, with one line on stderr that names it.

    Args:
        signum: The signal.
        hint: The rest of the line: how to resume.

    Raises:
        SystemExit: With status 128 plus the signal.
    """
    print(f"stopped by {signal_name(signum)}; {hint}", file=sys.stderr)
    raise SystemExit(128 + signum)


def failure_reason(output: bytes, status: int) -> str:
    r"""Return in one line why a process failed.

    Args:
        output: What it wrote; the last line is its error.
        status: Its exit status.

    Example:
        >>> failure_reason(b"step 1\nerror: The loss is no longer finite\n", 1)
        'The loss is no longer finite'
        >>> failure_reason(b"", -15)
        'killed by SIGTERM'
    """
    if status < 0:
        return f"killed by {signal_name(-status)}"
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else f"exited with status {status}"
