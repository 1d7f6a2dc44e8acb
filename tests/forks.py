"""The command line in forks of a process that has imported it: each starts 5 s sooner."""

import ctypes
import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import reduction
from pathlib import Path
from subprocess import TimeoutExpired
from typing import IO, TYPE_CHECKING, Any
from unittest.mock import patch

from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.utilities import rank_zero_only

from fnn_lightning.commands.main import main
from fnn_lightning.evaluation.tensorboard import TensorBoardPlots
from fnn_lightning.training.checkpointing import RunCheckpoint

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

PRELOADED = [  # all that a run imports, which is what a fork saves
    "tests.forks",
    "fnn_lightning.commands.lightning_cli",
    "matplotlib.backends.backend_agg",
    "tensorboard.compat.proto.graph_pb2",
    "torch.utils.tensorboard",
]

MAX_HELD = 50  # seconds in which a test has to stop a fork that waits for it
MAX_SILENCE = 120  # seconds in which a fork has to print a line that a test waits for


def run(
    words: tuple[str, ...],
    env: dict[str, str],
    folder: Path,
    outputs: list[int],
    before: str,
    pictures: bool,
) -> None:
    """Become `python -m fnn_lightning`, as far as a process can that has imported it already."""
    missing = [name for name in PRELOADED if name not in sys.modules]
    assert not missing, f"the fork server could not import {missing}"
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for number, descriptor in enumerate(outputs, start=1):
        os.dup2(descriptor, number)
    # made for the files of the server's, they would seek in a pipe or a terminal
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    # as Lightning reads it when imported
    rank_zero_only.rank = int(env.get("RANK") or env.get("SLURM_PROCID") or 0)  # type: ignore[attr-defined]
    if not pictures:
        patch.object(TensorBoardPlots, "_draw", lambda *_: None).start()
    patch.object(os, "fsync", lambda _: None).start()  # no test cuts the power
    exec(before, {})
    main(list(words))


def held(step: int) -> str:
    """Return code that lets training wait at a step, so that a test stops it there."""
    return f"from tests.forks import hold; hold({step})"


def hold(step: int) -> None:
    """Let the first rank wait at a step, before it is saved, for a signal or for a file `go`.

    That is the first one from `step` on that `RunCheckpoint` sees. The file `held_{step}` says that
    it has come.
    """
    on_train_batch_end = RunCheckpoint.on_train_batch_end

    def wait(self: RunCheckpoint, trainer: Any, *args: Any) -> None:
        if trainer.global_step >= step and trainer.is_global_zero:
            Path(f"held_{step}").touch()
            end = time.monotonic() + MAX_HELD
            while not (self._signals.received or Path("go").exists()):
                assert time.monotonic() < end, "nothing has stopped the run"
                time.sleep(0.01)
        on_train_batch_end(self, trainer, *args)

    patch.object(RunCheckpoint, "on_train_batch_end", wait).start()


SECOND_RANK = "from tests.forks import fork_second_rank; fork_second_rank()"


def fork_second_rank() -> None:
    """Let Lightning get the second rank that it launches from a fork of this process.

    It is forked now, as later this process has threads, and goes on when Lightning starts Python.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reader)
        launcher = patch.object(subprocess_script, "subprocess")
        launcher.start().Popen = functools.partial(SecondRank, pid, writer)
        return
    os.close(writer)
    with os.fdopen(reader) as launch:
        env = launch.read()
    if not env:  # the first rank has ended
        os._exit(0)
    os.environ.clear()
    os.environ.update(json.loads(env))
    rank_zero_only.rank = int(os.environ["LOCAL_RANK"])  # type: ignore[attr-defined]


def enter(machine: str) -> None:
    """Move this process into a network namespace made by `ip netns add`."""
    with Path("/run/netns", machine).open() as namespace:
        # `os.setns` needs Python 3.12; 0 accepts any kind of namespace
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), machine)


class SecondRank:
    """What Lightning uses of `subprocess.Popen`, for a child that waits for its environment."""

    def __init__(
        self, pid: int, writer: int, command: list[str], env: dict[str, str], cwd: str | None
    ) -> None:
        assert env["LOCAL_RANK"] == "1"
        self.pid = pid
        self.returncode: int | None = None
        with os.fdopen(writer, "w") as launch:
            json.dump(env, launch)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)


@functools.cache
def fork_context() -> "ForkServerContext":
    """Start the server, with the path, as it leaves out without a word what it does not find."""
    from multiprocessing import forkserver  # of POSIX alone

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    return context


class DupOnStart:
    """A file descriptor that a fork gets; it can only be pickled while one is being started."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> Any:
        duplicate = reduction.DupFd(self.descriptor)
        return type(duplicate).detach, (duplicate,)


class Fork:
    """A run of the command line in a fork, with the methods of `subprocess.Popen`.

    Args:
        words: What would follow `python -m fnn_lightning`.
        env: The whole environment.
        folder: Where `fork.out` and `fork.err` get the output that no file is given for.
        stdout: A file of the test's own.
        stderr: Another, or the same.
        before: Code that the process runs first.
        pictures: Draw TensorBoard's pictures.
    """

    def __init__(
        self,
        words: tuple[str, ...],
        env: dict[str, str],
        folder: Path,
        stdout: IO[Any] | None = None,
        stderr: IO[Any] | None = None,
        before: str = "",
        pictures: bool = False,
    ) -> None:
        self._outputs = [folder / name for name in ("fork.out", "fork.err")]
        folder.mkdir()
        with self._outputs[0].open("w") as out, self._outputs[1].open("w") as err:
            files = [
                DupOnStart((given or own).fileno()) for given, own in ((stdout, out), (stderr, err))
            ]
            self._process = fork_context().Process(
                target=run, args=(words, env, Path.cwd(), files, before, pictures)
            )
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.stdout = self._lines()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutExpired("a fork", timeout or 0)
        return self._outputs[0].read_text(), self._outputs[1].read_text()

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self.returncode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def _lines(self) -> Iterator[str]:
        """Yield what it prints, line by line, until it has ended."""
        out, shown = self._outputs[0], 0
        heard = time.monotonic()
        while True:
            ended = self.returncode is not None
            lines = out.read_text().splitlines(keepends=True)
            while shown < len(lines) and lines[shown].endswith("\n"):
                yield lines[shown]
                shown += 1
                heard = time.monotonic()
            if ended:
                return
            if time.monotonic() > heard + MAX_SILENCE:
                raise TimeoutExpired("a fork", MAX_SILENCE)
            time.sleep(0.01)


StartFork = Callable[..., Fork]
