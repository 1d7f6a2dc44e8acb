"""Keeps the first layers of a network as they are, while the others are trained."""

from torch import nn

from fnn_lightning.errors import InputError
from fnn_lightning.network import FNN


class FrozenLayers:
    """The first layers of a network, whose weights training leaves alone.

    The layer of batch normalisation after a frozen one keeps its running mean and variance too.

    Args:
        network: Its parameters are frozen from now on.
        count: Number of layers, counted from the input.

    Raises:
        InputError: If no layer is left to be trained.
    """

    def __init__(self, network: FNN, count: int) -> None:
        linear = [i for i, layer in enumerate(network.layers) if isinstance(layer, nn.Linear)]
        if not 0 <= count < len(linear):
            raise InputError(
                f"Expected `freeze` to be from 0 to {len(linear) - 1}, so that at least one of the "
                f"net's {len(linear)} layers is trained, but got {count}"
            )
        # not the layers themselves: the Trainer's sync_batchnorm puts others in their place
        self._network, self._end = network, linear[count]
        for layer in network.layers[: self._end]:
            layer.requires_grad_(False)

    def eval_batch_norm(self) -> None:
        """Let frozen batch normalisation use the mean and variance it has, in training too."""
        for layer in self._network.layers[: self._end]:
            if isinstance(layer, nn.BatchNorm1d | nn.SyncBatchNorm):
                layer.eval()
