import torch
from sklearn.datasets import load_digits

from fnn_lightning.data.sklearn_digits import TEST_SIZE, TRAIN_SIZE, read_digits


def test_every_fifth_digit_is_a_test_image() -> None:
    _, labels = load_digits(return_X_y=True)
    images, test_labels = read_digits(train=False)
    assert images.shape == (TEST_SIZE, 28, 28)
    assert test_labels.tolist() == labels[::5].tolist()
    images, train_labels = read_digits(train=True)
    assert images.shape == (TRAIN_SIZE, 28, 28)
    assert train_labels.tolist() == [label for i, label in enumerate(labels) if i % 5]


def test_digits_are_images_like_those_of_mnist() -> None:
    images, labels = read_digits(train=True)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    box = images[:, 4:24, 4:24]
    assert images.sum(dtype=torch.int64) == box.sum(dtype=torch.int64)  # no ink outside the box
    assert images.max() == 255
    # the mean ink of the 8×8 original, on its scale of 0–16
    pixels, _ = load_digits(return_X_y=True)
    original = pixels[1].mean() / 16 * 255  # the first training image is image 1
    assert abs(box[0].float().mean().item() - original) < 3
