"""Runs `fit`: turns errors into one line, finishes the run, and prints its result."""

import io
import math
import signal
import time
import warnings
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Callback, Trainer

from fnn_lightning.commands.main import COMMAND
from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.datamodule import MNISTDataModule, validates_on_test_set
from fnn_lightning.errors import DivergenceError, InputError, one_line
from fnn_lightning.evaluation.plots import lr_figure
from fnn_lightning.evaluation.report import REPORT, remove_report, report_fit
from fnn_lightning.evaluation.tensorboard import TensorBoardPlots
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.runs.files import display_path, quote, write_atomic
from fnn_lightning.runs.loggers import read_curves
from fnn_lightning.runs.run_folder import read_metrics, write_metrics
from fnn_lightning.runs.signals import LOST, Stopped, lost_a_rank, raise_on_sigterm, requeue
from fnn_lightning.training.checkpointing import RunCheckpoint
from fnn_lightning.training.console import count, heading, wrapped
from fnn_lightning.training.lr_finder import find_lr
from fnn_lightning.training.optim import MONITORED
from fnn_lightning.training.progress_bar import steps_per_epoch
from fnn_lightning.training.resume import Resume
from fnn_lightning.training.train_log import TrainLog

Kind = TypeVar("Kind", bound=Callback)

NO_STEP = (
    "without a step, so nothing is saved: --trainer.max_epochs, --trainer.max_steps, "
    "--trainer.max_time or --trainer.limit_train_batches allows none"
)


class Fit:
    """One call of `fit`.

    Args:
        trainer: The Trainer, with a `RunCheckpoint` among its callbacks.
        module: What is trained.
        datamodule: What it is trained on.
        ckpt_path: The checkpoint to resume from; None in a new run.
        run: The folder to resume in; None if there is none yet.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: FNNLitModule,
        datamodule: MNISTDataModule,
        ckpt_path: str | None,
        run: Path | None,
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.datamodule = datamodule
        self.ckpt_path = ckpt_path
        self.run = run

    def __call__(self) -> None:
        """Train, validate the last step, write the results, and print them."""
        started_at = time.monotonic()
        self._train()
        trained, validated_step = self._has_begun, self._callback(TrainLog).validated_step
        if self.ckpt_path and not trained:
            validated_step = self._finish()
        trainer = self.trainer
        unvalidated = trainer.global_step not in (0, validated_step)
        if unvalidated and trainer.enable_validation and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            # The result is that of the last step, wherever the last validation was.
            trainer.validate(self.module, datamodule=self.datamodule, verbose=False)
        self._print_result(trained, time.monotonic() - started_at)

    @property
    def _has_begun(self) -> bool:
        """Whether training has begun: all that a checkpoint brings is in its place."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return any(isinstance(each, Resume) and each.has_begun for each in callbacks)

    def _callback(self, kind: type[Kind]) -> Kind:
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return next(each for each in callbacks if isinstance(each, kind))

    def _train(self) -> None:
        trainer = self.trainer
        try:
            trainer.fit(
                self.module,
                datamodule=self.datamodule,
                ckpt_path=self.ckpt_path,
                weights_only=True,
            )
        except Stopped as stop:
            if trainer.is_global_zero:
                requeue(stop)
            raise
        except DivergenceError as error:
            raise DivergenceError(
                f"{error}; {self._last_checkpoint()}. Try a lower learning rate"
            ) from None
        except InputError:
            raise
        except Exception as error:
            if lost_a_rank(error):
                raise ConnectionError(f"{LOST}; {self._last_checkpoint()}") from None
            if self.ckpt_path and not (self._has_begun or isinstance(error, OSError)):
                raise self._restore_error(error) from error
            raise
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt(self._last_checkpoint()) from None
            if trainer.received_sigterm:  # before training has begun
                raise Stopped(signal.SIGTERM, "") from None
            raise

    def _restore_error(self, error: Exception) -> InputError:
        return InputError(
            f"Expected {self.ckpt_path} to hold a state to resume from, but it cannot be restored: "
            f"{type(error).__name__}: {error}"
        )

    def _last_checkpoint(self) -> str:
        if self.trainer.barebones:
            return "no checkpoint is saved, since the Trainer is barebones"
        last = self._callback(RunCheckpoint).last_model_path
        if not last:
            return "no checkpoint was saved yet"
        return f"the last good checkpoint is {display_path(last)}"

    def _finish(self) -> int | None:
        """Finish the results of a run that was interrupted after its last step.

        Returns:
            Number of optimiser steps at the last validation whose result was written.
        """
        trainer, log = self.trainer, self._callback(TrainLog)
        step = trainer.global_step
        if self.run is None:
            raise InputError(
                f"Expected more than the {step:,} steps that the checkpoint has seen already; "
                f"{self._to_train_longer()}"
            )
        logged: set[str] = set()
        if trainer.is_global_zero:
            for name, points in read_curves(self.run).items():
                logged |= {name for logged_step, _ in points if logged_step == step}
        logged = trainer.strategy.broadcast(logged)
        try:
            log.finish(log="train/loss" not in logged)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise self._restore_error(error) from error
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TensorBoardPlots):
                callback.save_losses(trainer, self.module)
            elif isinstance(callback, RunCheckpoint):
                callback.complete(trainer, self.module)
        if "val/acc" in logged:
            trainer.loggers = []
        if trainer.is_global_zero:
            print(wrapped("done", f"all {count(step, 'step')} already; {self._to_train_longer()}"))
        return log.validated_step if "fit" in read_metrics(self.run) else None

    def _to_train_longer(self) -> str:
        if self.module.schedule_lengths != (0, 0):  # which a longer run would change
            return (
                "its schedule ends with them; to train longer, start a new run from its weights "
                f"with --init_from {quote(display_path(str(self.ckpt_path)))}"
            )
        return (
            "to train longer, raise --trainer.max_epochs, --trainer.max_steps or --trainer.max_time"
        )

    def _print_result(self, trained: bool, seconds: float) -> None:
        """Write the result into `metrics.json`, and print it with what to do next."""
        if self.trainer.barebones:
            return  # it logs and saves nothing
        checkpoint_callback = self._callback(RunCheckpoint)
        name, path = "val/acc", checkpoint_callback.last_model_path
        value: Any = self.trainer.callback_metrics.get(name)
        if checkpoint_callback.best_model_path:
            name, value, path = (
                f"best {checkpoint_callback.monitor}",
                checkpoint_callback.best_score,
                checkpoint_callback.best_model_path,
            )
        if not self.trainer.is_global_zero:
            return
        if not path:  # as of a `fast_dev_run`, which saves nothing
            if self.trainer.global_step == 0:
                print(wrapped("done", NO_STEP))
            return
        run = Path(path).absolute().parents[1]  # RUN/checkpoints/FILE
        checkpoint = Path(path).absolute().relative_to(run)
        is_new = trained or "fit" not in read_metrics(run)
        if is_new:
            if trained:  # what an earlier `test` wrote is of other weights
                remove_report(run)
            results = self._results(checkpoint_callback, checkpoint, seconds)
            write_metrics(run, "fit", results, keep_other_stage=not trained)
        elif value is None:  # measured by the call that trained
            value = read_metrics(run)["fit"].get(name)
        # beside the other runs, if it is in a folder of runs
        runs = run if run.parent == Path.cwd() else run.parent
        path = quote(display_path(path))
        result = ""
        if value is not None:
            percent = name.endswith("acc")
            if validates_on_test_set(self.datamodule):
                name += " (on the test set)"
            result = f"{name} {100 * value:.2f} %, " if percent else f"{name} {value:.4f}, "
        print(f"{heading('result')}{result}{count(self.trainer.global_step, 'step')} in all")
        print(f"{heading('checkpoint')}{path}")
        if self.trainer.enable_validation and (is_new or not (run / REPORT).exists()):
            self._report(run, run / checkpoint)
        print(f"{heading('test it')}{COMMAND} test --ckpt_path {path}")
        print(f"{heading('look at it')}tensorboard --logdir {quote(display_path(runs))}")

    def _report(self, run: Path, ckpt_path: Path) -> None:
        """Write the run's page; without one, the run has its result all the same."""
        try:
            report_fit(run, ckpt_path, self.datamodule, self.trainer.limit_val_batches)
        except Exception as error:  # such as memory that is full
            print(f"{heading('report')}none: {one_line(str(error))}")

    def _results(
        self, checkpoint_callback: RunCheckpoint, checkpoint: Path, seconds: float
    ) -> dict[str, Any]:
        """Collect the results of a finished run, as plain data."""
        metrics = self.trainer.callback_metrics
        best = {"monitor": checkpoint_callback.monitor, "score": checkpoint_callback.best_score}
        return {
            "step": self.trainer.global_step,
            "epochs": int(self.trainer.global_step // steps_per_epoch(self.trainer)),
            **{name: finite(metrics[name]) for name in MONITORED if name in metrics},
            "best": best if checkpoint_callback.best_model_path else None,
            "checkpoint": checkpoint.as_posix(),
            "seconds": round(seconds, 1),
            "network": self.module.network.summary,
            "parameters": sum(each.numel() for each in self.module.parameters()),
            "val_images": self._val_images(),
        }

    def _val_images(self) -> int | None:
        """Count the images of a validation; None if there is none, or a loader does not tell."""
        loader = self.trainer.val_dataloaders
        if not self.trainer.enable_validation or not isinstance(loader, InMemoryDataLoader):
            return None
        return loader.image_count(int(self.trainer.num_val_batches[0]))


def search_lr(trainer: Trainer, module: FNNLitModule, datamodule: MNISTDataModule) -> float:
    """Find a learning rate, give it to the module, print it, and plot it in the run's folder.

    Returns:
        The learning rate.

    Raises:
        InputError: If none can be found.
    """
    with raise_on_sigterm(), warnings.catch_warnings():
        # said when a search is stopped and its checkpoint restored
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        search = find_lr(trainer, module, datamodule)
    module.lr = search.lr
    checkpoint = next(each for each in trainer.callbacks if isinstance(each, RunCheckpoint))  # type: ignore[attr-defined]
    if trainer.is_global_zero:
        where = ""
        if checkpoint.writes:
            picture = io.BytesIO()
            lr_figure(search.lrs, search.losses, search.lr).savefig(picture)
            path = checkpoint.folder.parent / "lr_find.png"
            write_atomic(path, picture.getbuffer())
            where = f", see {display_path(path)}"
        print(f"{heading('found')}learning rate {search.lr:.3g}{where}")
    return search.lr


def finite(value: Any) -> float | None:
    """Return a number as JSON can hold it: NaN and infinity become None.

    >>> finite(0.5), finite(math.inf)
    (0.5, None)
    """
    return float(value) if math.isfinite(value) else None
