"""MNIST's four files: fetching them into a folder, and finding them there."""

import gzip
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import suppress
from http.client import HTTPException
from itertools import chain, count
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, url2pathname, urlopen

from fnn_lightning.data.idx_file import idx_shape
from fnn_lightning.errors import InputError
from fnn_lightning.runs.files import relative_path
from fnn_lightning.runs.progress import progress_bar

# name of each uncompressed file, and its number of dimensions
FILES = {
    "train-images-idx3-ubyte": 3,
    "train-labels-idx1-ubyte": 1,
    "t10k-images-idx3-ubyte": 3,
    "t10k-labels-idx1-ubyte": 1,
}
# Where the files can be, seen from the folder that the user names. Only names that stand for MNIST:
# FashionMNIST and others call their files the same.
PLACES = ("MNIST/raw", "MNIST", "raw", ".", "data/MNIST/raw")
TIMEOUT_SECONDS = 30  # of every wait for the network
CHUNK_BYTES = 2**16


def raw_dir(data_dir: str) -> Path:
    """Return the folder of the uncompressed files.

    Args:
        data_dir: The folder that holds torchvision's `MNIST/raw`, one of these two, or the folder
            of the files itself.

    Returns:
        The folder that holds all four files; if there is none, the one to fetch them into.

    Example:
        >>> raw_dir("data").as_posix(), raw_dir("data/MNIST").as_posix()
        ('data/MNIST/raw', 'data/MNIST/raw')
    """
    base = Path(data_dir).expanduser()
    complete = (folder for folder in _places(base) if not _problems(folder))
    return next(complete, _fetch_dir(base))


def _fetch_dir(base: Path) -> Path:
    """Return torchvision's folder of uncompressed files, also if that is what `base` names."""
    *_, parent, name = ("", "", *base.absolute().parts)
    if (parent, name) == ("MNIST", "raw"):
        return base
    return base / "raw" if name == "MNIST" else base / "MNIST" / "raw"


def find_file(folder: Path, name: str) -> Path:
    """Find one of MNIST's uncompressed files under the names that people have it.

    These are its own, Kaggle's `train-images.idx3-ubyte`, a folder of its name around it, and
    `.gz`, which some browsers leave in the name of what they have unpacked.

    Args:
        folder: Where to look.
        name: One of `FILES`.

    Returns:
        The first that is intact; if there is none, what should be there.
    """
    plain, dotted = folder / name, folder / name.replace("-idx", ".idx")
    forms = (plain, dotted, plain / name, *archives(folder, name))
    return next((path for path in forms if _problem(path, FILES[name]) is None), plain)


def archives(folder: Path, name: str) -> list[Path]:
    """Return the names under which people have the archive of one of MNIST's files.

    Args:
        folder: Where it would be.
        name: One of `FILES`.
    """
    return [folder / f"{form}.gz" for form in (name, name.replace("-idx", ".idx"))]


def _places(base: Path) -> list[Path]:
    return [base / place for place in PLACES]


def fetch_mnist(data_dir: str, mirror: str | None) -> None:
    """Download, unpack or copy MNIST's files, unless `data_dir` holds all of them.

    Sources, in this order: files and archives that are in `data_dir` already, `mirror`,
    torchvision's mirrors. An archive is used only if it has the MD5 digest that torchvision lists;
    an uncompressed file, if it has an IDX file's form. Files are written into torchvision's folder
    `MNIST/raw` alone. A damaged one in their way is kept as `….damaged`.

    Args:
        data_dir: Folder of the data, as `raw_dir` takes it; made if missing.
        mirror: Base URL of the four `.gz` archives, or a folder that holds them or what is in them.

    Raises:
        InputError: If a file is missing and no source has it, or it cannot be written.
    """
    if not _problems(raw_dir(data_dir)):
        return

    from filelock import FileLock

    base = Path(data_dir).expanduser()
    folder = _fetch_dir(base)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            _fetch_missing(folder, base, mirror)
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


def _fetch_missing(folder: Path, base: Path, mirror: str | None) -> None:
    """Fetch the files of a folder that are missing or damaged.

    Raises:
        InputError: If no source has one of them.
    """
    from torchvision.datasets import MNIST

    digests = dict(MNIST.resources)
    sources = [base, *([_source(mirror)] if mirror else []), *MNIST.mirrors]
    # in the files' own folder, so that moving them to their place is a rename and hence atomic
    with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
        problems = _problems(folder)  # with the lock held: another run may have fetched some
        for number, name in enumerate(problems):
            try:
                source, size = _fetch(name, digests[f"{name}.gz"], sources, Path(scratch))
            except InputError as error:
                raise InputError(
                    f"MNIST is incomplete: {'; '.join(problems.values())}; tried to get "
                    f"{name}.gz from {error}. Use --data.mirror with a folder that holds MNIST's "
                    "four files or a base URL of their .gz archives, or train on the embedded "
                    "digits with --data.dataset digits"
                ) from None
            if number == 0:  # not before: an error would stand alone
                print(f"fetching MNIST into {relative_path(folder)}", file=sys.stderr)
            print(f"  {name:<23} {size / 1000:>6,.0f} kB from {source}", file=sys.stderr)
            _put_in_place(Path(scratch) / name, folder / name)


def _put_in_place(fetched: Path, path: Path) -> None:
    """Move a file to its place; a damaged one there can be the user's own, and is kept."""
    names = chain([f"{path.name}.damaged"], (f"{path.name}.damaged_{n}" for n in count(2)))
    kept = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    problem = _problem(path, FILES[path.name])
    keep = path.is_file()
    if keep:
        path.rename(kept)
    fetched.replace(path)
    if keep:
        warnings.warn(f"{problem}; replaced by MNIST's, and kept as {kept.name}", stacklevel=2)


def _problems(folder: Path) -> dict[str, str]:
    """Return the missing or damaged files of a folder, each with what is wrong with it."""
    problems = {name: _problem(find_file(folder, name), ndim) for name, ndim in FILES.items()}
    return {name: problem for name, problem in problems.items() if problem}


def _problem(path: Path, ndim: int) -> str | None:
    """Return what is wrong with an IDX file, or None if it is intact."""
    try:
        idx_shape(path, ndim)
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return None


def _source(mirror: str) -> str | Path:
    """Return a mirror as a base URL that ends in a slash, or as a folder."""
    if mirror.startswith("file://"):
        path = Path(url2pathname(urlparse(mirror).path))
    elif "://" in mirror:
        return f"{mirror.rstrip('/')}/"
    else:
        path = Path(mirror).expanduser()
    return path.parent if path.is_file() else path  # one of the files names their folder


def _fetch(name: str, md5: str, sources: Iterable[str | Path], scratch: Path) -> tuple[str, int]:
    """Get one of MNIST's files from the first source that has it.

    Args:
        name: One of `FILES`.
        md5: Digest of its archive.
        sources: Base URLs of archives, and folders.
        scratch: Folder to put the uncompressed file into.

    Returns:
        The source, a folder or a server, and the size in bytes of the file there.

    Raises:
        InputError: If no source has it; the message lists the sources and why each failed.
    """
    failures: list[str] = []
    for source in sources:
        try:
            if isinstance(source, str):
                size = _fetch_from_url(f"{source}{name}.gz", md5, scratch)
                return urlparse(source).netloc, size
            return str(source), _fetch_from_folder(source, name, md5, scratch)
        # RuntimeError: wrong digest; ValueError: not a URL
        except (OSError, HTTPException, RuntimeError, ValueError) as error:
            failures.append(f"{source} ({getattr(error, 'reason', None) or error})")
    raise InputError("; ".join(failures) or "nowhere")


def _fetch_from_url(url: str, md5: str, scratch: Path) -> int:
    """Download an archive and unpack it.

    Returns:
        Size of the archive, in bytes.
    """
    from torchvision.datasets.utils import check_md5

    archive = scratch / url.rpartition("/")[2]
    request = Request(url, headers={"User-Agent": "fnn_lightning"})
    try:
        with (
            progress_bar(None, archive.name.partition("-idx")[0], unit_scale=True) as bar,
            urlopen(request, timeout=TIMEOUT_SECONDS) as response,
            archive.open("wb") as file,
        ):
            bar.total = response.length
            for chunk in iter(lambda: response.read(CHUNK_BYTES), b""):
                file.write(chunk)
                bar.update(len(chunk))
    except OSError:
        if not url.startswith("https:"):
            raise
        # where a proxy breaks HTTPS; the digest is checked all the same
        return _fetch_from_url(url.replace("https:", "http:", 1), md5, scratch)
    if not check_md5(archive, md5):
        raise RuntimeError("the archive is damaged")
    _unpack(archive, scratch / archive.stem)
    return archive.stat().st_size


def _unpack(archive: Path, path: Path) -> None:
    with gzip.open(archive) as packed, path.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)


def _fetch_from_folder(base: Path, name: str, md5: str, scratch: Path) -> int:
    """Unpack an archive that a folder holds, or copy what is in it.

    Returns:
        Size of the file in the folder, in bytes.
    """
    from torchvision.datasets.utils import check_md5

    # Digests tell MNIST's archives from FashionMNIST's, so they may lie in any folder below.
    folders = [*_places(base), *sorted(path for path in base.glob("*") if path.is_dir())]
    packed = [path for folder in folders for path in archives(folder, name) if path.is_file()]
    for archive in packed:
        if check_md5(archive, md5):
            _unpack(archive, scratch / name)
            return archive.stat().st_size
    for file in (find_file(place, name) for place in _places(base)):
        if _problem(file, FILES[name]) is None:
            shutil.copyfile(file, scratch / name)
            return file.stat().st_size
    raise RuntimeError("the archive is damaged" if packed else "no such file")
