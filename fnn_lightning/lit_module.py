"""The Lightning module: the step, the metrics and the optimiser around the network."""

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau, SequentialLR
from torch.utils.tensorboard.summary import hparams as hparams_summary
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassStatScores

from fnn_lightning.data.augmentation import LIMITS
from fnn_lightning.data.dataloader import Batch, InMemoryDataLoader, all_gather_batch
from fnn_lightning.errors import DivergenceError, InputError
from fnn_lightning.network import FNN, NUM_CLASSES, Activation, Initialization
from fnn_lightning.training.ema import EMA
from fnn_lightning.training.manual_backward import (
    ManualBackward,
    has_hooks,
    supports_manual_backward,
)
from fnn_lightning.training.metrics import IGNORE_INDEX, StepOutput, TrainMetrics, mark_updated
from fnn_lightning.training.multi_step import bare_step, count_steps, free_steps, obstacle
from fnn_lightning.training.optim import length_to_fill, run_length, warm_up, warmup_steps

CLASSES = NUM_CLASSES
SGD: dict[str, Any] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
SHOWN = (
    *("batch_norm", "dropout", "input_dropout", "initialization"),
    *("label_smoothing", "hardest", "averaging", "warmup"),
)
HPARAMS_METRICS = ("val/acc", "test/acc", "train/acc", "val/loss", "test/loss", "train/loss")
MAX_SECONDS = 0.2  # this often the Trainer looks at its clocks and signals, and moves its bar
MONITORED = ("val/acc", "val/loss")  # what can be selected by

ClassConfig = dict[str, Any]
"""A class of torch.optim with its arguments: `{"class_path": …, "init_args": {…}}`."""


class FNNLitModule(LightningModule):
    """Trains an `FNN` on digits with cross-entropy and measures loss and accuracy.

    A batch is `(images, labels)`: raw pixels as `FNN` takes them and `int64` labels of shape
    `(B,)`. Logged are `train/loss` and `train/acc` (means since they were last logged, every
    `log_every_n_steps`), `lr`, and `val/loss`, `val/acc`, `test/loss`, `test/acc` over the whole
    split; the x-axis is the number of optimiser steps done. All arguments are of plain types, so
    that a checkpoint opens with `torch.load(…, weights_only=True)`.

    Args:
        hidden_dims: Width of every hidden layer; `[]` is logistic regression.
        activation: Function after every hidden layer, by its name in `torch.nn.functional`.
        pixel_mean: Subtracted from the pixels, on the [0, 1] scale.
        pixel_std: What they are then divided by, on the [0, 1] scale.
        batch_norm: Whether hidden layers are normalised over the batch.
        dropout: Probability with which an output of a hidden layer is set to 0 in training.
        input_dropout: Likewise for the scaled pixels.
        initialization: How weights start: as `nn.Linear` has them, or after He or Xavier Glorot.
        label_smoothing: Share of the target's probability that is spread evenly over all ten digits
            in training (Szegedy et al. 2016, arXiv:1512.00567). `train/loss`, and every other loss
            of training, is then the cross-entropy with these targets; `val/loss` and `test/loss`
            stay that with the labels, so that they can be compared with other runs', but not with
            `train/loss`.
        hardest: Fraction of each batch that a step is taken on, rounded to whole images, one at
            least: those with the greatest loss, found by a first pass over all of them, without
            dropout and gradients. That saves most of the time of images learnt already (Jiang et
            al. 2019, "Accelerating deep learning by focusing on the biggest losers",
            arXiv:1910.00762). `train/loss` and `train/acc` are those of the first pass, so of the
            whole batch, over all processes; the running mean and variance of batch normalisation
            are those of the images that the step is taken on.
        averaging: Decay of an exponential moving average of the weights, taken after every step,
            such as 0.999: it is what is validated, tested and saved to predict with, while the
            weights themselves are trained on, and `train/loss` and `train/acc` are theirs. 0 is
            none. See `EMA`.
        optimizer: Class of `torch.optim` and its arguments, `{"class_path": "torch.optim.Adam",
            "init_args": {"lr": 0.001}}`; SGD with a learning rate of 0.1 if not given.
        lr_scheduler: Class of `torch.optim.lr_scheduler` and its arguments, likewise. Among those
            of `ReduceLROnPlateau` is `monitor`, the name of a logged metric. `total_steps` of
            `OneCycleLR`, `T_max` of `CosineAnnealingLR` and `total_iters` of `LinearLR` and
            `PolynomialLR` are the length of the run, less a warm-up counted in the same unit, if
            they are null or 0, or left out and without a default of PyTorch's.
        lr_interval: Whether the scheduler counts epochs or steps.
        warmup: Number of steps, or, below 1, fraction of the run, in which the learning rate first
            rises in equal steps from near 0 to that of the optimizer, or that with which OneCycleLR
            or CyclicLR begins in its place. A schedule that counts steps begins after it; one that
            counts epochs is left as it is, and the warm-up has to end with the first epoch. 0 is
            none.
        run_ahead: Whether the steps at which the Trainer has nothing else to do, such as to
            validate or save, are taken in a plain loop. For a small net that is faster; the result
            is bit for bit the same.

    Raises:
        InputError: If an argument is out of its range.
    """

    def __init__(
        self,
        hidden_dims: Sequence[int] = (100,),
        activation: Activation = "relu",
        pixel_mean: float = 0.0,
        pixel_std: float = 1.0,
        batch_norm: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        initialization: Initialization = "pytorch",
        label_smoothing: float = 0.0,
        hardest: float = 1.0,
        averaging: float = 0.0,
        optimizer: ClassConfig | None = None,
        lr_scheduler: ClassConfig | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        warmup: float = 0.0,
        run_ahead: bool = True,
    ) -> None:
        super().__init__()
        self.network = FNN(
            hidden_dims=hidden_dims,
            activation=activation,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            batch_norm=batch_norm,
            dropout=dropout,
            input_dropout=input_dropout,
            initialization=initialization,
        )
        if not 0 <= label_smoothing < 1:
            raise InputError(
                f"Expected `label_smoothing` to be from 0 to below 1, but got {label_smoothing}"
            )
        if not 0 < hardest <= 1:
            raise InputError(f"Expected `hardest` to be above 0 and at most 1, but got {hardest}")
        if not 0 <= averaging < 1:
            raise InputError(f"Expected `averaging` to be from 0 to below 1, but got {averaging}")
        self.averaging = averaging
        self.batch_norm = batch_norm
        self.label_smoothing = label_smoothing
        self.hardest = hardest
        self.optimizer_config: ClassConfig = optimizer or SGD
        self.lr_scheduler_config = lr_scheduler
        self.lr_interval = lr_interval
        self.warmup = warmup
        if not (0 <= warmup < 1 or (warmup < math.inf and warmup == int(warmup) > 0)):
            raise InputError(
                "Expected `warmup` to be a number of steps, or a fraction of the run from 0 to "
                f"below 1, but got {warmup}"
            )
        self.run_ahead = run_ahead
        _torch_class(self.optimizer_config, torch.optim, Optimizer)
        lr = (self.optimizer_config.get("init_args") or {}).get("lr", SGD["init_args"]["lr"])
        if not isinstance(lr, int | float) or not 0 < lr < math.inf:
            raise InputError(f"Expected the learning rate `lr` to be positive, but got {lr}")
        if lr_scheduler is not None:
            _torch_class(lr_scheduler, torch.optim.lr_scheduler, LRScheduler)
        # Logged by `_log_hparams`: the Trainer would log them with `hp_metric: -1` beside them.
        self.save_hyperparameters(ignore=["run_ahead"], logger=False)

        # The loss has refused labels that are no digit before they are counted.
        metrics = MetricCollection(
            {
                "loss": mean_metric(),
                "acc": MulticlassAccuracy(CLASSES, average="micro", validate_args=False),
                "stats": MulticlassStatScores(CLASSES, average="micro", validate_args=False),
            }
        )
        self.train_metrics = TrainMetrics(metrics.clone(prefix="train/"), mean_metric())
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.test_train_set_metrics = metrics.clone(prefix="test/train_set_")
        self.counts: dict[str, tuple[int, int]] = {}
        """Of each split last measured: images classified correctly, images in all."""
        self.validated_step: int | None = None
        """Number of optimiser steps at the last validation."""
        self.keeps_gradients = False
        """Whether validation leaves the gradients of the step before it in `gradients`."""
        self.gradients: tuple[int, dict[str, Tensor]] = (0, {})
        """Number of the step, and gradients by the names of the network's parameters."""
        self.began = False
        """Whether training has begun: all that a checkpoint brings is in its place."""
        self._resumed: dict[str, Any] | None = None
        self._train_means: dict[str, Tensor] = {}
        self._schedule_lengths = [0, 0]
        self._lr = 0.0
        self._logged_step = 0
        self._loaded_step = 0

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits of shape `(B, 10)` from raw pixels, as `FNN` does."""
        logits: Tensor = self.network(images)
        return logits

    @property
    def loss_since_validation(self) -> MeanMetric:
        """Mean training loss since the last validation ended."""
        return self.train_metrics.since_validation

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        source, world_size = self.trainer.train_dataloader, self.trainer.world_size
        step = self.global_step + 1
        if world_size == 1 or not isinstance(source, InMemoryDataLoader):
            return self._train(batch, step)[0]
        loss, count = self._train(batch, step, batch_idx)
        # DDP takes the mean over the processes, whose shares may differ in size
        return loss * (count * world_size / self._step_size(source.global_batch_size(batch_idx)))

    def _train(self, batch: Batch, step: int, batch_idx: int | None = None) -> tuple[Tensor, int]:
        """Compute the loss that a step is to lower.

        Args:
            batch: This process's share of it.
            step: Number of the step.
            batch_idx: Number of the batch, if several processes share it.

        Returns:
            Mean loss of this process's images that are trained on, and how many these are.
        """
        if self.hardest < 1:
            batch = self._hardest(batch, step, batch_idx)
            return self._step(batch, self.label_smoothing).loss, len(batch[1])
        output = self._step(batch, self.label_smoothing)
        self.train_metrics.add(step, output)
        return output.loss, len(batch[1])

    def _hardest(self, batch: Batch, step: int, batch_idx: int | None) -> Batch:
        """Choose those of this process's images that are among the hardest of the whole batch."""
        images, labels = batch
        training = [module for module in self.network.modules() if module.training]
        self.network.eval()
        try:
            with torch.no_grad():
                output = self._step(batch, self.label_smoothing)
        finally:
            for module in training:  # others are frozen, and stay so
                module.training = True
        self.train_metrics.add(step, output)
        losses = F.cross_entropy(
            output.logits, labels, reduction="none", label_smoothing=self.label_smoothing
        )
        share = slice(None)
        if batch_idx is not None:
            source: InMemoryDataLoader = self.trainer.train_dataloader  # type: ignore[assignment]
            losses = all_gather_batch(losses, source, batch_idx)
            share = slice(source.rank, None, source.world_size)
        order = losses.argsort(descending=True, stable=True)
        chosen = torch.zeros_like(losses, dtype=torch.bool)
        chosen[order[: self._step_size(len(losses))]] = True
        return images[chosen[share]], labels[chosen[share]]

    def _step_size(self, count: int) -> int:
        """Return on how many images of as many a step is taken."""
        return min(count, max(1, round(self.hardest * count)))

    def on_train_start(self) -> None:
        if self.batch_norm:
            self._check_shares()
        states = 1
        if self._resumed is not None:
            self._restore_progress(self._resumed)
            states, self._resumed = len(self._resumed["processes"]), None
        rank = self.trainer.global_rank
        if rank >= states:  # otherwise its dropout would be that of another process
            seed = np.random.SeedSequence((torch.initial_seed(), rank, self.global_step))
            torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
        self.began = True
        reason = self.single_steps_because
        rank_zero_info(f"Steps are taken one at a time: {reason}" if reason else "Steps run ahead")
        self._set_pace()

    def _check_shares(self) -> None:
        """Refuse batches of which a process would have one image, without a variance, or none.

        How many of the hardest images a process has is known only when they are found.
        """
        source, trainer = self.trainer.train_dataloader, self.trainer
        if isinstance(source, InMemoryDataLoader):
            processes = trainer.world_size
            if self.hardest < 1 and processes > 1:
                raise InputError(
                    "Expected one process for batch normalisation of the `hardest` images, which "
                    f"may all be another's, but got {processes}: give --trainer.devices 1, or "
                    "--model.batch_norm false"
                )
            last = source.global_batch_size(int(trainer.num_training_batches) - 1)
            if self._step_size(last) < 2 * processes:
                hardest = f", of which the hardest {self.hardest:g}," if self.hardest < 1 else ""
                raise InputError(
                    "Expected two images or more in every batch on each process, for batch "
                    f"normalisation, but got {last} in an epoch's last batch{hardest} on "
                    f"{processes} in all: give another --data.batch_size"
                )

    def on_train_epoch_start(self) -> None:
        self._set_pace()  # a callback may have changed something

    def _set_pace(self) -> None:
        source = self.trainer.train_dataloader
        if isinstance(source, InMemoryDataLoader):
            source.between = self._run_ahead if self.single_steps_because is None else None

    def _run_ahead(self, batches: Iterator[Batch]) -> None:
        """Take the steps at which the Trainer has nothing to do, in a loop as written by hand.

        Args:
            batches: The rest of the epoch; what is taken from it the Trainer does not see.
        """
        trainer, log_every = self.trainer, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not trainer.training:  # someone else iterates over the same source
            return
        optimizer, device = trainer.optimizers[0], self.device
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        configs = trainer.lr_scheduler_configs
        schedulers = [config.scheduler for config in configs if config.interval == "step"]
        update = bare_step(optimizer)
        by_hand = ManualBackward(self.network) if self._supports_manual_backward() else None
        deadline = time.monotonic() + MAX_SECONDS
        first = step = trainer.global_step
        try:
            for images, labels in islice(batches, free_steps(trainer)):
                images, labels = images.to(device), labels.to(device)
                if by_hand is not None:
                    self.train_metrics.add(step + 1, by_hand(images, labels))
                else:
                    loss, _ = self._train((images, labels), step + 1)
                    for parameter in parameters:
                        parameter.grad = None
                    loss.backward()  # type: ignore[no-untyped-call]
                update()
                step += 1
                if log_every and step % log_every == 0:
                    self._log_training(step, optimizer.param_groups[0]["lr"])
                for scheduler in schedulers:
                    scheduler.step()
                if time.monotonic() > deadline:
                    break
        finally:
            count_steps(trainer, step - first, (step - first) * len(schedulers))

    def _supports_manual_backward(self) -> bool:
        if type(self) is not FNNLitModule or has_hooks(self):
            return False
        plain = self.label_smoothing == 0 and self.hardest == 1
        return plain and supports_manual_backward(self.network)

    @property
    def single_steps_because(self) -> str | None:
        """Why the Trainer takes every step itself, if it does."""
        if not self.run_ahead:
            return "run_ahead is off"
        return obstacle(self.trainer, FNNLitModule)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self._lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._log_if_due()
        if self._train_means:
            self.log_dict(self._train_means, prog_bar=True, logger=False)
            self._train_means = {}

    def _log_if_due(self) -> None:
        step, every = self.global_step, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        # with gradient accumulation several batches end at the same step
        if every and step % every == 0 and step != self._logged_step:
            self._log_training(step, self._lr)

    def on_train_end(self) -> None:
        self._keep_gradients()
        if self.global_step > self._logged_step:
            self._log_training(self.global_step, self._lr)

    def on_validation_model_zero_grad(self) -> None:
        self._keep_gradients()
        super().on_validation_model_zero_grad()

    def _keep_gradients(self) -> None:
        named = self.network.named_parameters()
        gradients = {name: each.grad for name, each in named if each.grad is not None}
        if self.keeps_gradients and gradients:
            self.gradients = (self.global_step, gradients)

    def on_validation_start(self) -> None:
        self.train_metrics.update()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        trainer: Any = self.trainer
        self._log_split(self.val_metrics, trainer.val_dataloaders, trainer.num_val_batches[0])

    def on_validation_end(self) -> None:
        self.validated_step = self.global_step
        self.loss_since_validation.reset()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        metrics = self.test_train_set_metrics if dataloader_idx else self.test_metrics
        return self._evaluate(batch, metrics)

    def on_test_epoch_end(self) -> None:
        trainer: Any = self.trainer
        sources = trainer.test_dataloaders
        sources = sources if isinstance(sources, list) else [sources]
        splits = (self.test_metrics, self.test_train_set_metrics)
        for metrics, source, batches in zip(
            splits, sources, trainer.num_test_batches, strict=False
        ):
            if batches:
                self._log_split(metrics, source, batches)

    def predict_step(self, batch: Tensor | Batch, batch_idx: int) -> dict[str, Tensor]:
        """Predict the digits of a batch.

        Args:
            batch: Raw pixels as `FNN` takes them, alone or followed by labels.
            batch_idx: Number of the batch.

        Returns:
            `probabilities` of shape `(B, 10)`, whose rows add up to 1, and `digit`, the most
            probable one, `int64` of shape `(B,)`.
        """
        images = batch if isinstance(batch, Tensor) else batch[0]
        probabilities = self(images).softmax(dim=1)
        return {"probabilities": probabilities, "digit": probabilities.argmax(dim=1)}

    def configure_callbacks(self) -> list[Callback]:
        return [EMA(self.averaging)] if self.averaging else []

    def configure_optimizers(self) -> Any:
        optimizer: Optimizer = _build(
            self.optimizer_config, torch.optim, Optimizer, self.parameters()
        )
        to_fill = length_to_fill(self.lr_scheduler_config)
        warmup = length = 0
        if to_fill or self.warmup:
            run = run_length(self)
            warmup = warmup_steps(self.warmup, run)
            in_steps = self.lr_interval == "step"
            length = run.steps - warmup if in_steps else run.epochs
            if self.lr_scheduler_config and not in_steps and warmup > run.steps_an_epoch:
                raise InputError(
                    f"Expected `warmup` to end with the first epoch, of {run.steps_an_epoch:,} "
                    f"steps, but got {warmup:,} steps: give --model.lr_interval step"
                )
        self._check_schedule_is_as_before([warmup, length if to_fill else 0])
        schedule = self._schedule(optimizer, {to_fill: length} if to_fill else {})
        if not warmup:
            return optimizer if schedule is None else ([optimizer], [schedule])
        rising = {"scheduler": warm_up(optimizer, warmup), "interval": "step"}
        if schedule is None:
            return [optimizer], [rising]
        if self.lr_interval == "epoch":
            return [optimizer], [schedule, rising]
        if isinstance(schedule["scheduler"], ReduceLROnPlateau):
            raise InputError(
                "Expected `lr_interval` to be epoch with `warmup` and ReduceLROnPlateau, "
                "but got step"
            )
        both = [rising["scheduler"], schedule["scheduler"]]
        in_turn = SequentialLR(optimizer, both, milestones=[warmup])
        return [optimizer], [{**schedule, "scheduler": in_turn}]

    def _schedule(self, optimizer: Optimizer, filled_in: dict[str, int]) -> dict[str, Any] | None:
        """Make the scheduler, if there is one, in the form in which Lightning takes it."""
        if self.lr_scheduler_config is None:
            return None
        config = dict(self.lr_scheduler_config)
        config["init_args"] = {**(config.get("init_args") or {}), **filled_in}
        monitor = config["init_args"].pop("monitor", None)
        if config["class_path"].endswith("ReduceLROnPlateau") and monitor not in MONITORED:
            raise InputError(
                f"Expected `monitor` of ReduceLROnPlateau to be one of {', '.join(MONITORED)}, "
                f"but got {monitor}"
            )
        scheduler = _build(config, torch.optim.lr_scheduler, LRScheduler, optimizer)
        return {"scheduler": scheduler, "interval": self.lr_interval, "monitor": monitor}

    def _check_schedule_is_as_before(self, lengths: list[int]) -> None:
        """Refuse to go on with a schedule that would have become longer or shorter.

        Args:
            lengths: Of the warm-up, in steps, and of the schedule, if it follows from the run's.
        """
        self._schedule_lengths = lengths
        before = (self._resumed or {}).get("schedule_lengths", lengths)
        if lengths != before:
            raise InputError(
                "Expected --trainer.max_epochs and --trainer.max_steps to be those with which the "
                "run began, since the schedule of the learning rate follows from them: "
                f"{before[0]:,} steps of warm-up and a length of {before[1]:,} then, "
                f"but got {lengths[0]:,} and {lengths[1]:,} now"
            )

    def on_fit_start(self) -> None:
        self._train_means = {}
        self.train_metrics.reset()
        self._logged_step, self.validated_step = 0, None
        self._log_hparams()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # An error here comes before the file is touched: the last good checkpoint stays.
        losses = self.train_metrics.losses()
        if not all(parameter.isfinite().all() for parameter in self.parameters()):
            raise DivergenceError(
                f"A weight is no longer a finite number at step {self.global_step}"
            )
        if not self.trainer.training and not self.trainer.validating:
            return  # training has ended: there is nothing to go on with
        self._log_if_due()  # callbacks save before `on_train_batch_end` comes to the module
        kept = self.train_metrics.kept()
        validated_step = self.validated_step
        if self.trainer.validating:  # and before `on_validation_end`
            kept["since_validation"], validated_step = {}, self.global_step
        kept["random_state"] = torch.get_rng_state()
        if self.device.type == "cuda":
            kept["cuda_random_state"] = torch.cuda.get_rng_state(self.device)
        checkpoint["progress"] = {
            "processes": self._gather(kept),
            "losses": losses,
            "logged_step": self._logged_step,
            "lr": self._lr,
            "validated_step": validated_step,
            "plateau": self._plateau_due(),
            "schedule_lengths": self._schedule_lengths,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._loaded_step = checkpoint["global_step"]
        self._resumed = checkpoint.get("progress")

    def finish(self, log: bool) -> None:
        """Do what is left of a run that was interrupted after its last step.

        Args:
            log: Whether the means since the last line of the log are still to be written.
        """
        if self._resumed is not None:
            self._restore_progress({**self._resumed, "plateau": None})
            self._resumed = None
            if log:
                self.on_train_end()

    def _restore_progress(self, progress: dict[str, Any]) -> None:
        """Go on in the middle of everything that a checkpoint of Lightning's leaves out."""
        processes, rank = progress["processes"], self.trainer.global_rank
        own = processes[rank % len(processes)]
        as_before = len(processes) == self.trainer.world_size
        # on another number of processes, the first goes on with the sums of all
        kept, here = ([own], True) if as_before else (processes, rank == 0)
        self.train_metrics.restore(kept, progress["losses"], self.device, here)
        self._logged_step, self._lr = progress["logged_step"], progress["lr"]
        self.validated_step = progress["validated_step"]
        if progress["plateau"] is not None:
            self._step_plateau(float(progress["plateau"]))
        torch.set_rng_state(own["random_state"])
        if self.device.type == "cuda" and "cuda_random_state" in own:
            torch.cuda.set_rng_state(own["cuda_random_state"], self.device)

    def _plateau_due(self) -> float | None:
        """Return the metric that `ReduceLROnPlateau` is about to see, at the end of an epoch.

        Lightning shows it only after the callbacks have saved.
        """
        fit_loop: Any = self.trainer.fit_loop
        epoch = fit_loop.epoch_progress.current
        ended = epoch.processed > epoch.completed and not fit_loop.restarting
        for config in self.trainer.lr_scheduler_configs:
            if config.reduce_on_plateau and ended:
                return float(self.trainer.callback_metrics[str(config.monitor)])
        return None

    def on_train_epoch_end(self) -> None:
        # In an epoch resumed in its middle Lightning leaves ReduceLROnPlateau out.
        if self.trainer.fit_loop.restarting and self.trainer.is_last_batch:
            for config in self.trainer.lr_scheduler_configs:
                if config.reduce_on_plateau:
                    self._step_plateau(self.trainer.callback_metrics[str(config.monitor)])

    def _step_plateau(self, metric: Any) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if config.reduce_on_plateau:  # and not the warm-up
                config.scheduler.step(metric)
        self.trainer.fit_loop.epoch_loop.scheduler_progress.increment_by(1)

    def _gather(self, kept: dict[str, Any]) -> list[dict[str, Any]]:
        """Collect what every process keeps, on every process."""
        everyone: list[Any] = [kept]
        if self.trainer.world_size > 1:
            everyone *= self.trainer.world_size
            torch.distributed.all_gather_object(everyone, kept)
        return everyone

    def _step(self, batch: Batch, label_smoothing: float = 0.0) -> StepOutput:
        images, labels = batch
        logits = self(images)
        if len(labels):
            loss = F.cross_entropy(
                logits, labels, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing
            )
        else:
            loss = logits.sum()  # a process's share can be empty, and then adds nothing
        return StepOutput(loss, logits, labels)

    def _evaluate(self, batch: Batch, metrics: MetricCollection) -> dict[str, Tensor]:
        loss, logits, labels = self._step(batch)
        if len(labels):
            metrics.update(preds=logits, target=labels, value=loss, weight=len(labels))
        return {"logits": logits}  # to callbacks

    def _log_training(self, step: int, lr: float) -> None:
        """Log the means since the last call."""
        self.train_metrics.update()
        self._train_means = self._compute(self.train_metrics.metrics)
        self._write({**self._train_means, "lr": torch.tensor(lr)}, step)
        self._logged_step = step

    def _write(self, values: dict[str, Tensor], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics({name: value.item() for name, value in values.items()}, step)

    def _log_split(self, metrics: MetricCollection, source: Any, batches: int) -> None:
        """Log what was measured over a split, or over as many batches of it."""
        means = self._compute(metrics)
        if self.trainer.sanity_checking:
            return
        if isinstance(source, InMemoryDataLoader):
            _, counted = self.counts[str(metrics.prefix)]
            expected = min(len(source.indices), int(batches) * source.batch_size)
            if counted != expected:  # some left out, or some counted on several processes
                raise RuntimeError(f"{counted:,} images were counted instead of {expected:,}")
        fitting = self.trainer.state.fn == "fit"
        # torchmetrics has them over all processes already; the maximum of equals leaves them so.
        self.log_dict(
            means, prog_bar=True, logger=False if fitting else None, sync_dist=True, reduce_fx="max"
        )
        # The x-axis is the number of optimiser steps; Lightning's own counts the batches of a run.
        if fitting:
            self._write(means, self.global_step)
        else:  # through Lightning, which returns them; it takes the metric `step` for the x-axis
            self.log("step", float(self.step_count), sync_dist=True, reduce_fx="max")

    def _compute(self, metrics: MetricCollection) -> dict[str, Tensor]:
        """Compute loss and accuracy over all processes, keep the counts, and start anew."""
        mark_updated(metrics)
        values: dict[str, Tensor] = metrics.compute()
        metrics.reset()
        prefix = str(metrics.prefix)
        correct, _, _, _, total = values.pop(f"{prefix}stats").tolist()
        self.counts[prefix] = (correct, total)
        return values

    @property
    def step_count(self) -> int:
        """Number of optimiser steps that the weights have seen."""
        return self.global_step or self._loaded_step

    @rank_zero_only
    def _log_hparams(self) -> None:
        """Describe the run for comparison with others, in TensorBoard's HParams tab."""
        hidden_dims = list(self.hparams["hidden_dims"])
        defaults = self.trainer.optimizers[0].defaults
        hparams: dict[str, Any] = {
            "depth": len(hidden_dims),
            "width": max(hidden_dims, default=0),
            "hidden_dims": str(hidden_dims),
            "activation": self.hparams["activation"],
            "pixel_mean": self.hparams["pixel_mean"],
            "pixel_std": self.hparams["pixel_std"],
            "optimizer": type(self.trainer.optimizers[0]).__name__,
            **{key: defaults[key] for key in ("lr", "momentum", "weight_decay") if key in defaults},
        }
        off = inspect.signature(FNNLitModule).parameters
        hparams |= {
            key: self.hparams[key] for key in SHOWN if self.hparams[key] != off[key].default
        }
        if self.lr_scheduler_config:
            hparams["lr_scheduler"] = self.lr_scheduler_config["class_path"].rpartition(".")[2]
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            wanted = ("dataset", "batch_size", "val_size", "seed")
            hparams |= {key: datamodule.hparams[key] for key in wanted if key in datamodule.hparams}
            hparams |= {
                key: datamodule.hparams[key] for key in LIMITS if datamodule.hparams.get(key)
            }
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(hparams, {})  # {} instead of None: no `hp_metric: -1`
                # The tab shows the newest value of each scalar named here, so a run can be
                # compared while it trains, and the figures of a later `test` appear too.
                metrics = dict.fromkeys(HPARAMS_METRICS, 0.0)  # the values do not matter
                for summary in hparams_summary(hparams, metrics):  # type: ignore[no-untyped-call]
                    logger.experiment.file_writer.add_summary(summary)
            else:
                logger.log_hyperparams(hparams)


def mean_metric() -> MeanMetric:
    """Make a weighted mean that is NaN if one of its values is."""
    # "disable" would let a NaN through too, but drops the weights (torchmetrics issue 3434).
    return MeanMetric(nan_strategy=math.nan)


def _torch_class(config: ClassConfig, module: ModuleType, base: type) -> Callable[..., Any]:
    """Look up a class of torch.optim by its name; nothing is imported, whatever the name."""
    class_path = config.get("class_path") if isinstance(config, Mapping) else None
    name = str(class_path).rpartition(".")[2]
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, base) and found is not base:
        paths = [name, f"{module.__name__}.{name}", f"{found.__module__}.{name}"]
        # LightningCLI's own name for PyTorch's class with the argument `monitor`
        if name == "ReduceLROnPlateau":
            paths.append(f"lightning.pytorch.cli.{name}")
        if class_path in paths:
            _check_plain(config.get("init_args") or {})
            return found
    raise InputError(
        f"Expected `class_path` to name a class of {module.__name__}, but got {config}"
    )


def _check_plain(arguments: dict[str, Any]) -> None:
    """Refuse what could not be stored in a checkpoint as plain data, functions above all."""
    for name, value in arguments.items():
        parts = value if isinstance(value, list | tuple) else [value]
        if not all(part is None or isinstance(part, bool | int | float | str) for part in parts):
            raise InputError(f"Expected `{name}` to be a number or a name, but got {value!r}")


def _build(config: ClassConfig, module: ModuleType, base: type, *args: Any) -> Any:
    kwargs = config.get("init_args") or {}
    try:
        return _torch_class(config, module, base)(*args, **kwargs)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{config['class_path']} cannot be made: {error}") from error
