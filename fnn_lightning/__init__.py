"""Feed-forward neural nets on MNIST with PyTorch Lightning."""

import os
from typing import TYPE_CHECKING, Any

from fnn_lightning.runs.cores import limit_spinning, reproduce_products

if TYPE_CHECKING:
    from fnn_lightning.classifier import FNNClassifier
    from fnn_lightning.datamodule import MNISTDataModule
    from fnn_lightning.evaluation.curves import losses, plot_curves
    from fnn_lightning.evaluation.evaluate import evaluate
    from fnn_lightning.lit_module import FNNLitModule
    from fnn_lightning.network import FNN
    from fnn_lightning.runs.load import load
    from fnn_lightning.trainer import Trainer
    from fnn_lightning.training.checkpointing import RunCheckpoint

__version__ = "0.1.0"
__all__ = [
    "FNN",
    "FNNClassifier",
    "FNNLitModule",
    "MNISTDataModule",
    "RunCheckpoint",
    "Trainer",
    "__version__",
    "evaluate",
    "load",
    "losses",
    "plot_curves",
]
MODULES = {
    "FNN": "network",
    "FNNClassifier": "classifier",
    "FNNLitModule": "lit_module",
    "MNISTDataModule": "datamodule",
    "RunCheckpoint": "training.checkpointing",
    "Trainer": "trainer",
    "evaluate": "evaluation.evaluate",
    "load": "runs.load",
    "losses": "evaluation.curves",
    "plot_curves": "evaluation.curves",
}

limit_spinning(os.environ)  # before torch is imported, which reads it
reproduce_products(os.environ)


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, and `--version` needs none of it: they load when first used.
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
