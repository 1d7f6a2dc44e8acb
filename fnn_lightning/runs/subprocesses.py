"""Several runs in one folder, each trained by a process of its own."""

import fcntl
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from fnn_lightning.errors import InputError
from fnn_lightning.runs.signals import StopSignals

PYTHON = [sys.executable, "-m", "fnn_lightning"]
METRICS = "metrics.json"
LOCK = ".lock"
POLL_SECONDS = 0.1


class Subprocesses:
    """Subcommands in processes of their own, none of which outlives this one's `with`.

    A signal to stop (Ctrl-C, SIGTERM) reaches them as SIGTERM, at which `fit` saves. A terminal
    sends Ctrl-C to all of them anyway, and at a second one `fit` would not save. One of them that
    was itself stopped by such a signal stops them all.
    """

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        """Those whose end `wait` has not yet returned."""
        self._signals = StopSignals()
        self._told = False

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
    def stop(self) -> int:
        """The signal to stop that came, 0 if none did; after it, nothing is to be started."""
        return self._signals.received

    def start(self, argv: list[str], **kwargs: Any) -> subprocess.Popen[bytes]:
        """Start a subcommand.

        Args:
            argv: What follows `python -m fnn_lightning`.
            kwargs: Arguments of `Popen`.
        """
        sys.stdout.flush()  # it may write there, too
        child = subprocess.Popen([*PYTHON, *argv], stdin=subprocess.DEVNULL, **kwargs)
        self.running.append(child)
        return child

    def wait(self, seconds: float = math.inf) -> list[subprocess.Popen[bytes]]:
        """Wait until one ends, or for as many seconds at the most.

        Returns:
            Those that have ended.
        """
        deadline = time.monotonic() + seconds
        while True:
            ended = [child for child in self.running if child.poll() is not None]
            for child in ended:
                self.running.remove(child)
                self._signals.received = self.stop or stopped_by(child.returncode)
            if self.stop and not self._told:
                self._told = True
                for child in self.running:
                    child.terminate()
            if ended or time.monotonic() > deadline:
                return ended
            time.sleep(POLL_SECONDS)

    def answer(self, argv: list[str]) -> str:
        """Run a subcommand to its end and return what it prints.

        Raises:
            InputError: If it fails, with its own last line.
            SystemExit: If it was asked to stop.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = self.start(argv, stdout=out, stderr=err)
            self.wait()
            if self.stop:
                raise stopped(self.stop, "nothing was begun")
            out.seek(0)
            err.seek(0)
            if child.returncode:
                raise InputError(reason(err.read(), child.returncode))
            return out.read().decode()


def stopped_by(status: int) -> int:
    """Return the signal to stop that a process ended by, 0 if it ended otherwise."""
    signum = -status if status < 0 else status - 128
    wanted = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)]
    return signum if signum in wanted else 0


def stopped(signum: int, to_go_on: str) -> SystemExit:
    """Say in one line that a signal was obeyed, and return the exception to end with."""
    print(f"stopped by {signal.Signals(signum).name}; {to_go_on}", file=sys.stderr)
    return SystemExit(128 + signum)


def reason(output: bytes, status: int) -> str:
    """Return in one line why a process failed.

    Args:
        output: What it wrote; its error is the last line.
        status: Its exit status.
    """
    lines = output.decode(errors="replace").strip().splitlines()
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return lines[-1].removeprefix("error: ") if lines else f"ended with status {status}"


def lock(path: Path, wait: bool = False) -> IO[bytes] | None:
    """Open a file to append to, and lock it until it is closed here and in the children it went to.

    So a run whose parent was killed keeps its lock until it has ended itself.

    Args:
        path: The file; made if there is none.
        wait: Whether to wait for the lock.

    Returns:
        The file, or None if another process holds the lock.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    return file


def folder_for(given: str | None, parent: str, mark: str) -> Path:
    """Choose the folder of several runs.

    Args:
        given: What the user named.
        parent: Where else a new one is made: `parent/version_N`, with the first N that is free.
        mark: Name of the file by which a folder of earlier runs is known.

    Raises:
        InputError: If what the user named holds something else.
    """
    if given is None:
        version = 0
        while True:
            folder = Path(parent, f"version_{version}")
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                version += 1
    folder = Path(given).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"Expected --folder to be a folder, but got {given}: it is a file")
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    if mark not in names and any(name != LOCK for name in names):
        raise InputError(
            f"Expected --folder to be new, empty or one of earlier {parent}, but {given} holds "
            "something else"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def settle(file: Path, text: str) -> None:
    """Write down what all runs of a folder share, or check that it is still the same.

    Raises:
        InputError: If it is not.
    """
    if not file.exists():
        from fnn_lightning.runs.checkpoint_io import write_atomic  # torch takes seconds to import

        write_atomic(file, text.encode())
        return
    stored = file.read_text(encoding="utf-8").splitlines()
    lines = text.splitlines()
    if stored != lines:
        others = [line.strip() for line in lines if line not in stored]
        raise InputError(
            f"Expected the settings of {file}, with which the runs in that folder began, but got "
            f"{', '.join(others) or 'fewer'}: name another --folder"
        )


def discard(folder: Path, *names: str) -> None:
    """Remove a folder if it holds no more than what was written before the first run."""
    if {path.name for path in folder.iterdir()} <= set(names):
        for name in names:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def read_metrics(run: Path) -> dict[str, Any]:
    """Read what `fit` and then `test` have left in the folder of a run.

    `run_folder` reads it, too, but takes seconds to import.

    Returns:
        Nothing, if `fit` has not ended, or the file is damaged.
    """
    try:
        metrics = json.loads((run / METRICS).read_bytes())
        complete = {"best", "checkpoint", "seconds"} <= metrics["fit"].keys()
    except (AttributeError, FileNotFoundError, KeyError, TypeError, ValueError):
        return {}
    return dict(metrics) if complete else {}


def val_result(metrics: dict[str, Any]) -> tuple[str, float | None]:
    """Return name and value of the metric that the checkpoint kept of a run is judged by."""
    best = metrics["fit"]["best"]
    if best:
        return f"best {best['monitor']}", best["score"]
    return "val/acc", metrics["fit"].get("val/acc")


def test_accuracy(metrics: dict[str, Any]) -> float | None:
    """Return the share of test images that the checkpoint kept of a run classifies correctly.

    Args:
        metrics: What the run has left.

    Returns:
        None if that checkpoint has not been tested last.
    """
    test = metrics.get("test", {})
    kept = test.get("checkpoint") == metrics["fit"]["checkpoint"]
    return float(test["accuracy"]) if kept else None
