import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fnn_lightning.data.framing import resize_picture
from fnn_lightning.data.own_data import OwnData
from fnn_lightning.errors import InputError

Arrays = dict[str, Any]


def arrays(**changed: Any) -> Arrays:
    rng = np.random.default_rng(0)
    content: Arrays = {
        "x_train": rng.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 2, 1, 0]),
        "x_test": rng.integers(0, 256, (3, 28, 28), dtype=np.uint8),
        "y_test": np.array([2, 0, 1], dtype=np.uint8),
    }
    return {name: value for name, value in {**content, **changed}.items() if value is not None}


def saved(content: Arrays) -> OwnData:
    with Path("data.npz").open("wb") as file:
        np.savez(file, **content)
    return OwnData("data.npz")


def prepared(content: Arrays) -> OwnData:
    data = saved(content)
    data.prepare()
    return data


@pytest.mark.parametrize("shape", [(28, 28), (784,), (28, 28, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, ">i2"])
def test_pictures_stay_as_they_are(shape: tuple[int, ...], dtype: Any) -> None:
    expected = arrays()
    given = {
        name: array.reshape(-1, *shape).astype(dtype) if name.startswith("x") else array
        for name, array in expected.items()
    }
    data = prepared(given)
    for train, part in ((True, "train"), (False, "test")):
        images, labels = data.images(train), data.labels(train)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert np.array_equal(images.numpy(), expected[f"x_{part}"])
        assert np.array_equal(labels.numpy(), expected[f"y_{part}"])
    assert list(data.class_names) == ["0", "1", "2"]


@pytest.mark.parametrize("shape", [(8, 8), (40, 30), (32, 32, 3)])
def test_pictures_of_another_size_are_resized(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (6, *shape), dtype=np.uint8)
    images = prepared(arrays(x_train=x)).images(train=True)
    assert torch.equal(images[4], resize_picture(Image.fromarray(x[4])))
    assert len(images.unique(dim=0)) == 6


def test_texts_are_the_names_of_the_classes() -> None:
    texts = np.array(["dog", "cat", "emu", "emu", "cat", "dog"])
    data = prepared(arrays(y_train=texts[:, None], y_test=np.array([b"cat", b"dog", b"emu"])))
    assert list(data.class_names) == ["cat", "dog", "emu"]
    assert data.labels(train=True).tolist() == [1, 0, 2, 2, 0, 1]
    assert data.labels(train=False).tolist() == [0, 1, 2]

    names = np.array(["emu", "dog", "cat"])
    data = prepared(arrays(y_train=texts, y_test=texts[:3], class_names=names))
    assert list(data.class_names) == ["emu", "dog", "cat"]
    assert data.labels(train=True).tolist() == [1, 2, 0, 0, 2, 1]

    numbers = np.array(["10", "9", "1", "1", "9", "10"])
    data = prepared(arrays(y_train=numbers, y_test=numbers[:3]))
    assert list(data.class_names) == ["1", "9", "10"]


def test_names_belong_to_integers() -> None:
    data = prepared(arrays(class_names=np.array(["x", "y", "z"])))
    assert list(data.class_names) == ["x", "y", "z"]
    assert data.labels(train=False).tolist() == [2, 0, 1]


ONES = np.ones((6, 28, 28))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_test": None}, r"x_test, y_test in data.npz, but got no y_test; it holds x_train"),
        ({"x_train": ONES / 2}, r"x_train .* 0 to 255, but got float64: .*\(255 \* x\).round"),
        ({"x_train": ONES > 0}, "but got bool"),
        ({"x_train": ONES.astype(int)}, "integers from 0 to 255, but got 1 to 1: scale"),
        ({"x_train": ONES.astype(int) * 300}, "but got 300 to 300: scale"),
        ({"x_train": -2 * ONES.astype(int)}, "but got -2 to -2: scale"),
        ({"x_train": np.zeros((6, 5), int)}, r"pictures of shape .*, but got \(6, 5\)"),
        ({"x_train": np.zeros((6, 28, 28, 2), int)}, r"but got \(6, 28, 28, 2\)"),
        ({"x_train": np.zeros((0, 28, 28), int)}, r"but got \(0, 28, 28\)"),
        ({"y_train": np.zeros((6, 3))}, r"y_train .*float64 of shape \(6, 3\): take the argmax"),
        ({"y_train": np.zeros(6)}, r"integers or texts of shape \(N,\), but got float64"),
        ({"y_train": np.zeros(0, int)}, "y_train in data.npz to be labels, but got none"),
        ({"y_train": np.arange(5) % 3}, r"got 5 labels of 6 pictures in x_train of data.npz"),
        ({"y_train": np.array(["a", "b"] * 3)}, "all integers or all texts, but got <U1 in train"),
        ({"y_train": np.array([0, 1, 2, 2, 1, 4])}, "to 4 without a gap .* no picture of 3"),
        ({"y_train": np.array([0, 1, 2, 2, 1, -1])}, "labels from 0 upwards .*, but got -1 to 2"),
        ({"y_train": np.array([0, 1, 2, 2, 1, 10**12])}, "1,000 classes .*up to 1,000,000,000,000"),
        ({"y_train": np.zeros(6, int), "y_test": np.zeros(3, int)}, "two classes .* got 0 only"),
        ({"y_train": np.array([0, 1, 2, 2, 1, 3])}, "every class in .*, but got none of 3 in test"),
        ({"class_names": np.array(["x", "y"])}, "0 to 1, for which .*, but got 0 to 2"),
        ({"class_names": np.array(["x", "y", "x"])}, "different names .*, but got x twice"),
        ({"class_names": np.array(["x", "y", ""])}, "printable names .*, but got ''"),
        ({"class_names": np.arange(3)}, r"class_names .* texts, .* but got int64 of shape \(3,\)"),
        ({"class_names": np.array(list("wxyz"))}, "none of z in train and none of z in test"),
        ({"y_train": np.array([0, 1, "2"] * 2, dtype=object)}, "arrays of objects, which can run"),
    ],
)
def test_bad_arrays_are_refused_in_one_line(changed: Arrays, message: str) -> None:
    data = saved(arrays(**changed))
    with pytest.raises(InputError, match=message) as error:
        data.prepare()
    assert "\n" not in str(error.value)


def test_texts_without_a_name_are_refused() -> None:
    texts = np.array(["a", "b", "c"])
    content = arrays(y_train=np.tile(texts, 2), y_test=texts, class_names=texts[:2])
    with pytest.raises(InputError, match=r"among the names .*, but got 'c'"):
        prepared(content)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "a bit", "other member"])
def test_damaged_files_are_refused(damage: str) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays())
    whole = content.getvalue()
    middle = whole.index(b"x_train") + 2000
    damaged = {
        "truncated": whole[:-40],
        "text": b"not an archive",
        "empty": b"",
        "a bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "other member": whole,
    }[damage]
    Path("data.npz").write_bytes(damaged)
    if damage == "other member":
        with zipfile.ZipFile("data.npz", "w") as archive:
            for name in arrays():
                archive.writestr(f"{name}.npy", "no array")
    with pytest.raises(InputError, match=r"data.npz is damaged|arrays of objects"):
        OwnData("data.npz").prepare()


def test_bad_pictures_are_skipped_with_their_labels() -> None:
    pictures = np.zeros((6, 28, 28), np.uint8)
    for index in (0, 1, 2, 4, 5):
        pictures[index, 4:24, 10 : 16 + index] = 255
    digit = np.zeros((3, 28, 28), np.uint8)
    digit[:, 4:24, 8:9] = 255
    digit[1, 10, 8:18] = 255
    digit[2, 4, 8:18] = 255
    saved(arrays(x_train=pictures, x_test=digit))
    data = OwnData("data.npz", "mnist")
    with pytest.raises(InputError, match=r"x_train of data.npz, picture 3: it is blank"):
        data.prepare()
    data = OwnData("data.npz", "mnist", "skip")
    with pytest.warns(UserWarning, match=r"1 of the pictures .*, picture 3 \(it is blank"):
        data.prepare()
    assert data.labels(train=True).tolist() == [0, 1, 2, 1, 0]
    assert len(data.images(train=True)) == 5
