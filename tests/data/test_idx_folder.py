import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fnn_lightning.data.datasets import Downloaded
from fnn_lightning.data.framing import resize_picture
from fnn_lightning.data.own_data import OwnData
from fnn_lightning.data.published import MNIST
from fnn_lightning.errors import InputError
from tests.support import idx_bytes, tiny_files


def files(classes: int = 12, size: int = 28) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    content = {}
    for part, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (count, size, size), dtype=np.uint8)
        content[f"{part}-images-idx3-ubyte"] = idx_bytes(images)
        labels = np.arange(count, dtype=np.uint8) % classes
        content[f"{part}-labels-idx1-ubyte"] = idx_bytes(labels)
    return content


def write(folder: Path, content: dict[str, bytes], packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in content.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(each))
        else:
            (folder / name).write_bytes(each)
    return folder


def prepared(path: Path) -> OwnData:
    data = OwnData(str(path))
    data.prepare()
    return data


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_files_are_read_packed_or_not(tmp_path: Path, packed: bool, place: str) -> None:
    write(tmp_path / "own" / place, files(), packed)
    data = prepared(tmp_path / "own")
    assert list(data.class_names) == [str(label) for label in range(12)]
    assert data.labels(train=True).tolist() == [i % 12 for i in range(40)]
    expected = files()["t10k-images-idx3-ubyte"][16:]
    assert data.images(train=False).numpy().tobytes() == expected


@pytest.mark.parametrize("form", ["train-images.idx3-ubyte", "train-images.idx3-ubyte.gz"])
def test_other_names_are_found(tmp_path: Path, form: str) -> None:
    folder = write(tmp_path / "own", files())
    path = folder / "train-images-idx3-ubyte"
    content = path.read_bytes()
    (folder / form).write_bytes(gzip.compress(content) if form.endswith("gz") else content)
    path.unlink()
    assert prepared(folder).images(train=True).numpy().tobytes() == content[16:]


def test_mnist_as_a_path_is_mnist(data_dir: str) -> None:
    named = Downloaded(MNIST, data_dir, None)
    data = prepared(Path(data_dir))
    for train in (True, False):
        assert torch.equal(data.images(train), named.images(train))
        assert torch.equal(data.labels(train), named.labels(train))
    assert list(data.class_names) == list(named.class_names)


def test_classes_have_the_names_in_a_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "own", files(classes=3))
    (folder / "classes.txt").write_bytes("\ufeffb\r\nstraße\r\na b\r\n\r\n".encode())
    assert list(prepared(folder).class_names) == ["b", "straße", "a b"]
    (folder / "classes.txt").write_bytes(b"a\nb\n")
    with pytest.raises(InputError, match=r"from 0 to 1, for which there are names, .* 0 to 2"):
        prepared(folder)
    (folder / "classes.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(InputError, match=r"names in UTF-8 in .*classes.txt, but got"):
        prepared(folder)


def test_images_of_another_size_are_resized(tmp_path: Path) -> None:
    data = prepared(write(tmp_path / "own", files(size=32)))
    pixels = np.frombuffer(files(size=32)["train-images-idx3-ubyte"][16 : 16 + 1024], np.uint8)
    expected = resize_picture(Image.fromarray(pixels.reshape(32, 32)))
    assert torch.equal(data.images(train=True)[0], expected)


LABELS = "train-labels-idx1-ubyte"
IMAGES = "train-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (LABELS, None, f"{LABELS} is missing"),
        (IMAGES, b"", f"{IMAGES} is damaged"),
        (IMAGES, gzip.compress(b"x" * 9000, mtime=0)[:-20], f"{IMAGES} cannot be read"),
        (IMAGES, files()[IMAGES][:-1], "promises 31,376 bytes, but it has 31,375"),
        (LABELS, idx_bytes(np.zeros(0, np.uint8)), "labels in .*, but got none"),
        (LABELS, files()["t10k-labels-idx1-ubyte"], "20 labels of 40 pictures"),
        (LABELS, idx_bytes(np.full(40, 200, np.uint8)), "from 0 to 200 without a gap .* of 12"),
    ],
)
def test_bad_files_are_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    folder = write(tmp_path / "own", files())
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        prepared(folder)
    assert "\n" not in str(error.value)


def test_labels_with_a_gap_are_refused(tmp_path: Path) -> None:
    content = tiny_files()
    for part in ("train", "t10k"):
        name = f"{part}-labels-idx1-ubyte"
        labels = np.frombuffer(content[name], np.uint8, offset=8) + 1
        content[name] = idx_bytes(labels)
    with pytest.raises(InputError, match=r"0 to 10 without a gap in .*, but got no picture of 0"):
        prepared(write(tmp_path / "own", content))
