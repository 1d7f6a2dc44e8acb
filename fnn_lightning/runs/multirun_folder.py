"""A folder of several runs that share their settings: choosing, locking and cleaning it up."""

import contextlib
import os
import time
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import yaml

from fnn_lightning.errors import InputError
from fnn_lightning.runs.files import write_atomic
from fnn_lightning.runs.run_folder import claim_version

# Not the package filelock: it keeps its file descriptor private, so that children cannot inherit
# the lock, and a run whose parent was killed would lose it.
try:
    import fcntl
except ImportError:  # Windows, where no child inherits a lock: there such a run does lose it
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
MAX_FOLDS = 1000
# Windows locks bytes, also against the children that write to the file: one that no output reaches,
# below the 2 GB up to which its `locking` can count
LOCKED_BYTE = 2**30
RETRY_SECONDS = 0.1


def fold_runs(folder: Path, settings: str) -> dict[Path, list[str]]:
    """Return the runs that a seed or a trial consists of: one, or one for each fold.

    Args:
        folder: Folder of the seed or the trial.
        settings: The config that all runs share, as YAML. With `folds`, and without the `fold`
            that validates, each of them does in turn.

    Returns:
        The folder of each run, and the options of `fit` that it has beside the others.

    Raises:
        InputError: If the number of folds is out of its range.

    Example:
        >>> runs = fold_runs(Path("seed_0"), "data: {folds: 2, fold: null}")
        >>> {run.as_posix(): options for run, options in runs.items()}
        {'seed_0/fold_0': ['--data.fold=0'], 'seed_0/fold_1': ['--data.fold=1']}
        >>> [*fold_runs(Path("seed_0"), "data: {folds: 2, fold: 1}").values()]
        [[]]
    """
    data = yaml.safe_load(settings)["data"]
    folds = data.get("folds")  # not in the settings of earlier versions
    if folds is None or data.get("fold") is not None:
        return {folder: []}
    if not 2 <= folds <= MAX_FOLDS:
        raise InputError(f"Expected `folds` to be from 2 to {MAX_FOLDS:,}, but got {folds}")
    return {folder / f"fold_{fold}": [f"--data.fold={fold}"] for fold in range(folds)}


def choose_folder(given: str | None, parent: str, settings_file: str) -> Path:
    """Choose the folder of several runs, and make it if it is not there.

    Args:
        given: The value of `--folder`. With None a new `parent/version_N` is made.
        parent: `seeds` or `sweeps`.
        settings_file: Name of the file that marks a folder of earlier runs.

    Raises:
        InputError: If the given folder holds something else.
    """
    if given is None:
        return claim_version(Path(parent))
    folder = Path(given).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"Expected --folder to be a folder, but got {given}: it is a file")
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    if settings_file not in names and any(name != LOCK for name in names):
        raise InputError(
            f"Expected --folder to be new, empty or one of earlier {parent}, but {given} holds "
            "something else"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def lock_file(path: Path, wait: bool = False) -> IO[bytes] | None:
    """Open a file to append to, and lock it.

    Children that inherit the file share the lock. It is released when all of them and this process
    have closed the file, so a run whose parent was killed keeps it until it ends. On Windows the
    lock is this process's alone.

    Args:
        path: The file; made if it is not there.
        wait: Whether to wait for the lock.

    Returns:
        The open file, or None if another process holds the lock.
    """
    file = path.open("ab")
    while not _try_lock(file, wait):
        if not wait:
            file.close()
            return None
        time.sleep(RETRY_SECONDS)
    return file


def _try_lock(file: IO[bytes], wait: bool) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
        msvcrt: Any = import_module("msvcrt")
        os.lseek(file.fileno(), LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    os.lseek(file.fileno(), 0, os.SEEK_END)  # where a child that inherits the file writes
    return True


def write_or_compare(file: Path, settings: str) -> None:
    """Write the settings that all runs of a folder share, or check that they are still the same.

    Raises:
        InputError: If the file holds others.
    """
    if not file.exists():
        write_atomic(file, settings.encode())
        return
    stored = file.read_text(encoding="utf-8").splitlines()
    lines = settings.splitlines()
    if stored != lines:
        new = [line.strip() for line in lines if line not in stored]
        raise InputError(
            f"Expected the settings of {file}, with which the runs in that folder began, but got "
            f"{', '.join(new) or 'fewer'}: name another --folder"
        )


def remove_if_unused(folder: Path, *names: str) -> None:
    """Remove a folder in which no run has started.

    Args:
        folder: The folder.
        names: The files written before the first run; with any other file the folder stays.
    """
    if {path.name for path in folder.iterdir()} <= set(names):
        with contextlib.suppress(PermissionError):  # on Windows the lock stays while it is held
            for name in names:
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()
