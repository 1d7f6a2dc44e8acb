"""Feed-forward neural nets on MNIST with PyTorch Lightning."""

import os
from typing import TYPE_CHECKING, Any

from fnn_lightning.runs.cores import limit_spinning, reproduce_products

if TYPE_CHECKING:
    from fnn_lightning.datamodule import MNISTDataModule
    from fnn_lightning.lit_module import FNNLitModule
    from fnn_lightning.network import FNN

__version__ = "0.1.0"
__all__ = ["FNN", "FNNLitModule", "MNISTDataModule", "__version__"]

limit_spinning(os.environ)  # before torch is imported, which reads it
reproduce_products(os.environ)


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, and `--version` needs none of it: classes load when first used.
    modules = {"FNN": "network", "FNNLitModule": "lit_module", "MNISTDataModule": "datamodule"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{modules[name]}"), name)
