"""How a run ends early: asked to by a signal, when its step is saved, or left by a process."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

LOST = "another process of the run has ended or is out of reach; see what it said"


class Stopped(BaseException):
    """The run was asked to stop.

    Args:
        signum: The signal.
        path: The checkpoint to go on from, "" if there is none.
    """

    def __init__(self, signum: int, path: str) -> None:
        super().__init__(signum, path)
        self.signum = signum
        self.path = path


class StopSignals:
    """Notes SIGINT (Ctrl-C), SIGTERM and, in a job of SLURM, SIGUSR1, its usual warning.

    A second Ctrl-C does not wait: it raises `KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self.received = 0
        """The signal that came, 0 if none did."""
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Handle the signals from now on."""
        if threading.current_thread() is not threading.main_thread():
            return  # only there Python lets signals be handled
        wanted = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGUSR1") and "SLURM_JOB_ID" in os.environ:
            wanted.append(signal.SIGUSR1)
        self.received = 0
        self._before = {signum: signal.signal(signum, self._note) for signum in wanted}

    def release(self) -> None:
        """Leave the signals to whoever handled them before."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT == self.received:
            raise KeyboardInterrupt
        self.received = self.received or signum


def terminate_on_sigterm() -> None:
    """Let SIGTERM end this process, as it does where nobody handles it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def requeue(stop: Stopped) -> None:
    """Let SLURM start the job again if its warning, SIGUSR1, was what stopped the run."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or stop.signum != getattr(signal, "SIGUSR1", None):
        return
    import subprocess  # slow to import, and this file is read even by `--version`

    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    try:
        subprocess.run(["scontrol", "requeue", f"{array}_{task}" if array else job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the job could not be queued again: {error}", file=sys.stderr)


def destroy_process_group() -> None:
    """Close the connections to the other processes of a run that has ended, if there are any.

    Lightning does so for NCCL alone; gloo's, left open, can abort the process while it exits.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def lost_a_rank(error: Exception) -> bool:
    """Tell whether a word between the processes of a run found nobody to answer."""
    from torch import distributed

    backends = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
    return (
        isinstance(error, RuntimeError)
        and distributed.is_available()
        and (distributed.is_initialized() or isinstance(error, distributed.DistError))
        and any(sign in str(error) for sign in backends)
    )
