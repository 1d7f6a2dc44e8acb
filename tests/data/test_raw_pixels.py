from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fnn_lightning.data.preprocessing import read_picture
from fnn_lightning.data.raw_pixels import raw_pixels
from fnn_lightning.errors import InputError


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Return the path of a dark 1 on light paper, turned on its side by its EXIF data."""
    drawn = Image.new("L", (200, 300), "white")
    drawn.paste("black", (90, 50, 120, 250))
    path, exif = tmp_path / "one.png", Image.Exif()
    exif[0x0112] = 6
    drawn.rotate(90, expand=True).save(path, exif=exif)
    return path


@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 784), (3, 1, 28, 28)])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, list])
def test_arrays_of_every_shape_are_the_same_images(shape: tuple[int, ...], convert: Any) -> None:
    pixels, single = raw_pixels(convert(images().reshape(shape)))
    assert torch.equal(pixels, torch.from_numpy(images()))
    assert not single


@pytest.mark.parametrize("shape", [(28, 28), (784,)])
def test_one_image_is_told_from_several(shape: tuple[int, ...]) -> None:
    one = images(1).reshape(shape)
    for x in (one, torch.from_numpy(one)):
        pixels, single = raw_pixels(x)
        assert torch.equal(pixels, torch.from_numpy(images(1)))
        assert single
    pixels, single = raw_pixels([one])
    assert pixels.shape == (1, 28, 28)
    assert not single


@pytest.mark.parametrize("dtype", [">i4", "int64", "uint16", "float16", "float64", ">f8"])
def test_numbers_of_any_dtype_keep_their_values(dtype: str) -> None:
    array = images().astype(dtype)
    array.setflags(write=False)
    for x in (array, array[:, ::-1, ::-1]):
        pixels, _ = raw_pixels(x)
        assert pixels.is_floating_point()
        assert np.array_equal(pixels.numpy(), x)


def test_pictures_are_converted_as_the_command_line_does(picture: Path) -> None:
    expected = read_picture(picture)
    for x in (picture, str(picture), Image.open(picture)):
        pixels, single = raw_pixels(x)
        assert torch.equal(pixels[0], expected)
        assert single
    pixels, single = raw_pixels([str(picture), Image.open(picture), images(1)[0]])
    assert torch.equal(pixels, torch.stack([expected, expected, torch.from_numpy(images(1)[0])]))
    assert not single


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([], r"at least one image, but got an empty list"),
        (np.zeros((0, 28, 28)), r"at least one image, but got none: shape \(0, 28, 28\)"),
        (np.zeros((28, 27)), r"of shape \(28, 28\), .*, but got \(28, 27\)"),
        (np.zeros((2, 3, 28, 28)), r", but got \(2, 3, 28, 28\)"),
        (np.zeros(()), r", but got \(\)"),
        ([np.zeros((2, 28, 28))], r"one image of shape \(28, 28\), but got item 0 of shape \(2, "),
        (np.full((28, 28), np.nan), r"finite pixels from 0 to 255, but got NaN or infinity"),
        (np.full((28, 28), np.inf), r"finite pixels"),
        (np.eye(28), r"pixels from 0 to 255, which the network scales itself, but got 0 to 1:"),
        (np.eye(28, dtype=np.int64) * 1000, r"but got 0 to 1e\+03:"),
        (np.eye(28, dtype=bool), r"from 0 to 255, but got torch.bool: multiply by 255"),
        (np.array(["one.png"]), r"a picture's path, a PIL image, a NumPy array or a tensor"),
        (np.array([None]), r"a picture's path, a PIL image, a NumPy array or a tensor"),
        (7, r"a NumPy array or a tensor, but got 7$"),
        ([[0.0, 1.0]], r"a NumPy array or a tensor, but got \[0.0, 1.0\]$"),
        ("none.png", r"a picture of a digit, but got none.png: it cannot be read: No such file"),
        (".", r"a picture of a digit, but got \.: it is a folder: give a list of the pictures"),
        (Image.new("L", (50, 50)), r"a picture of a digit, but got a PIL image: it is blank"),
        ([images(1)[0], Image.new("L", (2, 2))], r"but got item 1: it is too small: 2×2 pixels"),
    ],
)
def test_anything_else_is_refused_in_one_line(x: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        raw_pixels(x)
    assert "\n" not in str(caught.value)
