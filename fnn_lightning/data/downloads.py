"""Fetches the files of published data sets into a folder: downloads, unpacks or copies them."""

import gzip
import shutil
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from http.client import HTTPException
from itertools import chain, count
from pathlib import Path
from typing import IO
from urllib.parse import urlparse
from urllib.request import Request, url2pathname, urlopen
from zipfile import ZipFile

from fnn_lightning.data.published import (
    ALIKE,
    Archive,
    Published,
    fetch_dir,
    file_forms,
    find_file,
    problem_of,
    raw_dir,
)
from fnn_lightning.errors import InputError
from fnn_lightning.runs.files import relative_path
from fnn_lightning.runs.progress import progress_bar

TIMEOUT_SECONDS = 30  # of every wait for the network
CHUNK_BYTES = 2**16


def fetch(published: Published, data_dir: str, mirror: str | None) -> None:
    """Download, unpack or copy the files of a data set, unless `data_dir` holds all of them.

    Sources, in this order: files and archives that are in `data_dir` already, `mirror`,
    torchvision's addresses. An archive is used only if it has the MD5 digest that torchvision
    lists; an uncompressed file, if it has an IDX file's form and no other data set's folder. Files
    are written into torchvision's folder, such as `MNIST/raw`, alone. A damaged one in their way is
    kept as `….damaged`. EMNIST's archive, which holds more than one data set, is kept there too.

    Args:
        published: The data set.
        data_dir: Folder of the data, as `raw_dir` takes it; made if missing.
        mirror: Base URL of the archives, or a folder that holds them or what is in them.

    Raises:
        InputError: If a file is missing and no source has it, or it cannot be written.
    """
    if not published.problems(raw_dir(data_dir, published)):
        return

    from filelock import FileLock

    base = Path(data_dir).expanduser()
    folder = fetch_dir(base, published.title)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            _fetch_missing(published, folder, base, mirror)
    except OSError as error:
        raise InputError(
            f"Expected `data_dir` to be a folder that can be written, "
            f"but got {data_dir!r}: {error.strerror}: {error.filename}"
        ) from error
    finally:
        # Another run that waits for the lock then finds the files, or fails for its own reason.
        with suppress(OSError):
            (folder / ".lock").unlink()
        for path in created:  # from the innermost outwards; only empty ones can be removed
            with suppress(OSError):
                path.rmdir()


def _fetch_missing(published: Published, folder: Path, base: Path, mirror: str | None) -> None:
    """Fetch the files of a folder that are missing or damaged.

    Raises:
        InputError: If no source has one of them.
    """
    title, archives = published.title, published.archives()
    width = max(len(archive.name.removesuffix(".gz")) for archive in archives)
    # in the files' own folder, so that moving them to their place is a rename and hence atomic
    with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
        # with the lock held: another run may have fetched some
        problems = published.problems(folder)
        needed = [each for each in archives if problems.keys() & set(each.files)]
        for number, archive in enumerate(needed):
            names = [name for name in archive.files if name in problems]
            sources = [base, *_sources(mirror, title), *archive.base_urls]
            try:
                source, size = _fetch(published, archive, names, sources, Path(scratch))
            except InputError as error:
                packed = "their .gz archives" if len(archives) > 1 else archive.name
                raise InputError(
                    f"{title} is incomplete: {'; '.join(problems.values())}; tried to get "
                    f"{archive.name} from {error}. Use --data.mirror with a folder that holds "
                    f"{title}'s four files or a base URL of {packed}, or train on the embedded "
                    "digits with --data.dataset digits"
                ) from None
            if number == 0:  # not before: an error would stand alone
                print(f"fetching {title} into {relative_path(folder)}", file=sys.stderr)
            what = archive.name.removesuffix(".gz")
            print(f"  {what:<{width}} {size / 1000:>6,.0f} kB from {source}", file=sys.stderr)
            for name in names:
                problem = problem_of(folder / name, name)
                _put_in_place(Path(scratch) / name, folder / name, problem, title)
            downloaded = Path(scratch) / archive.name
            if len(archive.files) > 1 and downloaded.exists():
                path = folder / archive.name
                _put_in_place(downloaded, path, f"{path} is damaged", title)


def _put_in_place(fetched: Path, path: Path, problem: str | None, title: str) -> None:
    """Move a file to its place; a damaged one there can be the user's own, and is kept."""
    names = chain([f"{path.name}.damaged"], (f"{path.name}.damaged_{n}" for n in count(2)))
    kept = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    keep = path.is_file()
    if keep:
        path.rename(kept)
    fetched.replace(path)
    if keep:
        warnings.warn(f"{problem}; replaced by {title}'s, and kept as {kept.name}", stacklevel=2)


def _sources(mirror: str | None, title: str) -> list[str | Path]:
    """Return a mirror as a folder, or as base URLs that end in a slash."""
    if not mirror:
        return []
    if mirror.startswith("file://"):
        path = Path(url2pathname(urlparse(mirror).path))
    elif "://" in mirror:
        url = f"{mirror.rstrip('/')}/"
        # Files of one name are of one data set; the others are in torchvision's folders, if at all.
        return [url] if title == "MNIST" else [f"{url}{title}/raw/", url]
    else:
        path = Path(mirror).expanduser()
    return [path.parent if path.is_file() else path]  # one of the files names their folder


def _fetch(
    published: Published,
    archive: Archive,
    names: Sequence[str],
    sources: Iterable[str | Path],
    scratch: Path,
) -> tuple[str, int]:
    """Get files of a data set from the first source that has them.

    Args:
        published: The data set.
        archive: The archive that they are in.
        names: Those of its files to get.
        sources: Base URLs of archives, and folders.
        scratch: Folder to put the uncompressed files into.

    Returns:
        The source, a folder or a server, and the size in bytes of what was read there.

    Raises:
        InputError: If no source has them; the message lists the sources and why each failed.
    """
    failures: list[str] = []
    for source in sources:
        try:
            if isinstance(source, str):
                size = _fetch_from_url(f"{source}{archive.name}", archive, names, scratch)
                return urlparse(source).netloc, size
            return str(source), _fetch_from_folder(source, published, archive, names, scratch)
        # RuntimeError: wrong digest; ValueError: not a URL
        except (OSError, HTTPException, RuntimeError, ValueError) as error:
            failures.append(f"{source} ({getattr(error, 'reason', None) or error})")
    raise InputError("; ".join(failures) or "nowhere")


def _fetch_from_url(url: str, archive: Archive, names: Sequence[str], scratch: Path) -> int:
    """Download an archive and unpack it.

    Returns:
        Size of the archive, in bytes.
    """
    path = scratch / archive.name
    request = Request(url, headers={"User-Agent": "fnn_lightning"})
    try:
        with (
            progress_bar(None, archive.name.partition("-idx")[0], unit_scale=True) as bar,
            urlopen(request, timeout=TIMEOUT_SECONDS) as response,
            path.open("wb") as file,
        ):
            bar.total = response.length
            for chunk in iter(lambda: response.read(CHUNK_BYTES), b""):
                file.write(chunk)
                bar.update(len(chunk))
    except OSError:
        if not url.startswith("https:"):
            raise
        # where a proxy breaks HTTPS; the digest is checked all the same
        return _fetch_from_url(url.replace("https:", "http:", 1), archive, names, scratch)
    if problem := _wrong_digest(path, archive.md5):
        path.unlink()
        raise RuntimeError(problem)
    _unpack(path, names, scratch)
    return path.stat().st_size


def _fetch_from_folder(
    base: Path, published: Published, archive: Archive, names: Sequence[str], scratch: Path
) -> int:
    """Unpack an archive that a folder holds, or copy what is in it.

    Returns:
        Size of the files in the folder, in bytes.
    """
    # Digests tell the archives of data sets apart, so they may lie in any folder below.
    below = sorted(path for path in base.glob("*") if path.is_dir())
    folders = [*published.places(base), *below]
    problem = "no such file"
    for path in _existing(folders, archive.name):
        found = _wrong_digest(path, archive.md5)
        if found is None:
            _unpack(path, names, scratch)
            return path.stat().st_size
        problem = found
    size = 0
    for name in names:
        files = (find_file(place, name) for place in published.own_places(base))
        file = next((each for each in files if problem_of(each, name) is None), None)
        if file is not None:
            shutil.copyfile(file, scratch / name)
        elif len(names) > 1 and (packed := _existing(folders, f"{name}.gz")):
            # of a .zip that was unpacked by hand: its own checksum has to do
            file = packed[0]
            _gunzip(file, scratch / name)
            if damage := problem_of(scratch / name, name):
                raise RuntimeError(damage)
        elif any(
            problem_of(find_file(place, name), name) is None for place in (base, base / "raw")
        ):
            raise RuntimeError(
                f"{name} there can be another data set's: {published.title}'s is expected in a "
                f"folder {published.title}/raw"
            )
        else:
            raise RuntimeError(problem)
        size += file.stat().st_size
    return size


def _existing(folders: Iterable[Path], name: str) -> list[Path]:
    """Return the archives of a name in some folders."""
    return [path for folder in folders for path in file_forms(folder, name) if path.is_file()]


def _wrong_digest(path: Path, md5: str) -> str | None:
    """Return what is wrong with an archive, or None if it has the digest."""
    from torchvision.datasets.utils import calculate_md5

    digest = calculate_md5(path)
    if digest == md5:
        return None
    others = (Published(title) for title in ALIKE)
    owners = (other.title for other in others if digest in {each.md5 for each in other.archives()})
    owner = next(owners, None)
    return f"the archive is {owner}'s" if owner else "the archive is damaged"


def _unpack(archive: Path, names: Sequence[str], scratch: Path) -> None:
    """Unpack files from a .gz or a .zip of .gz, whose digest is right."""
    if archive.suffix == ".gz":
        (name,) = names
        _gunzip(archive, scratch / name)
        return
    with ZipFile(archive) as packed:
        members = {Path(member).name: member for member in packed.namelist()}
        for name in names:
            with packed.open(members[f"{name}.gz"]) as member:
                _gunzip(member, scratch / name)


def _gunzip(packed: Path | IO[bytes], path: Path) -> None:
    try:
        with gzip.open(packed) as unpacked, path.open("wb") as file:
            shutil.copyfileobj(unpacked, file)
    except (EOFError, zlib.error) as error:
        raise RuntimeError("the archive is damaged") from error
