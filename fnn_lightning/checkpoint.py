"""Reads checkpoints as data: no code that a file names is imported or run."""

import warnings
from pathlib import Path
from typing import Any

import torch

from fnn_lightning.errors import InputError


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint of `FNNLitModule`, with `weights_only=True`.

    Args:
        path: A file that the Trainer saved.

    Returns:
        The checkpoint as Lightning lays it out. Among its keys are `state_dict`,
        `hyper_parameters` (the arguments of `FNNLitModule`), `global_step` (number of optimiser
        steps done) and, if a data module was used, `datamodule_hyper_parameters`.

    Raises:
        InputError: If there is no such file, or it is not a checkpoint of `FNNLitModule`.
    """
    file = Path(path)
    if not file.is_file():
        found = "it is a folder" if file.is_dir() else "there is no such file"
        raise InputError(f"Expected `ckpt_path` to be a checkpoint, but got {path!r}: {found}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual files, which then fail
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged or foreign file can make the reader fail in any way
        found = "it is damaged or something else" if file.stat().st_size else "it is empty"
        raise InputError(
            f"Expected `ckpt_path` to be a checkpoint, but got {path}: {found}"
        ) from error
    parts = {
        "state_dict": dict,
        "hyper_parameters": dict,
        "global_step": int,
        "pytorch-lightning_version": str,
    }
    if (
        not isinstance(checkpoint, dict)
        or not all(isinstance(checkpoint.get(part), kind) for part, kind in parts.items())
        or not isinstance(checkpoint.get("datamodule_hyper_parameters", {}), dict)
        or "hidden_dims" not in checkpoint["hyper_parameters"]
    ):
        raise InputError(
            f"Expected `ckpt_path` to be a checkpoint of fnn_lightning, "
            f"but got {path}: it holds something else"
        )
    return checkpoint
