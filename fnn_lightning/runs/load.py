"""A trained network from a run's folder or a checkpoint alone, without a Trainer."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnn_lightning import __version__
from fnn_lightning.datamodule import EVAL_BATCH_SIZE, MNISTDataModule
from fnn_lightning.errors import InputError
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.network import NUM_CLASSES
from fnn_lightning.runs.checkpoint_io import read_checkpoint
from fnn_lightning.runs.run_folder import LAST


class TrainedNetwork(NamedTuple):
    """What a checkpoint holds of a trained network."""

    path: Path
    """The checkpoint's file."""
    module: FNNLitModule
    """With the trained weights, on the CPU, in evaluation mode."""
    checkpoint: dict[str, Any]
    """All that the file holds."""

    def data(self, **changed: Any) -> MNISTDataModule:
        """Make the data module that the network was trained with.

        Args:
            changed: Arguments of `MNISTDataModule` that are to be others; None leaves them.
        """
        stored = dict(self.checkpoint.get("datamodule_hyper_parameters", {}))
        stored |= {name: value for name, value in changed.items() if value is not None}
        try:
            return MNISTDataModule(**stored)
        except TypeError as error:
            raise misfit(self.path, error) from error

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Predict, on the CPU.

        Args:
            images: Raw pixels 0–255, `uint8` of shape `(N, 28, 28)`.

        Returns:
            Probabilities of the digits, `float32` of shape `(N, 10)`, whose rows add up to 1.
        """
        logits = [self.module(batch).float() for batch in torch.split(images, EVAL_BATCH_SIZE)]
        return torch.cat(logits).softmax(dim=1) if logits else torch.empty(0, NUM_CLASSES)


def load_trained(path: str | Path) -> TrainedNetwork:
    """Load a trained network.

    Args:
        path: A checkpoint, or the folder of a run, of which `best.ckpt` is taken or, if there is
            none, `last.ckpt`.

    Raises:
        InputError: If there is no checkpoint, or it does not hold an `FNNLitModule`.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        kept = [path / LAST.with_name("best.ckpt"), path / LAST]
        found = [each for each in kept if each.is_file()]
        if not found:
            raise InputError(
                f"Expected a checkpoint or the folder of a run, but {path} holds no {LAST}"
            )
        path = found[0]
    checkpoint = read_checkpoint(str(path))
    try:
        module = FNNLitModule(**checkpoint["hyper_parameters"])
        module.load_state_dict(checkpoint["state_dict"])
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise misfit(path, error) from error
    return TrainedNetwork(path, module.eval(), checkpoint)


def misfit(path: Path, error: Exception) -> InputError:
    """Return the error that says that a checkpoint is not of this version's making."""
    return InputError(f"What is stored in {path} does not fit fnn_lightning {__version__}: {error}")
