"""Exponential moving average (EMA) of the weights over the steps of training."""

from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fnn_lightning.errors import InputError
from fnn_lightning.training.compilation import add_prefix, drop_prefix


class EMA(callbacks.Callback):
    """Keeps an EMA of the network's weights; validation, test and checkpoints use it.

    After the first step the average equals the weights; after every other one it is `decay` times
    itself plus `1 - decay` times the weights (after Polyak and Juditsky 1992, who weigh all steps
    alike). The running means and variances of batch normalisation are averaged in the same way, so
    no pass over the training images is needed to find them.

    The average takes the network's place during validation and when training has ended, and in a
    checkpoint's `state_dict`, which is what `test`, `predict` and everything else loads. The
    weights to resume from are in this callback's own state. `train/loss` and `train/acc` are those
    of the weights.

    Lightning's own `WeightAveraging` (2.6.6) has to see every batch, so that no step runs ahead;
    keeps the average on the CPU, because it is made before the network is moved to its device; and
    overwrites the weights at the end of training, so that no run resumes exactly from a checkpoint
    saved after that.

    Args:
        decay: Such as 0.999, from 0 to below 1.

    Raises:
        InputError: If the decay is out of its range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise InputError(
                f"Expected `decay` of the EMA to be from 0 to below 1, but got {decay}"
            )
        self.decay = decay
        self._average: nn.Module | None = None
        self._steps = 0
        self._in_place = False
        self._loaded: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._module = pl_module  # Lightning gives `state_dict` no arguments
        self._loaded = None  # by an earlier call, such as `test`; this one's comes after `setup`
        if stage == "fit":
            self._average = None  # of an earlier fit, which is in the network

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = network_of(pl_module)
        # only now is the network on its device, with a checkpoint's average
        self._average = deepcopy(network)
        self._steps = 0
        self._in_place = False
        if self._loaded is not None:
            network.load_state_dict(add_prefix(self._loaded["weights"], network))
            self._steps = int(self._loaded["steps"])
            self._loaded = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # listed once: to gather them at every step takes longer than to average them
        self._kept_and_new = list(self._pairs())
        floats = [pair for pair in self._kept_and_new if pair[0].is_floating_point()]
        integers = [pair for pair in self._kept_and_new if not pair[0].is_floating_point()]
        self._groups = [list(zip(*each, strict=True)) for each in (floats, integers) if each]
        self._lerp = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
        # the optimiser calls it, whoever takes the step
        self._handle = trainer.optimizers[0].register_step_post_hook(self.update)

    @torch.no_grad()
    def update(self, *_: Any) -> None:
        """Average the weights of another step; the optimiser calls it."""
        if self._steps:
            for ours, theirs in self._groups:
                self._lerp(ours, theirs, None)
        else:
            for kept, new in self._kept_and_new:
                kept.copy_(new)
        self._steps += 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._in_place:
            self._swap()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._swap()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._handle.remove()
        self._swap()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._in_place:  # all steps had been taken before
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        if self._average is None:
            return {}
        weights = drop_prefix(self._networks()[1].state_dict())
        return {"decay": self.decay, "steps": self._steps, "weights": weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # applied when the network is on its device; empty if saved before that, as by a finder
        self._loaded = state_dict or None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average is not None:
            average = self._networks()[0].state_dict()
            checkpoint["state_dict"] |= {f"network.{name}": x for name, x in average.items()}

    def _networks(self) -> tuple[nn.Module, nn.Module]:
        """Return what holds the average now, and what holds the weights."""
        assert self._average is not None
        kept, network = self._average, network_of(self._module)
        return (network, kept) if self._in_place else (kept, network)

    def _pairs(self) -> "zip[tuple[Tensor, Tensor]]":
        """Pair what is kept here with what is in the network: each weight and each buffer."""
        assert self._average is not None
        return zip(tensors_of(self._average), tensors_of(network_of(self._module)), strict=True)

    @torch.no_grad()
    def _swap(self) -> None:
        """Swap the average and the weights, if there is an average yet."""
        if self._average is None or not self._steps:
            return
        for ours, theirs in self._pairs():
            kept = ours.clone()
            ours.copy_(theirs)
            theirs.copy_(kept)
        self._in_place = not self._in_place


def check_no_swa(trainer: Trainer) -> None:
    """Refuse Lightning's stochastic weight averaging.

    It puts the average into the network when training has ended, so after the last validation and
    the last checkpoint: it would change neither the result nor what `test` loads.

    Raises:
        InputError: If it is among the Trainer's callbacks.
    """
    given = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(each, callbacks.StochasticWeightAveraging) for each in given):
        raise InputError(
            "Expected an EMA to average the weights, but got StochasticWeightAveraging, whose "
            "average reaches no checkpoint: give --ema.decay 0.99 (in Python callbacks=[EMA(0.99)])"
        )


def network_of(module: LightningModule) -> nn.Module:
    """Return what is averaged: the network, without the metrics around it."""
    network = module.network
    assert isinstance(network, nn.Module)
    return network


def tensors_of(network: nn.Module) -> "chain[Tensor]":
    """Iterate over all weights, and over what batch normalisation keeps."""
    return chain(network.parameters(), network.buffers())
