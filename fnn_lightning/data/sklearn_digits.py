"""The embedded data set: scikit-learn's handwritten digits, as images like MNIST's."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fnn_lightning.errors import InputError

TRAIN_SIZE = 1_437
TEST_SIZE = 360


def read_digits(train: bool) -> tuple[Tensor, Tensor]:
    """Load the training or test part of the 1,797 UCI digits that scikit-learn bundles.

    The images are 8 × 8 with values 0–16. They are scaled to 0–255, enlarged to MNIST's 20 × 20 box
    and centred in 28 × 28. Every fifth image, counted from the first, is a test image, so that both
    parts contain every writer.

    Args:
        train: Whether to load the 1,437 training images or the 360 test images.

    Returns:
        Images, `uint8` of shape `(N, 28, 28)`, ink 255 on 0; labels, `int64` of shape `(N,)`.

    Raises:
        InputError: If scikit-learn is not installed.

    Example:
        >>> images, labels = read_digits(train=False)
        >>> images.shape, labels[:5]
        (torch.Size([360, 28, 28]), tensor([0, 5, 0, 5, 0]))
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "Expected scikit-learn, which bundles the digits, but it is not installed: "
            "pip install -e '.[quickstart]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) * (255 / 16)
    images = F.interpolate(images, size=(20, 20), mode="bilinear")
    images = F.pad(images.round().to(torch.uint8).squeeze(1), (4, 4, 4, 4))
    is_test = torch.arange(len(images)) % 5 == 0
    in_part = ~is_test if train else is_test
    return images[in_part], torch.from_numpy(labels).long()[in_part]
