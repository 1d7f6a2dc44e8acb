"""Averages the weights over the steps of training; by the average is validated and tested."""

from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fnn_lightning.errors import InputError


class EMA(callbacks.Callback):
    """Keeps an exponential moving average of a network's weights beside those that are trained.

    After the first step the average is the weights; after every other one it is `decay` times
    itself plus `1 - decay` times the weights (Polyak and Juditsky 1992 average likewise, all steps
    alike). The running means and variances of batch normalisation are averaged in the same way,
    so that no pass over the training images is needed to find them.

    The average stands in the network's place in validation and when training has ended, and in a
    checkpoint's `state_dict`, which is what `test`, `predict` and everything else that opens a
    checkpoint take. The weights to go on with lie beside it, under `averaging`.

    Lightning's own `WeightAveraging` (2.6.6) does the same in another way, but has to see every
    batch, so that no steps run ahead; it keeps the average on the CPU, because it is made before
    the network is moved to its device; and at the end of training it overwrites the weights, so
    that no run goes on exactly from a checkpoint that is saved after that.

    Args:
        decay: From 0, which keeps nothing of the past, to below 1.

    Raises:
        InputError: If it is out of its range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"Expected the `decay` to be from 0 to below 1, but got {decay}")
        self.decay = decay
        self._average: AveragedModel | None = None
        self._in_place = False
        self._kept: dict[str, Any] | None = None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._kept = checkpoint.get("averaging")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = network_of(pl_module)
        # now, when the network has been moved to its device and holds a checkpoint's average
        average = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        self._in_place = False
        if self._kept is not None:
            network.load_state_dict(self._kept["weights"])
            self._average.n_averaged.fill_(self._kept["steps"])
            self._kept = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        average, network = self._average, network_of(pl_module)
        assert average is not None
        # the optimiser calls it, whoever takes the step
        self._handle = trainer.optimizers[0].register_step_post_hook(
            lambda *_: average.update_parameters(network)
        )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._in_place:
            self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._handle.remove()
        self._swap(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._in_place:  # all steps had been taken before
            self._swap(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average is None:
            return
        average = self._average.module.state_dict()
        weights = network_of(pl_module).state_dict()
        if self._in_place:
            average, weights = weights, average
        names = {name: f"network.{name}" for name in average}
        checkpoint["state_dict"] |= {names[name]: value for name, value in average.items()}
        checkpoint["averaging"] = {"weights": weights, "steps": int(self._average.n_averaged)}

    @torch.no_grad()
    def _swap(self, module: LightningModule) -> None:
        """Let the average and the weights change places, if there is an average yet."""
        if self._average is None or not self._average.n_averaged:
            return
        for ours, theirs in zip(
            tensors_of(self._average.module), tensors_of(network_of(module)), strict=True
        ):
            kept = ours.clone()
            ours.copy_(theirs)
            theirs.copy_(kept)
        self._in_place = not self._in_place


def network_of(module: LightningModule) -> nn.Module:
    """Return what is averaged: the network, without the metrics around it."""
    network = module.network
    assert isinstance(network, nn.Module)
    return network


def tensors_of(network: nn.Module) -> "chain[Tensor]":
    """Go through all weights, and what batch normalisation keeps."""
    return chain(network.parameters(), network.buffers())
