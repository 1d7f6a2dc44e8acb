"""The embedded data set: scikit-learn's handwritten digits, in MNIST's form."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fnn_lightning.errors import InputError

TRAIN_SIZE = 1_437
TEST_SIZE = 360


def read_digits(train: bool) -> tuple[Tensor, Tensor]:
    """Load the training or the test part of the 1,797 UCI digits that scikit-learn bundles.

    The 8×8 images with values 0–16 are scaled to 0–255, enlarged to MNIST's 20×20 box and centred
    in 28×28. Every fifth image, from the first one on, belongs to the test part, so that each
    part holds all the writers.

    Args:
        train: Whether to load the 1,437 training images or the 360 test images.

    Returns:
        Images, `uint8` of shape `(N, 28, 28)`, and labels, `int64` of shape `(N,)`.

    Raises:
        InputError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "Expected scikit-learn, which bundles the data set digits, but it is not installed: "
            "pip install -e '.[quickstart]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) * (255 / 16)
    images = F.interpolate(images, size=(20, 20), mode="bilinear")
    images = F.pad(images.round().to(torch.uint8).squeeze(1), (4, 4, 4, 4))
    is_test = torch.arange(len(images)) % 5 == 0
    chosen = ~is_test if train else is_test
    return images[chosen], torch.from_numpy(labels).long()[chosen]
