"""A folder of pictures, one sub-folder for each class: reads it once, into a checked cache."""

import hashlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fnn_lightning.data.classes import (
    ADVICE,
    MAX_CLASSES,
    check_parts,
    listed,
    sorted_names,
    too_many_classes,
)
from fnn_lightning.data.datasets import BadFiles, Framing
from fnn_lightning.data.framing import Framed, frame_all, read_framed
from fnn_lightning.data.own_data import Content, Part
from fnn_lightning.data.preprocessing import is_picture_name
from fnn_lightning.errors import InputError
from fnn_lightning.runs.files import write_atomic

PARTS = ("train", "test")
TEST_FILE = "test_pictures.txt"
TEST_SHARE = 1 / 7  # as in MNIST
SPLIT_SEED = 0
CACHE = ".fnn_lightning_{framing}.npz"
CACHE_VERSION = 1  # raised when pictures become other pixels than before
LOCK = ".fnn_lightning.lock"


class Picture(NamedTuple):
    """A picture's file."""

    path: str
    """Relative to the data set's folder, with forward slashes."""
    label: int
    is_test: bool
    size: int
    """In bytes; -1 if the file cannot be reached."""
    mtime_ns: int


class PictureFolder:
    """Pictures as `train/CLASS/*.png` and `test/CLASS/*.png`, or `CLASS/*.png`.

    With one level, about one in seven pictures of each class is for testing, chosen by a fixed
    seed. They are written down in `test_pictures.txt`, so that pictures which are added later are
    for training. Hidden files and files without the suffix of a picture are ignored.

    Args:
        path: The folder.
        framing: How pictures become 28 × 28 pixels.
        bad_files: Whether a picture that cannot be read stops the run, or is skipped.
    """

    def __init__(self, path: Path, framing: Framing, bad_files: BadFiles) -> None:
        self.path = path
        self.framing: Framing = framing
        self.bad_files: BadFiles = bad_files
        self._cache = path / CACHE.format(framing=framing)

    def class_names(self) -> list[str]:
        """Look up the sub-folders, which name the classes, sorted."""
        return self._layout()[1]

    def read(self, first: bool) -> Content:
        """Read the pictures, in the order of their file names, from the cache if it is fresh."""
        pictures = self._find_pictures(first)
        digest = self._digest(pictures)
        framed = self._read_cache(digest, len(pictures))
        if framed is None:
            with locked(self.path / LOCK, first):
                # with the lock held: another run may have read them
                framed = self._read_cache(digest, len(pictures)) or self._read_pictures(
                    pictures, digest, first
                )
        labels = torch.tensor([each.label for each in pictures])

        def part(is_test: bool) -> Part:
            own = [i for i, each in enumerate(pictures) if each.is_test == is_test]
            sound = [i for i in own if i not in framed.bad]
            bad = {pictures[i].path: framed.bad[i] for i in own if i in framed.bad}
            return Part(framed.images[sound], labels[sound], bad, [pictures[i].path for i in sound])

        return Content(part(is_test=False), part(is_test=True))

    def _layout(self) -> tuple[tuple[str, ...], list[str]]:
        """Return the sub-folders of the parts, none if there is one level, and the classes."""
        names = subfolders(self.path)
        parts = [name for name in PARTS if name in names]
        deep = [name for name in parts if subfolders(self.path / name)]
        if parts == [*PARTS] and (deep or len(names) == len(PARTS)):
            return PARTS, self._classes_of_parts()
        if deep:
            raise InputError(
                f"Expected the folders train and test in {self.path}, but got {listed(names)}: "
                f"rename one, or give {self.path / deep[0]}, of which a part is for testing"
            )
        if not names:
            with os.scandir(self.path) as entries:
                loose = sum(is_picture_name(each.name) for each in entries)
            found = f"{loose:,} pictures outside of one" if loose else "none"
            raise InputError(
                f"Expected a folder of pictures for each class in {self.path}, but got {found}"
            )
        return (), sorted_names(names)

    def _classes_of_parts(self) -> list[str]:
        train, test = (set(subfolders(self.path / part)) for part in PARTS)
        alone = [
            f"{listed(sorted_names([*names]))} in {part} alone"
            for part, names in (("train", train - test), ("test", test - train))
            if names
        ]
        if alone:
            raise InputError(
                f"Expected the same classes in train and test of {self.path}, but got "
                f"{' and '.join(alone)}"
            )
        return sorted_names([*train])

    def _find_pictures(self, first: bool) -> list[Picture]:
        """List the pictures of both parts.

        Raises:
            InputError: If a class has none in one of them.
        """
        parts, names = self._layout()
        found = [
            Picture(path, label, part == "test", size, mtime_ns)
            for part in parts or [""]
            for label, name in enumerate(names)
            for path, size, mtime_ns in pictures_in(self.path, Path(part, name))
        ]
        found.sort(key=lambda each: (each.path.rpartition("/")[2], each.label, each.is_test))
        split, is_written = (set(), True) if parts else self._split(found, names)
        if not parts:
            found = [each._replace(is_test=each.path in split) for each in found]
        labels = torch.tensor([each.label for each in found], dtype=torch.int64)
        is_test = torch.tensor([each.is_test for each in found], dtype=torch.bool)
        advice = ADVICE if parts else f"remove {self.path / TEST_FILE} to split anew"
        check_parts(self.path, names, labels[~is_test], labels[is_test], advice)
        if first and not is_written:
            self._write_split(split)
        return found

    def _split(self, pictures: Sequence[Picture], names: Sequence[str]) -> tuple[set[str], bool]:
        """Choose the test pictures.

        Returns:
            Those written down and, of each class that none of them is of, one in seven; and
            whether all of them are written down.
        """
        path = self.path / TEST_FILE
        written: set[str] = set()
        try:
            lines = os.fsdecode(path.read_bytes()).split("\n")
            written = {line.removesuffix("\r") for line in lines} - {""}
        except FileNotFoundError:
            pass
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        known = {line.partition("/")[0] for line in written}
        new = [each for each in pictures if names[each.label] not in known]
        counts = Counter(each.label for each in new)
        few = [
            f"{counts[i]} of {name}"
            for i, name in enumerate(names)
            if name not in known and counts[i] < 2
        ]
        if few:
            raise InputError(
                f"Expected two pictures or more of each class in {self.path}, one to test on, "
                f"but got {listed(few)}: {ADVICE}"
            )
        return written | choose_test_pictures(new), not new

    def _write_split(self, split: set[str]) -> None:
        content = os.fsencode("".join(f"{path}\n" for path in sorted(split)))
        try:
            write_atomic(self.path / TEST_FILE, content)
        except OSError as error:
            warnings.warn(
                f"the test pictures are not written down in {self.path / TEST_FILE}: "
                f"{error.strerror}; they are others when pictures are added",
                stacklevel=2,
            )

    def _digest(self, pictures: Sequence[Picture]) -> str:
        """Return what tells whether the cache is of these pictures, as they are now."""
        digest = hashlib.sha256(f"{CACHE_VERSION} {self.framing} {self.bad_files}".encode())
        for path, _, is_test, size, mtime_ns in pictures:
            digest.update(os.fsencode(f"\0{path}\0{is_test:d} {size} {mtime_ns}"))
        return digest.hexdigest()

    def _read_pictures(self, pictures: Sequence[Picture], digest: str, first: bool) -> Framed:
        framed = frame_all(
            pictures,
            lambda picture: read_framed(self.path / picture.path, self.framing),
            lambda picture: str(self.path / picture.path),
            self.bad_files,
            first,
        )
        if first:
            content = io.BytesIO()
            np.savez(
                content,
                digest=np.array(digest),
                images=framed.images.numpy(),
                bad=np.array([*framed.bad], np.int64),
                reasons=np.array([*framed.bad.values()], str),
            )
            with suppress(OSError):  # without a cache, it takes longer the next time
                write_atomic(self._cache, content.getbuffer())
        return framed

    def _read_cache(self, digest: str, count: int) -> Framed | None:
        """Read the cache; None if there is none, or it is stale or damaged."""
        try:
            # the archive has a checksum of each array
            with self._cache.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                if stored["digest"].item() != digest:
                    return None
                images, bad, reasons = (stored[name] for name in ("images", "bad", "reasons"))
            if images.dtype != np.uint8 or images.shape != (count, 28, 28):
                return None
            reason_of = dict(zip(bad.tolist(), reasons.tolist(), strict=True))
            return Framed(torch.from_numpy(images), reason_of)
        except Exception:  # a damaged file can make NumPy fail in any way
            return None


def subfolders(folder: Path) -> list[str]:
    """List the sub-folders of a folder that are not hidden.

    Raises:
        InputError: If the folder or one in it cannot be read, as a link to itself, or there are
            more than a data set has classes.
    """
    names = []
    try:
        with os.scandir(folder) as entries:
            for each in entries:
                if not each.name.startswith(".") and each.is_dir():
                    names.append(each.name)
                    if len(names) > MAX_CLASSES:
                        raise too_many_classes(folder, "more sub-folders")
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    return sorted(names)


def pictures_in(root: Path, folder: Path) -> Iterator[tuple[str, int, int]]:
    """List the pictures in the folder of a class.

    Args:
        root: The data set's folder.
        folder: That of the class, relative to it.

    Yields:
        Path relative to `root`, with forward slashes; size in bytes; time of the last change in
        nanoseconds.

    Raises:
        InputError: If it cannot be read, or there is a folder in it.
    """
    try:
        with os.scandir(root / folder) as entries:
            for each in entries:
                if each.name.startswith("."):
                    continue
                if each.is_dir():
                    raise InputError(
                        f"Expected pictures in {root / folder}, but got the folder {each.name}: "
                        "move its pictures up, or make it a class of its own"
                    )
                if is_picture_name(each.name):
                    try:
                        stat = each.stat()
                        size, mtime_ns = stat.st_size, stat.st_mtime_ns
                    except OSError:  # a link to nowhere; reading it says so
                        size, mtime_ns = -1, 0
                    yield f"{folder.as_posix()}/{each.name}", size, mtime_ns
    except OSError as error:
        raise InputError(
            f"{error.filename or root / folder} cannot be read: {error.strerror}"
        ) from None


def choose_test_pictures(pictures: Sequence[Picture]) -> set[str]:
    """Choose about one in seven pictures of each class, at least one, by a fixed seed.

    >>> pictures = [Picture(f"{i % 2}/{i}.png", i % 2, False, 1, 0) for i in range(20)]
    >>> sorted(choose_test_pictures(pictures)) == sorted(choose_test_pictures(pictures))
    True
    >>> len(choose_test_pictures(pictures))
    2
    """
    by_class: dict[int, list[str]] = {}
    for each in pictures:
        if "\n" not in each.path:  # it would not be a line of the file
            by_class.setdefault(each.label, []).append(each.path)
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    chosen: set[str] = set()
    for _, paths in sorted(by_class.items()):
        order: Tensor = torch.randperm(len(paths), generator=generator)
        count = max(1, round(len(paths) * TEST_SHARE))
        chosen |= {paths[index] for index in order[:count].tolist()}
    return chosen


@contextmanager
def locked(path: Path, wanted: bool) -> Iterator[None]:
    """Let one run at a time read the pictures and write the cache, where a lock can be written."""
    from filelock import FileLock

    lock = FileLock(path)
    try:
        if wanted:
            lock.acquire()
    except (OSError, NotImplementedError):  # a folder or file system that allows none
        wanted = False
    try:
        yield
    finally:
        if wanted:
            lock.release()
            with suppress(OSError):
                path.unlink()
