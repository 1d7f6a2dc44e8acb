"""Checkpoint files: read as data, so that no code in them runs, and written atomically."""

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor

from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.calibration import stored_temperature
from fnn_lightning.runs.files import display_path, write_atomic

# the only names that PyTorch and Lightning themselves write into a checkpoint's pickle
ALLOWED_GLOBALS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor_v2|parameter)|torch\.\w+Storage"
)

# in which ddp_spawn and ddp_fork hand the trained weights, alone, to the process that called `fit`
TRAINED_WEIGHTS = ".temp.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """The Trainer's plugin that writes and reads checkpoints with the functions below."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if Path(path).name == TRAINED_WEIGHTS:
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_checkpoint(str(path))


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically.

    Args:
        checkpoint: What to save.
        path: The file; one that is there is replaced.

    Raises:
        OSError: If it cannot be written; a file that was there before is unchanged.
    """
    content = io.BytesIO()
    torch.save(checkpoint, content)
    try:
        write_atomic(path, content.getbuffer())
    except OSError as error:
        raise OSError(
            f"{display_path(path)} cannot be written: {error.strerror}; "
            "earlier checkpoints are unchanged"
        ) from error


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint of `FNNLitModule`, with `weights_only=True`.

    Args:
        path: A file that the Trainer saved.

    Returns:
        Lightning's dictionary. Among its keys are `state_dict`, `hyper_parameters` (the arguments
        of `FNNLitModule`), `global_step` (number of optimiser steps done) and, if a data module
        was used, `datamodule_hyper_parameters`.

    Raises:
        InputError: If there is no such file, or it is not a checkpoint of `FNNLitModule`.
    """
    file = Path(path)
    if not file.is_file():
        found = "it is a folder" if file.is_dir() else "there is no such file"
        raise InputError(f"Expected a checkpoint, but got {path!r}: {found}")
    try:
        check_archive(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual files, which fail below
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        check_tensors(iter_tensors(checkpoint), file.stat().st_size)
    except InputError as error:
        raise InputError(f"Expected an undamaged checkpoint, but got {path}: {error}") from error
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged file can make the reader fail in any way
        found = "it is damaged or something else" if file.stat().st_size else "it is empty"
        raise InputError(f"Expected a checkpoint, but got {path}: {found}") from error
    required = {
        "state_dict": dict,
        "hyper_parameters": dict,
        "global_step": int,
        "pytorch-lightning_version": str,
    }
    if (
        not isinstance(checkpoint, dict)
        or not all(isinstance(checkpoint.get(key), kind) for key, kind in required.items())
        or not isinstance(checkpoint.get("datamodule_hyper_parameters", {}), dict)
        or not isinstance(checkpoint.get("callbacks", {}), dict)
        or "hidden_dims" not in checkpoint["hyper_parameters"]
        or checkpoint["global_step"] < 0
    ):
        raise InputError(
            f"Expected a checkpoint of fnn_lightning, but got {path}: it holds something else"
        )
    check_weights(checkpoint, path)
    stored_temperature(checkpoint, path)
    return checkpoint


def check_archive(file: Path) -> None:
    """Refuse an archive that unpacks to more than its size on the disk, or names code."""
    with zipfile.ZipFile(file) as archive:  # PyTorch saves in this format
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise InputError("its contents are compressed, which PyTorch never does")
        if sum(entry.file_size for entry in entries) > file.stat().st_size:
            raise InputError("it claims to hold more than its own size")
        pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        for code, argument, _ in chain.from_iterable(
            pickletools.genops(archive.read(entry)) for entry in pickles
        ):
            name = str(argument).replace(" ", ".")
            if "GLOBAL" in code.name and not (
                code.name == "GLOBAL" and ALLOWED_GLOBALS.fullmatch(name)
            ):
                raise InputError(f"it names {name if argument else 'code'}, which is not run")


def iter_tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from iter_tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from iter_tensors(part)


def check_tensors(found: Iterable[Tensor], size: int) -> None:
    """Refuse tensors that are not dense, or whose numbers are not all stored in the file."""
    claimed = 0
    for tensor in found:
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise InputError(f"it holds a tensor of an unexpected kind, {tensor.layout}")
        claimed += tensor.numel() * tensor.element_size()
        if claimed > size:
            raise InputError("its tensors claim more numbers than the file holds")


def check_weights(checkpoint: dict[str, Any], path: str) -> None:
    """Refuse weights that are not finite, or too few for the network's `hidden_dims`."""
    weights = checkpoint["state_dict"]
    for name, weight in weights.items():
        if not isinstance(weight, Tensor):
            raise InputError(f"Expected weights in {path}, but {name} is {type(weight).__name__}")
        if not (weight.is_floating_point() or "num_batches" in str(name)):
            raise InputError(
                f"Expected floating-point weights in {path}, but {name} is {weight.dtype}"
            )
        if not weight.isfinite().all():
            raise InputError(f"Expected finite weights in {path}, but {name} holds NaN or infinity")
    hidden_dims = checkpoint["hyper_parameters"]["hidden_dims"]
    if not isinstance(hidden_dims, list | tuple) or not all(type(n) is int for n in hidden_dims):
        raise InputError(f"Expected `hidden_dims` in {path} to be integers")
    # checked before making a network that no memory could hold
    least = sum(width * following for width, following in pairwise((*hidden_dims, 1)))
    if least > sum(weight.numel() for weight in weights.values()):
        raise InputError(
            f"Expected the weights of all hidden layers in {path}, but there are fewer"
        )


def read_losses(checkpoint: dict[str, Any]) -> Tensor | None:
    """Return the loss of every batch of training, if a checkpoint holds it.

    Returns:
        `float32` of shape `(batches,)`.
    """
    losses = callback_state(checkpoint, "TrainLog").get("losses")
    if isinstance(losses, Tensor) and losses.dim() == 1 and losses.is_floating_point():
        return losses.float()
    return None


def ema_decay(checkpoint: dict[str, Any]) -> float:
    """Return the decay of the EMA whose state a checkpoint holds; 0.0 if it holds none."""
    decay = callback_state(checkpoint, "EMA").get("decay")
    return decay if isinstance(decay, float) else 0.0


def callback_state(checkpoint: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the state of a callback in a checkpoint; nothing if it is missing or damaged."""
    states = checkpoint.get("callbacks")
    state = states.get(name) if isinstance(states, dict) else None
    return state if isinstance(state, dict) else {}


def check_state(checkpoint: dict[str, Any], path: str) -> None:
    """Check that a checkpoint holds what `fit` needs to resume.

    Raises:
        InputError: If the optimiser's state is missing, or a counter is not an integer from 0 to
            2^53 − 1.
    """
    if "optimizer_states" not in checkpoint:
        raise InputError("Expected a checkpoint with the optimiser's state, to resume from it")
    log = callback_state(checkpoint, "TrainLog")
    steps = [checkpoint["global_step"], log.get("logged_step", 0), log.get("validated_step") or 0]
    losses = log.get("losses", torch.empty(0))
    if not isinstance(losses, Tensor) or losses.dim() != 1 or losses.dtype != torch.float:
        raise InputError(f"Expected the losses of a run in {path}, but got something else")
    if not losses.isfinite().all():
        raise InputError(f"Expected finite losses in {path}, but got NaN or infinity")
    for count in (*steps, *loop_counts(checkpoint.get("loops"))):
        if type(count) is not int or not 0 <= count < 2**53:
            raise InputError(f"Expected the counts of a run in {path}, but got {count!r:.50}")


def loop_counts(loops: Any) -> Iterator[Any]:
    """Yield the counters in the state of Lightning's loops."""
    if isinstance(loops, dict):
        for name, value in loops.items():
            if name in ("ready", "started", "processed", "completed", "_batches_that_stepped"):
                yield value
            else:
                yield from loop_counts(value)
