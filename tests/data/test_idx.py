from pathlib import Path

import numpy as np
import pytest
import torch

from fnn_lightning.data.mnist_files import read_images, read_labels
from fnn_lightning.errors import InputError
from tests.support import idx_bytes

IMAGES = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)


def test_images_and_labels(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(idx_bytes(IMAGES))
    (tmp_path / "labels").write_bytes(idx_bytes(np.array([9, 0, 5], dtype=np.uint8)))
    images, labels = read_images(tmp_path / "images"), read_labels(tmp_path / "labels")
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), IMAGES)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [9, 0, 5]


GOOD = idx_bytes(IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged: it does not begin"),
        (GOOD[:10], "damaged: it does not begin"),
        (b"<html>not found</html>", "damaged: it does not begin"),
        (idx_bytes(IMAGES[0, 0]), "damaged: it does not begin"),
        (GOOD[:-1], "announces 2,368 bytes, but it holds 2,367"),
        (GOOD + b"x", "announces 2,368 bytes, but it holds 2,369"),
        (idx_bytes(IMAGES[:, :27]), r"28 × 28 pixels in .*, but got \[27, 28\]"),
        (GOOD[:4] + b"\xff" * 12, "damaged: its header announces"),
    ],
)
def test_damaged_images(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_images(tmp_path / "images")


def test_a_label_above_9(tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(idx_bytes(np.array([3, 10], dtype=np.uint8)))
    with pytest.raises(InputError, match=r"labels 0–9 in .*, but got 10"):
        read_labels(tmp_path / "labels")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is missing"):
        read_images(tmp_path / "nothing")
    with pytest.raises(InputError, match="is not a file"):
        read_images(tmp_path)
