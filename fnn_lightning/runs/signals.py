"""How a run ends early: stopped by a signal, or because another rank died."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

LOST = "another rank died or is unreachable; see its output"


class Stopped(BaseException):
    """A signal has stopped the run.

    Args:
        signum: The signal.
        path: The checkpoint to resume from, "" if there is none.
    """

    def __init__(self, signum: int, path: str) -> None:
        super().__init__(signum, path)
        self.signum = signum
        self.path = path


class StopSignals:
    """Remembers that SIGINT (Ctrl-C), SIGTERM or, in a SLURM job, SIGUSR1 came.

    SIGUSR1 is how SLURM usually warns a job before its time is up. A second Ctrl-C raises
    `KeyboardInterrupt` at once.
    """

    def __init__(self) -> None:
        self.received = 0
        """The first signal that came, 0 if none did."""
        self._earlier_handlers: dict[int, Any] = {}

    def listen(self) -> None:
        """Handle the signals from now on."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python handles signals in the main thread only
        signums = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGUSR1") and "SLURM_JOB_ID" in os.environ:
            signums.append(signal.SIGUSR1)
        self.received = 0
        self._earlier_handlers = {
            signum: signal.signal(signum, self._remember) for signum in signums
        }

    def release(self) -> None:
        """Restore the earlier handlers."""
        for signum, handler in self._earlier_handlers.items():
            signal.signal(signum, handler)
        self._earlier_handlers = {}

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT == self.received:
            raise KeyboardInterrupt
        self.received = self.received or signum


def terminate_on_sigterm() -> None:
    """Restore SIGTERM's default: it ends this process."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise `Stopped`, so that what is going on can clean up; it has saved nothing."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum, "")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def keep_keyboard_interrupt() -> Iterator[None]:
    """Let Ctrl-C raise `KeyboardInterrupt`, of which Lightning's Trainer makes an exit.

    The Trainer also lets the process ignore Ctrl-C from then on; the earlier handler is restored.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


def requeue(stop: Stopped) -> None:
    """Ask SLURM to start the job again if its warning, SIGUSR1, stopped the run."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or stop.signum != getattr(signal, "SIGUSR1", None):
        return
    import subprocess  # slow to import, and even `--version` imports this file

    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    try:
        subprocess.run(["scontrol", "requeue", f"{array}_{task}" if array else job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the job could not be requeued: {error}", file=sys.stderr)


def destroy_process_group() -> None:
    """Close the connections to the other ranks of a finished run, if there are any.

    Lightning does so for NCCL only. Gloo's, when left open, can abort the process as it exits.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def lost_a_rank(error: Exception) -> bool:
    """Tell whether an error means that another rank could not be reached."""
    from torch import distributed

    signs = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "pair closure")
    return (
        isinstance(error, RuntimeError)
        and distributed.is_available()
        and (distributed.is_initialized() or isinstance(error, distributed.DistError))
        and any(sign in str(error) for sign in signs)
    )
