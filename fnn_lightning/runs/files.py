"""Files written atomically, and checked before any work that they can be written.

Importing this file must stay quick: no torch.
"""

import os
import shlex
import time
from pathlib import Path

from fnn_lightning.errors import InputError

# Windows renames no file that another program, such as a virus scanner, has open
RETRIES = 10 if os.name == "nt" else 0
RETRY_SECONDS = 0.1


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it is there either complete and on the disk, or not at all.

    The content goes to a hidden file beside it, which is then renamed. Missing folders are made.

    Raises:
        OSError: If it cannot be written; a file that was there before is unchanged.
    """
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.unlink(missing_ok=True)  # left by a killed run; or a link, which must not be followed
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace_file(part, path)
    finally:
        part.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the rename itself reaches the disk with the folder
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def replace_file(source: Path, target: Path) -> None:
    """Rename a file, in place of another if there is one."""
    for _ in range(RETRIES):
        try:
            source.replace(target)
            return
        except PermissionError:
            time.sleep(RETRY_SECONDS)
    source.replace(target)


def relative_path(path: Path | str, start: Path | str = os.curdir) -> str:
    """Write a path relative to a folder; absolute if they lie on different drives of Windows.

    Args:
        path: The path.
        start: The folder; by default the current one.

    Example:
        >>> relative_path("runs/../data")
        'data'
    """
    try:
        return os.path.relpath(path, start)
    except ValueError:
        return os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links


def display_path(path: Path | str) -> str:
    """Write a path for people: relative if it lies in the current folder, otherwise absolute.

    Example:
        >>> display_path("runs/../data")
        'data'
    """
    relative = relative_path(path)
    outside = Path(relative).parts[:1] == (os.pardir,)
    return os.path.abspath(path) if outside else relative  # noqa: PTH100 - as above


def quote(*words: Path | str) -> str:
    """Write words of a command line as the user's shell takes them.

    Example:
        >>> quote("--ckpt_path", "my run").replace('"', "'")
        "--ckpt_path 'my run'"
    """
    if os.name == "nt":  # cmd.exe takes single quotes for part of the word
        from subprocess import list2cmdline  # slow to import

        return list2cmdline(map(str, words))
    return shlex.join(map(str, words))


def check_writable(path: Path, option: str) -> None:
    """Check that a file or folder can be created.

    Args:
        path: The file or folder.
        option: The option that names it, for the message.

    Raises:
        InputError: If it cannot.
    """
    ancestor = next(each for each in path.resolve().parents if each.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
        raise InputError(f"Expected {option} in a folder that can be written, but got {path}")


def output_file(given: str, suffixes: tuple[str, ...]) -> Path:
    """Check the value of `--output`: a file that can be written, with a known suffix.

    Args:
        given: The value.
        suffixes: The suffixes allowed, in lower case.

    Raises:
        InputError: If the suffix is another, or the file cannot be written.

    Example:
        >>> output_file("net.onnx", (".onnx", ".pt2")).name
        'net.onnx'
    """
    path = Path(given).expanduser()
    if path.suffix.lower() not in suffixes:
        raise InputError(f"Expected --output to end in {' or '.join(suffixes)}, but got {given!r}")
    if path.is_dir():
        raise InputError(f"Expected --output to be a file, but got {given}: it is a folder")
    check_writable(path, "--output")
    return path
