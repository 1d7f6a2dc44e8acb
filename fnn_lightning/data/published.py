"""The data sets that torchvision knows: what their files are called, and where they can lie."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fnn_lightning.data.idx_file import idx_shape
from fnn_lightning.errors import InputError

ALIKE = ("MNIST", "FashionMNIST", "KMNIST")  # those that call their files the same
# what people call the folder of a data set, in lower case without punctuation
FOLDER_NAMES = {
    "mnist": "MNIST",
    "fashion": "FashionMNIST",
    "fashionmnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "kuzushijimnist": "KMNIST",
    "qmnist": "QMNIST",
    "emnist": "EMNIST",
}

# MD5 digests of unpacked labels, of the data sets whose are known
OWNERS = {
    "a25bea736e30d166cdddb491f175f624": "MNIST",
    "27ae3e4e09519cfbb04c329615203637": "MNIST",
    "9018921c3c673c538a1fc5bad174d6f9": "FashionMNIST",
    "15d484375f8d13e6eb1aabb0c3f46965": "FashionMNIST",
}


class Archive(NamedTuple):
    """What torchvision knows about an archive."""

    name: str
    md5: str
    base_urls: list[str]
    """Where it can be downloaded, each with a slash at its end."""
    files: Sequence[str]
    """Those of `Published.files` that are in it."""


@dataclass(frozen=True)
class Published:
    """A data set of which torchvision knows the addresses and digests.

    Args:
        title: Its name in messages, of torchvision's class and of torchvision's folder.
        split: Which part of EMNIST.
    """

    title: str
    split: str = ""

    def part(self, train: bool) -> str:
        """Return what its files call the training or the test part."""
        if train:
            return "train"
        return "t10k" if self.title in ALIKE else "test"

    def images(self, train: bool) -> str:
        """Return the name of a part's uncompressed images."""
        return f"{self._prefix}{self.part(train)}-images-idx3-ubyte"

    def labels(self, train: bool) -> str:
        """Return the name of a part's uncompressed labels."""
        form = "idx2-int" if self.title == "QMNIST" else "idx1-ubyte"
        return f"{self._prefix}{self.part(train)}-labels-{form}"

    @property
    def files(self) -> tuple[str, str, str, str]:
        """Names of the uncompressed files."""
        return (self.images(True), self.labels(True), self.images(False), self.labels(False))

    @property
    def _prefix(self) -> str:
        return {"QMNIST": "qmnist-", "EMNIST": f"emnist-{self.split}-"}.get(self.title, "")

    @property
    def in_torchvision(self) -> Any:
        """Torchvision's class, imported only when it is needed."""
        from torchvision import datasets

        return getattr(datasets, self.title)

    def archives(self) -> list[Archive]:
        """Return the archives that the files come in."""
        known = self.in_torchvision
        if self.title == "EMNIST":
            base_url, _, name = known.url.rpartition("/")
            return [Archive(name, known.md5, [f"{base_url}/"], self.files)]
        if self.title == "QMNIST":
            resources = [*known.resources["train"], *known.resources["test"]]
            parted = [(*url.rpartition("/"), md5) for url, md5 in resources]
            return [
                Archive(name, md5, [f"{base_url}/"], [name.removesuffix(".gz")])
                for base_url, _, name, md5 in parted
            ]
        return [
            Archive(name, md5, list(known.mirrors), [name.removesuffix(".gz")])
            for name, md5 in known.resources
        ]

    def places(self, base: Path) -> list[Path]:
        """Return where the files can be, seen from the folder that the user names."""
        places = (f"{self.title}/raw", self.title, "raw", ".", f"data/{self.title}/raw")
        return [base / place for place in places]

    def own_places(self, base: Path) -> Iterator[Path]:
        """Yield the places where uncompressed files are this data set's, as no digest tells.

        MNIST, FashionMNIST and KMNIST call their files the same. They are MNIST's unless their
        folder is named after another data set.
        """
        for place in self.places(base):
            if self.title not in ALIKE or named(place) == self.title:
                yield place

    def problems(self, folder: Path) -> dict[str, str]:
        """Return the missing or damaged files of a folder, each with what is wrong with it."""
        problems = {name: problem_of(find_file(folder, name), name) for name in self.files}
        return {name: problem for name, problem in problems.items() if problem}


MNIST = Published("MNIST")
# by what `--data.dataset` calls them
PUBLISHED = {
    "mnist": MNIST,
    "fashion_mnist": Published("FashionMNIST"),
    "kmnist": Published("KMNIST"),
    "qmnist": Published("QMNIST"),
    **{
        f"emnist_{split}": Published("EMNIST", split)
        for split in ("letters", "balanced", "byclass", "bymerge", "digits")
    },
}


def named(folder: Path) -> str:
    """Return the data set that a folder is named after, MNIST if none.

    >>> named(Path("fashion-mnist/data")), named(Path("data/MNIST/raw")), named(Path("downloads"))
    ('FashionMNIST', 'MNIST', 'MNIST')
    """
    words = (re.sub(r"[\W_]", "", part.lower()) for part in reversed(folder.absolute().parts))
    innermost = next((word for word in words if word not in ("raw", "data")), "")
    return FOLDER_NAMES.get(innermost, "MNIST")


def raw_dir(data_dir: str, published: Published = MNIST) -> Path:
    """Return the folder of the uncompressed files.

    Args:
        data_dir: The folder that holds torchvision's `MNIST/raw`, one of these two, or the folder
            of the files itself.
        published: The data set; torchvision's folder is named after it.

    Returns:
        The folder that holds all four files; if there is none, the one to fetch them into.

    Example:
        >>> raw_dir("data").as_posix(), raw_dir("data/MNIST").as_posix()
        ('data/MNIST/raw', 'data/MNIST/raw')
    """
    base = Path(data_dir).expanduser()
    complete = (folder for folder in published.own_places(base) if not published.problems(folder))
    return next(complete, fetch_dir(base, published.title))


def check_owner(labels: Path, published: Published) -> None:
    """Refuse uncompressed labels that are known to be another data set's.

    Raises:
        InputError: If they are.
    """
    if published.title not in ALIKE:  # their names tell
        return
    digest = hashlib.md5(labels.read_bytes(), usedforsecurity=False).hexdigest()
    owner = OWNERS.get(digest, published.title)
    if owner != published.title:
        raise InputError(
            f"Expected {published.title} in {labels.parent}, but got {owner}: move its files to a "
            f"folder {owner}/raw"
        )


def fetch_dir(base: Path, title: str) -> Path:
    """Return torchvision's folder of uncompressed files, also if that is what `base` names."""
    *_, parent, name = ("", "", *base.absolute().parts)
    if (parent, name) == (title, "raw"):
        return base
    return base / "raw" if name == title else base / title / "raw"


def find_file(folder: Path, name: str) -> Path:
    """Find one of the uncompressed files under the names that people have it.

    These are its own, Kaggle's `train-images.idx3-ubyte`, a folder of its name around it, and
    `.gz`, which some browsers leave in the name of what they have unpacked.

    Args:
        folder: Where to look.
        name: One of `Published.files`.

    Returns:
        The first that is intact; if there is none, what should be there.
    """
    plain, *dotted = file_forms(folder, name)
    forms = (plain, *dotted, plain / name, *file_forms(folder, f"{name}.gz"))
    return next((path for path in forms if problem_of(path, name) is None), plain)


def file_forms(folder: Path, name: str) -> list[Path]:
    """Return a file or an archive by its own name and by Kaggle's."""
    return [folder / form for form in dict.fromkeys([name, name.replace("-idx", ".idx")])]


def problem_of(path: Path, name: str) -> str | None:
    """Return what is wrong with an IDX file, or None if it is intact.

    Args:
        path: Where it is.
        name: Its published name, which tells the dimensions and the type: `…-idx2-int`.
    """
    ndim, _, item = name.rpartition("idx")[2].partition("-")
    try:
        idx_shape(path, int(ndim), item)
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return None
