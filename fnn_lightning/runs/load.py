"""Loading a trained network from a run's folder or a checkpoint, without a Trainer."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from fnn_lightning import __version__
from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.errors import InputError
from fnn_lightning.evaluation.calibration import to_probabilities
from fnn_lightning.evaluation.predictions import predict_logits
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.runs.checkpoint_io import read_checkpoint
from fnn_lightning.runs.run_folder import BEST, LAST, RUNS, newest_run, runs_in
from fnn_lightning.training.pixel_scale import wrong_scale

SHOWN = 3  # runs that a message names


class TrainedNetwork(NamedTuple):
    """A trained network, and the checkpoint it came from.

    Example:
        >>> import torch
        >>> from fnn_lightning import FNNLitModule
        >>> net = TrainedNetwork(Path("last.ckpt"), FNNLitModule(hidden_dims=[8]), {})
        >>> net.probabilities(torch.zeros(3, 28, 28, dtype=torch.uint8)).shape
        torch.Size([3, 10])
    """

    path: Path
    """The checkpoint's file."""
    module: FNNLitModule
    """Has the trained weights, on the CPU, in evaluation mode."""
    checkpoint: dict[str, Any]
    """The file's whole content."""

    def data(self, **changed: Any) -> MNISTDataModule:
        """Make the data module that the network was trained with.

        Args:
            changed: Arguments of `MNISTDataModule` to change; None leaves the stored value.

        Raises:
            InputError: If the stored arguments do not fit `MNISTDataModule`.
        """
        stored = dict(self.checkpoint.get("datamodule_hyper_parameters", {}))
        changed = {name: value for name, value in changed.items() if value is not None}
        if "val_size" in changed:  # which takes the place of folds
            stored = {name: stored[name] for name in stored.keys() - {"folds", "fold"}}
        stored |= changed
        try:
            return MNISTDataModule(**stored)
        except TypeError as error:
            raise mismatch_error(self.path, error) from error

    def probabilities(self, images: Tensor) -> Tensor:
        """Compute the probabilities of the classes, at the network's temperature, on the CPU.

        Args:
            images: Raw pixels 0–255, as `FNN` takes them, of shape `(N, 28, 28)`.

        Returns:
            `float32` of shape `(N, classes)`; each row sums to 1.

        Raises:
            InputError: If the pixels are on another scale.
        """
        return to_probabilities(self.logits(images), self.module.temperature)

    def logits(self, images: Tensor) -> Tensor:
        """Compute the logits of the classes, on the CPU.

        Args:
            images: Raw pixels 0–255, as `FNN` takes them, of shape `(N, 28, 28)`.

        Returns:
            `float32` of shape `(N, classes)`.

        Raises:
            InputError: If the pixels are on another scale.
        """
        if message := wrong_scale(images):
            raise InputError(message)
        return predict_logits(self.module, images)


def load(run_or_ckpt: str | Path) -> FNNLitModule:
    """Load a trained model, in evaluation mode, on the CPU.

    Args:
        run_or_ckpt: A checkpoint, or the folder of a run, whose `best.ckpt` is loaded or, without
            one, its `last.ckpt`.

    Raises:
        InputError: If there is no checkpoint, or it is not of `FNNLitModule`.

    Example: `load("lightning_logs/version_0").predict("seven.png").classes`
    """
    return load_trained(run_or_ckpt).module


def load_trained(path: str | Path) -> TrainedNetwork:
    """Load a trained network.

    Args:
        path: A checkpoint, or the folder of a run, whose `best.ckpt` is loaded or, without one,
            its `last.ckpt`.

    Raises:
        InputError: If there is no checkpoint, or it is not of `FNNLitModule`.
    """
    path = find_checkpoint(path)
    checkpoint = read_checkpoint(str(path))
    try:
        module = FNNLitModule(**checkpoint["hyper_parameters"])
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise mismatch_error(path, error) from error
    load_weights(module, checkpoint, str(path))
    module.temperature = checkpoint.get("temperature")
    return TrainedNetwork(path, module.eval(), checkpoint)


def find_checkpoint(path: str | Path, resume: bool = False) -> Path:
    """Return the checkpoint that a path names.

    Args:
        path: A checkpoint, or the folder of a run; `~` stands for the home directory.
        resume: Whether training resumes from it. Of a run's folder it is then `last.ckpt`,
            otherwise `best.ckpt` if there is one.

    Raises:
        InputError: If the folder holds no checkpoint. A file need not exist.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    names = [LAST] if resume else [BEST, LAST]
    run = run_at(path)
    found = [run / name for name in names if (run / name).is_file()]
    if not found:
        raise no_run_error("a checkpoint or the folder of a run", path, str(LAST))
    return found[0]


def run_at(path: Path) -> Path:
    """Return the folder of the run that a path in it names.

    >>> run_at(Path("version_0", "checkpoints", "best.ckpt")) == run_at(Path("version_0"))
    True
    """
    if path.suffix == LAST.suffix:
        path = path.parent
    return path.parent if path.name == LAST.parent.name else path


def no_run_error(expected: str, path: Path, lacking: str) -> InputError:
    """Return the error for a path that does not name a run, which says whether it holds some.

    Args:
        expected: What should be there.
        path: What was given.
        lacking: What a run would have.
    """
    runs = runs_in(path)
    of_runs = f"is a folder of runs: name one, such as {newest_first(runs)}"
    return InputError(
        f"Expected {expected}, but {path} " + (of_runs if runs else f"holds no {lacking}")
    )


def newest_first(runs: list[Path]) -> str:
    """Name a few runs, the newest first.

    Args:
        runs: As `runs_in` returns them.

    Example:
        >>> newest_first([Path("version_4"), Path("version_3"), Path("version_0")])
        'version_4, version_3, version_0 (newest first)'
    """
    return ", ".join(map(str, runs[:SHOWN])) + " (newest first)" * (len(runs) > 1)


def newest_checkpoint(root: str | Path = ".") -> Path | None:
    """Return the checkpoint to use when none is named: that of the newest run.

    Args:
        root: The folder that `lightning_logs` is in.

    Returns:
        The run's `best.ckpt` or, without one, its `last.ckpt`; None if there is no run.
    """
    run = newest_run(Path(root).expanduser() / RUNS)
    return run and find_checkpoint(run)


def load_weights(module: FNNLitModule, checkpoint: dict[str, Any], path: str) -> None:
    """Load the weights of a checkpoint into a module.

    Args:
        module: Of the same network.
        checkpoint: What `read_checkpoint` returned.
        path: Its file, for the message.

    Raises:
        InputError: If they do not fit.
    """
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"The weights in {path} do not fit the network: {error}") from error


def copy_layers(module: FNNLitModule, checkpoint: dict[str, Any], path: str) -> str:
    """Copy the weights of a checkpoint's layers into a module, as far as their shapes are the same.

    The first linear layer is compared with the first one, the second with the second and so on;
    likewise those of batch normalisation.

    Args:
        module: May have another network than the checkpoint.
        checkpoint: What `read_checkpoint` returned.
        path: Its file, for the message.

    Returns:
        Which layers were copied, and which begin anew.

    Raises:
        InputError: If no layer fits.
    """
    stored: dict[str, dict[str, Tensor]] = {}
    for name, value in checkpoint["state_dict"].items():
        layer, _, tensor = name.rpartition(".")
        if layer.startswith("network.layers."):  # a derived module may have more
            stored.setdefault(layer, {})[tensor] = value
    whole = [each for each in stored.values() if "weight" in each]
    matrices = [each for each in whole if each["weight"].dim() == 2]
    others = [each for each in whole if each["weight"].dim() != 2]
    names: dict[bool, list[str]] = {True: [], False: []}
    for layer in module.network.layers:
        own = layer.state_dict()
        if not own:
            continue
        candidates = matrices if isinstance(layer, nn.Linear) else others
        weights = candidates.pop(0) if candidates else {}
        fits = own.keys() == weights.keys() and all(
            own[name].shape == weights[name].shape for name in own
        )
        if fits:
            layer.load_state_dict(weights)
        names[fits].append("–".join(map(str, reversed(own["weight"].shape))))
    if not names[True]:
        raise InputError(f"Expected layers of the same shape in {path}, but none fits the network")
    begins = f"; new: {', '.join(names[False])}" if names[False] else ""
    return f"of {path}: {', '.join(names[True])}{begins}"


def mismatch_error(path: Path, error: Exception) -> InputError:
    """Return the error to raise for a checkpoint that another version has written."""
    return InputError(f"What is stored in {path} does not fit fnn_lightning {__version__}: {error}")
