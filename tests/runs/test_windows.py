"""What Windows lacks, as far as it can be taken away here."""

import ntpath
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from fnn_lightning.commands.main import main
from fnn_lightning.runs import files, multirun_folder
from fnn_lightning.runs.files import quote, relative_path, write_atomic
from fnn_lightning.runs.multirun_folder import lock_file
from tests.support import NEEDS_POSIX

Capture = pytest.CaptureFixture[str]


def test_the_path_to_another_drive_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "path", ntpath)
        paths = [relative_path("D:\\runs\\one", start) for start in ("C:\\work", "D:\\work")]
    assert paths == ["D:\\runs\\one", "..\\runs\\one"]


def test_a_run_on_another_drive_says_where_it_is(
    data_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def relpath(path: str, start: str = "") -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    with monkeypatch.context() as patch:
        patch.setattr(os.path, "relpath", relpath)
        main(["fit", "--data.data_dir", data_dir, "--model.hidden_dims=[4]", "--run_folder=run",
              "--trainer.max_steps=1"])  # fmt: skip
        main(["test", "--ckpt_path", "run/checkpoints/last.ckpt"])
    out = capsys.readouterr().out
    assert f"test --ckpt_path {Path('run/checkpoints/last.ckpt').absolute()}\n" in out
    assert f"report     {Path('run/report.html').absolute()}\n" in out


def test_commands_are_quoted_for_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--ckpt_path", "C:\\my runs\\last.ckpt", "--data.data_dir=C:\\data")
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        quoted = quote(*words)
    assert quoted == '--ckpt_path "C:\\my runs\\last.ckpt" --data.data_dir=C:\\data'


def test_everything_can_be_imported_without_fcntl() -> None:
    code = (
        "import sys; sys.modules['fcntl'] = None; "
        "from fnn_lightning.commands import seeds, sweep; "
        "from fnn_lightning.runs import multirun_folder; print(multirun_folder.fcntl)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("None\n", "")


# locks a byte for the process, as Windows does; run in another process, it finds the lock
MSVCRT = """
import errno, fcntl, os
LK_NBLCK = 2
def locking(fd, mode, size):
    assert mode == LK_NBLCK
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, size, os.lseek(fd, 0, os.SEEK_CUR))
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None
"""


@NEEDS_POSIX
def test_locks_without_fcntl(monkeypatch: pytest.MonkeyPatch) -> None:
    msvcrt = types.ModuleType("msvcrt")
    exec(MSVCRT, vars(msvcrt))
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    monkeypatch.setattr(multirun_folder, "fcntl", None)
    Path("msvcrt.py").write_text(MSVCRT)
    code = (
        "from fnn_lightning.runs import multirun_folder; multirun_folder.fcntl = None; "
        "from pathlib import Path; print(multirun_folder.lock_file(Path('output.txt')) is None)"
    )

    def held() -> bool:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
        return subprocess.check_output([sys.executable, "-c", code], env=env) == b"True\n"

    Path("output.txt").write_text("earlier\n")
    lock = lock_file(Path("output.txt"))
    assert lock
    with lock:
        assert held()
        subprocess.run([sys.executable, "-c", "print('the child')"], stdout=lock, check=True)
    assert not held()
    assert Path("output.txt").read_text() == "earlier\nthe child\n"


def test_a_file_that_another_program_has_open_is_replaced_when_it_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, replace = Path("metrics.json"), Path.replace
    refused: list[Path] = []

    def open_elsewhere(self: Path, target: Path) -> Path:
        if len(refused) < 2:
            refused.append(target)
            raise PermissionError(13, "The process cannot access the file")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", open_elsewhere)
    with pytest.raises(PermissionError):
        write_atomic(path, b"first")
    refused.clear()
    monkeypatch.setattr(files, "RETRIES", 10)
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert len(refused) == 2
