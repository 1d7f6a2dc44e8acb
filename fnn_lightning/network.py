"""The feed-forward network: raw pixels in, logits out."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fnn_lightning.batch_norm import BatchNorm
from fnn_lightning.dropout import Dropout, MaskSource
from fnn_lightning.errors import InputError

NUM_CLASSES = 10  # the digits 0–9

Activation = Literal[
    "celu",
    "elu",
    "gelu",
    "hardswish",
    "leaky_relu",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "tanh",
]

Initialization = Literal["pytorch", "he", "xavier"]

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
}


class FNN(nn.Module):
    """A feed-forward network (multi-layer perceptron) that takes raw pixels and returns logits.

    The layers are `Linear(in_features, hidden_dims[0])`, the activation, `Linear(hidden_dims[0],
    hidden_dims[1])`, the activation, …, `Linear(hidden_dims[-1], out_features)`. The depth is
    `len(hidden_dims)`, the number of hidden layers; `[]` is multinomial logistic regression,
    `Linear(in_features, out_features)` alone. `batch_norm` puts batch normalisation between each
    hidden layer and its activation; `dropout` comes after the activation.

    Pixels are scaled inside the network, from 0–255 to `(pixels / 255 - pixel_mean) / pixel_std`,
    so that training, test and prediction cannot scale them differently. The two constants are
    arguments, not weights: they are not in the `state_dict`, but in a checkpoint's
    `hyper_parameters`.

    Args:
        in_features: Pixels of one image; 784 is MNIST's 28 × 28.
        hidden_dims: Width of every hidden layer, from the input to the output.
        out_features: Number of classes.
        activation: Function after every hidden layer, by its name in `torch.nn.functional`.
        pixel_mean: Subtracted from the pixels, on the [0, 1] scale.
        pixel_std: What they are then divided by, on the [0, 1] scale.
        batch_norm: Whether hidden layers are normalised over the batch (Ioffe and Szegedy 2015,
            arXiv:1502.03167): in training over this rank's share of the batch, at least
            two images, and otherwise by the running mean and variance of training.
        dropout: Probability with which an output of a hidden layer is set to 0 in training; the
            others are scaled up (Srivastava et al. 2014).
        input_dropout: Likewise for the scaled pixels.
        initialization: How weights start. `pytorch`: those and the biases uniform within
            1/√fan_in, as `nn.Linear` has them; `he`: normal, of variance 2/fan_in (He et al. 2015,
            arXiv:1502.01852), for ReLU and its like; `xavier`: uniform, of variance
            2/(fan_in + fan_out) (Glorot and Bengio 2010), for tanh and its like. With `he` and
            `xavier`, biases start at 0.

    Raises:
        InputError: If a width is not a positive integer, the activation or the initialization is
            unknown, `pixel_std` is not positive, or a probability is not from 0 to below 1.
    """

    def __init__(
        self,
        in_features: int = 784,
        hidden_dims: Sequence[int] = (100,),
        out_features: int = NUM_CLASSES,
        activation: Activation = "relu",
        pixel_mean: float = 0.0,
        pixel_std: float = 1.0,
        batch_norm: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        initialization: Initialization = "pytorch",
    ) -> None:
        super().__init__()
        if not all(type(width) is int and width > 0 for width in hidden_dims):
            raise InputError(
                f"Expected `hidden_dims` to be positive integers, but got {list(hidden_dims)}"
            )
        if activation not in ACTIVATIONS:
            raise InputError(
                f"Expected `activation` to be one of {', '.join(get_args(Activation))}, "
                f"but got {activation!r}"
            )
        if not math.isfinite(pixel_mean):
            raise InputError(f"Expected `pixel_mean` to be a finite number, but got {pixel_mean}")
        if not 0 < pixel_std < math.inf:
            raise InputError(f"Expected `pixel_std` to be positive, but got {pixel_std}")
        for name, value in (("dropout", dropout), ("input_dropout", input_dropout)):
            if not 0 <= value < 1:
                raise InputError(f"Expected `{name}` to be from 0 to below 1, but got {value}")
        if initialization not in get_args(Initialization):
            raise InputError(
                f"Expected `initialization` to be one of {', '.join(get_args(Initialization))}, "
                f"but got {initialization!r}"
            )
        self.in_features = in_features
        self.pixel_mean = pixel_mean
        self.pixel_std = pixel_std
        widths = "–".join(map(str, (in_features, *hidden_dims, out_features)))
        self.summary = f"{widths} {activation}" if hidden_dims else widths
        """Widths of the layers and activation in one line, such as `784–100–10 relu`."""
        self.mask_source = MaskSource() if dropout or input_dropout else None
        """The random numbers of dropout, if there is any."""

        layers: list[nn.Module] = []
        if input_dropout:
            layers.append(Dropout(input_dropout, self.mask_source))
        for width in hidden_dims:
            layers.append(nn.Linear(in_features, width))
            if batch_norm:
                layers.append(BatchNorm(width))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(Dropout(dropout, self.mask_source))
            in_features = width
        self.layers = nn.Sequential(*layers, nn.Linear(in_features, out_features))
        if initialization != "pytorch":
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    initialize(layer, initialization)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        last: nn.Linear = self.layers[-1]  # type: ignore[assignment]
        return last.weight.dtype  # a tenth of the time of `next(self.parameters())`

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the logits of a batch of images.

        Args:
            pixels: Values 0–255, `uint8` or floating point, of shape `(B, 28, 28)`,
                `(B, 1, 28, 28)` or `(B, 784)`; in general `(B, …)` with `in_features` values
                an image.

        Returns:
            Logits of shape `(B, out_features)`, in the dtype of the weights.

        Raises:
            ValueError: If an image does not have `in_features` values.
        """
        logits: Tensor = self.layers(self.scale(pixels))
        return logits

    def scale(self, pixels: Tensor) -> Tensor:
        """Scale the pixels of a batch of images, as `forward` takes them, for the first layer.

        Returns:
            Shape `(B, in_features)`, in the dtype of the weights.

        Raises:
            ValueError: If an image does not have `in_features` values.
        """
        x = pixels.flatten(1)
        if x.shape[1] != self.in_features:
            raise ValueError(
                f"Expected images of {self.in_features} pixels in a batch (B, …), "
                f"but got a tensor of shape {tuple(pixels.shape)}"
            )
        # bytes are copied by the conversion, so the copy may be scaled in place
        x = x.to(self.dtype) / 255 if x.is_floating_point() else x.to(self.dtype).div_(255)
        if self.pixel_mean != 0:
            x = x - self.pixel_mean
        if self.pixel_std != 1:
            x = x / self.pixel_std
        return x


def initialize(layer: nn.Linear, scheme: Literal["he", "xavier"]) -> None:
    """Give a layer new random weights, and biases of 0."""
    if scheme == "he":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    else:
        nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
