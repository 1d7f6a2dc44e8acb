"""Lets trained networks teach another, which learns their probabilities instead of the labels."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fnn_lightning.data.datasets import shown
from fnn_lightning.errors import InputError
from fnn_lightning.network import FNN

HELD_OUT = ("val_size", "folds", "fold")  # what says which images are held out


class Teachers:
    """A committee of trained networks, whose probabilities another network learns.

    Source: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network",
    arXiv:1503.02531, at temperature 1: that of a teacher's checkpoint is left out, since it belongs
    to what the teacher says of images, not to what it was trained to say. The network gets its own.

    Args:
        paths: Their checkpoints, or the folders of their runs.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self.networks: list[FNN] = []
        """Those of the checkpoints, in evaluation mode; none before they are loaded."""
        self._data: list[dict[str, Any]] = []
        self._digests: list[str] = []
        self._loaded: list[str] | None = None

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.paths)

    def load(self, class_names: Sequence[str]) -> None:
        """Load the networks, before a run makes its folder.

        Args:
            class_names: Name of each class of the network that they teach.

        Raises:
            InputError: If one cannot be loaded, or has other classes.
        """
        from fnn_lightning.runs.load import load_trained  # it imports the module this is a part of

        self.networks, self._data, self._loaded = [], [], None
        for path in self.paths:
            try:
                _, teacher, checkpoint = load_trained(path)
            except InputError as error:
                raise InputError(f"The teacher {path} cannot be loaded: {error}") from error
            if teacher.class_names != tuple(class_names):
                raise InputError(
                    f"Expected teachers of the classes of the data, {shown(class_names)}, but "
                    f"{path} tells {shown(teacher.class_names)} apart: train one on these data"
                )
            self.networks.append(teacher.network.requires_grad_(False))
            self._data.append(checkpoint.get("datamodule_hyper_parameters", {}))
        self._digests = [digest(network) for network in self.networks]

    def start(self, trainer: Trainer) -> None:
        """Move the networks to the device of a run, when its checkpoint has been loaded.

        Warns of a teacher of another data set, and of one that may have trained on images which the
        run holds out.

        Raises:
            InputError: If the networks are not those that the run began with.
        """
        if self._loaded not in (None, self._digests):
            raise InputError(
                "Expected `teachers` to be the networks with which the run began, as they were and "
                f"in their order, but got others: {', '.join(self.paths) or 'none'}"
            )
        device = trainer.strategy.root_device
        self.networks = [network.to(device) for network in self.networks]
        own: Any = getattr(trainer.datamodule, "hparams", {})  # type: ignore[attr-defined]
        validates = trainer.enable_validation and own.get("val_size") != 0
        for path, data in zip(self.paths, self._data, strict=True):
            learned, dataset = data.get("dataset"), own.get("dataset")
            if learned != dataset:
                rank_zero_warn(
                    f"The teacher {path} has learned {learned}, but this run learns {dataset}: "
                    "expect it to teach little"
                )
            elif validates and any(data.get(name) != own.get(name) for name in HELD_OUT):
                rank_zero_warn(
                    f"The teacher {path} held out other images than this run, and may have trained "
                    "on those that it is validated on: val/acc can be too high"
                )

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """Compute the mean of the probabilities that the teachers give.

        Args:
            images: Raw pixels as `FNN` takes them.

        Returns:
            `float32` of shape `(B, classes)`; each row sums to 1.
        """
        probabilities = [network(images).float().softmax(dim=1) for network in self.networks]
        return torch.stack(probabilities).mean(dim=0)

    def state_dict(self) -> dict[str, Any]:
        return {"digests": self._digests}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict.get("digests", [])  # a run without teachers has none


def digest(network: FNN) -> str:
    """Compute what identifies a network: the SHA-256 of its summary and its weights, in hex."""
    hashed = hashlib.sha256(network.summary.encode())
    for weights in network.state_dict().values():
        hashed.update(weights.cpu().numpy().tobytes())
    return hashed.hexdigest()
