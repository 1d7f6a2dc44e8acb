"""How exactly the training steps multiply matrices of `float32`."""

from typing import Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks

from fnn_lightning.errors import InputError

Precision = Literal["highest", "high", "medium"]


class MatmulPrecision(callbacks.Callback):
    """Lets training steps multiply matrices less exactly, where the hardware is faster at it.

    Evaluations are left as they are, so that `test` gives the figures of the network that `load`
    and `export` make of a checkpoint.

    The attribute `matmul_precision` of the module, if it has one, is what
    `torch.set_float32_matmul_precision` takes; None leaves what the process has set.
    """

    acts_every_n_steps = 0

    def __init__(self) -> None:
        self._before: str | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._use(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def _use(self, module: LightningModule) -> None:
        precision = getattr(module, "matmul_precision", None)
        if precision is None:
            return
        try:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(precision)
        except RuntimeError as error:  # from a program that has used the other interface
            raise InputError(
                "Expected `matmul_precision` to be None where `torch.backends` has been told an "
                f"`fp32_precision`, but got {precision}: {error}"
            ) from error
        self._before = before

    def _restore(self) -> None:
        """Set what `torch.get_float32_matmul_precision` said before."""
        if self._before is not None:
            torch.set_float32_matmul_precision(self._before)
            self._before = None


def check_matmul_precision(precision: Precision | None) -> None:
    """Refuse what `torch.set_float32_matmul_precision` does not take.

    Raises:
        InputError: If it is neither None nor one of its words.
    """
    if precision not in (None, *get_args(Precision)):
        raise InputError(
            "Expected `matmul_precision` to be highest, high or medium, or None, but got "
            f"{precision!r:.100}"
        )
