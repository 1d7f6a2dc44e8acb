"""The Lightning module: the step, the metrics and the optimiser around the network."""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

from lightning.pytorch import Callback, LightningModule
from torch import Tensor, autocast

from fnn_lightning.data.dataloader import Batch, InMemoryDataLoader
from fnn_lightning.data.datasets import DIGITS, Framing, check_classes
from fnn_lightning.errors import DivergenceError, InputError
from fnn_lightning.evaluation.calibration import stored_temperature, to_probabilities
from fnn_lightning.evaluation.measures import check_finite
from fnn_lightning.evaluation.predictions import Prediction, predict_logits
from fnn_lightning.network import FNN
from fnn_lightning.training.adversarial import AdversarialExamples
from fnn_lightning.training.augmentation_end import AugmentationEnd
from fnn_lightning.training.batch_norm import batch_statistics_only, check_batch_norm
from fnn_lightning.training.compilation import (
    add_prefix,
    compile_network,
    drop_prefix,
)
from fnn_lightning.training.distillation import Teachers
from fnn_lightning.training.ema import check_no_swa
from fnn_lightning.training.freezing import FrozenLayers
from fnn_lightning.training.hard_examples import HardExamples, Sharding
from fnn_lightning.training.hparams import HParams
from fnn_lightning.training.loss import CROSS_ENTROPY, TrainingLoss
from fnn_lightning.training.lr_finder import FINDERS
from fnn_lightning.training.matmul_precision import (
    MatmulPrecision,
    Precision,
    check_matmul_precision,
)
from fnn_lightning.training.metrics import EvaluationMetrics, SplitMetrics, StepOutput, TrainMetrics
from fnn_lightning.training.multi_step import (
    MultiStep,
    check_clock,
    check_module_not_compiled,
    run_length,
)
from fnn_lightning.training.optim import SGD, ClassConfig, Optim
from fnn_lightning.training.pixel_scale import PixelScale
from fnn_lightning.training.resume import Resume
from fnn_lightning.training.threads import Threads, check_num_threads
from fnn_lightning.training.train_log import TrainLog, log_values

FIXED = {"in_features", "out_features"}  # given by the data
NETWORK_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(FNN).parameters.items()
    if name not in FIXED
}


class FNNLitModule(LightningModule):
    """Trains an `FNN` on pictures with cross-entropy and measures loss and accuracy.

    A batch is `(images, labels)`: raw pixels as `FNN` takes them, and `int64` labels of shape
    `(B,)`. A dataloader of your own must not scale the pixels as `ToTensor` and `Normalize` do:
    training and evaluation then warn, and `predict` refuses them. Logged are `train/loss`,
    `train/acc` and `lr` (see `TrainLog`), and, over the whole split, the `loss`, `acc`,
    `balanced_acc` and `f1` (see `EvaluationMetrics`) of `val/` and `test/`. The x-axis is the
    number of optimiser steps done. All arguments are plain data, so that
    `torch.load(…, weights_only=True)` opens a checkpoint.

    Args:
        class_names: Name of each class. The network has an output for each.
        framing: How `predict` brings pictures to 28 × 28 pixels: `mnist`, ink on paper to MNIST's
            form; `resize`, as they are. As the training images were.
        freeze: Number of layers, counted from the input, whose weights stay as they are; with
            `--init_from`, those of another run.
        label_smoothing: Share of the target's probability that is spread evenly over all classes
            in training (Szegedy et al. 2016, arXiv:1512.00567). `train/loss` is measured against
            these targets. `val/loss` and `test/loss` are not, so that they can be compared with
            those of other runs, but not with `train/loss`.
        keep_hardest: Fraction of each batch that a step is taken on: the images with the greatest
            loss, found by a first pass. `train/loss` and `train/acc` are those of the first pass,
            so of the whole batch. See `HardExamples`.
        adversarial_radius: Length, on the [0, 1] scale of the pixels, of the way from an image to
            its adversarial example. A step then lowers the mean of the losses of both; `train/loss`
            and `train/acc` are those of the images. 0 is none. See `AdversarialExamples`.
        adversarial_steps: Number of equal parts of that way, at the start of each of which the
            direction is found anew.
        teachers: Checkpoints or folders of runs, of the same classes. The network learns the mean
            of the probabilities that they give an image, instead of its label. See `Teachers`.
        optimizer: Class of `torch.optim` and its arguments, `{"class_path": "torch.optim.Adam",
            "init_args": {"lr": 0.001}}`. SGD with a learning rate of 0.1 by default.
        lr_scheduler: Class of `torch.optim.lr_scheduler` and its arguments, likewise. Its length
            is the run's if it is left out or 0. See `Optim`.
        lr_interval: Whether the scheduler counts epochs or steps.
        warmup: Linear warm-up to the schedule's initial rate: number of steps or, below 1, a
            fraction of the run. 0 is none.
        multi_step: Whether several optimiser steps are taken for one of the Trainer's where it
            has nothing else to do. For a small net that is faster. The result is bit for bit the
            same. See `MultiStep`.
        num_threads: Number of CPU threads that compute a step. By default as many as are the
            fastest, where that changes no bit, and otherwise chosen by the work of a step and the
            cores, and kept when the run is resumed. See `Threads`.
        matmul_precision: How exactly training steps multiply matrices of `float32`: `medium` allows
            to round what is multiplied to `bfloat16`, `high` less coarsely, each where the hardware
            is faster at it. None leaves what the process has set, by default `highest`. See
            `MatmulPrecision`.
        compile: Whether the network is compiled by `torch.compile`, when it is first used. That
            takes half a minute, needs a C++ compiler, and pays off only for a large network. The
            result is the same but for rounding.
        network: Arguments of `FNN`.

    Raises:
        InputError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> module = FNNLitModule(hidden_dims=[300, 100], activation="tanh")
        >>> module(torch.zeros(5, 28, 28)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        *,
        class_names: Sequence[str] = DIGITS,
        framing: Framing = "mnist",
        freeze: int = 0,
        label_smoothing: float = 0.0,
        keep_hardest: float = 1.0,
        adversarial_radius: float = 0.0,
        adversarial_steps: int = 1,
        teachers: Sequence[str] = (),
        optimizer: ClassConfig | None = None,
        lr_scheduler: ClassConfig | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        warmup: float = 0.0,
        multi_step: bool = True,
        num_threads: int | None = None,
        matmul_precision: Precision | None = None,
        compile: bool = False,
        **network: Any,
    ) -> None:
        super().__init__()
        if framing not in get_args(Framing):
            raise InputError(f"Expected `framing` to be resize or mnist, but got {framing!r:.100}")
        num_classes = len(class_names)
        if not num_classes:
            raise InputError("Expected `class_names` to name a class or more, but got none")
        self.network = FNN(in_features=784, out_features=num_classes, **network)
        if compile:
            compile_network(self.network)
        self.frozen = FrozenLayers(self.network, freeze)
        self.training_loss = TrainingLoss(label_smoothing)
        hard_examples = HardExamples(keep_hardest, self.training_loss)
        self.hard_examples = hard_examples if keep_hardest < 1 else None
        self.adversarial_examples = AdversarialExamples(adversarial_radius, adversarial_steps)
        if compile and self.adversarial_examples:  # it frees what the second gradient needs
            raise InputError(
                "Expected a network that is not compiled to train on adversarial examples, but got "
                f"`compile` and `adversarial_radius` {adversarial_radius}: leave out one of them"
            )
        self.teachers = Teachers(teachers)
        self.optim = Optim(optimizer or SGD, lr_scheduler, lr_interval, warmup)
        check_num_threads(num_threads)
        self.multi_step = multi_step
        self.num_threads = num_threads
        check_matmul_precision(matmul_precision)
        self.matmul_precision = matmul_precision
        # `HParams` logs them: the Trainer would log them with `hp_metric: -1` beside them.
        # a trained network needs no teachers, which may be gone
        ignored = ["multi_step", "num_threads", "compile", "teachers"]
        self.save_hyperparameters(ignore=ignored, logger=False)
        self.hparams.update(NETWORK_DEFAULTS | network | {"class_names": list(class_names)})
        self.class_names = tuple(class_names)
        self.framing = framing

        self.train_metrics = TrainMetrics(num_classes)
        self.val_metrics = EvaluationMetrics("val/", num_classes)
        self.test_metrics = EvaluationMetrics("test/", num_classes)
        self.test_train_set_metrics = EvaluationMetrics("test/train_set_", num_classes)
        self.schedule_lengths = (0, 0)
        """Steps of warm-up and length of the schedule where the run's length gives them, else 0."""
        self.temperature: float | None = None
        """What the logits are divided by for probabilities, fitted on held-out images for the
        weights of the moment; None is 1. It does not enter a loss."""
        self._loaded_step = 0

    def setup(self, stage: str) -> None:
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage != "predict" and hasattr(datamodule, "class_names"):
            check_classes(self.class_names, datamodule.class_names)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits of shape `(B, classes)` from raw pixels, as `FNN` does."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        sharding, dealt = self._sharding(batch_idx), len(batch[1])
        rows = first_pass = None
        if self.hard_examples is not None:
            batch, rows, first_pass = self.hard_examples.select(
                batch, self.network, self._step, sharding
            )
        targets = self.teachers.targets(batch[0]) if self.teachers else None
        with self._masks(batch_idx, dealt, rows):
            output, loss = self._step_and_loss(batch, targets)
        self.train_metrics.update(output if first_pass is None else first_pass)
        return loss if sharding is None else self._weigh(loss, len(batch[1]), *sharding)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        metrics = self.test_train_set_metrics if dataloader_idx else self.test_metrics
        return self._evaluate(batch, metrics)

    def predict_step(self, batch: Tensor | Batch, batch_idx: int) -> dict[str, Tensor]:
        """Predict the classes of a batch.

        Args:
            batch: Raw pixels as `FNN` takes them, alone or followed by labels.
            batch_idx: Number of the batch.

        Returns:
            `probabilities` of shape `(B, classes)`, whose rows add up to 1, and `class`, the most
            probable one, an index into `class_names`: `int64` of shape `(B,)`.
        """
        images = batch if isinstance(batch, Tensor) else batch[0]
        with self._without_autocast():
            logits = self(images)
        probabilities = to_probabilities(logits, self.temperature)
        return {"probabilities": probabilities, "class": logits.argmax(dim=1)}

    def predict(self, x: Any) -> Prediction:
        """Predict the classes of pictures or arrays, one or many; no Trainer is needed.

        It computes in evaluation mode, on the module's device, and leaves the module as it was.

        Args:
            x: A picture: its path or a PIL image, of any size, brought to 28 × 28 pixels as
                `framing` says. Or a NumPy array or a tensor of raw pixels 0–255, ink 255 on 0, of
                shape `(28, 28)`, `(N, 28, 28)`, `(N, 784)` or `(N, 1, 28, 28)`. Or a list of
                these, one image each.

        Returns:
            `classes` and `probabilities`, of one image without the first dimension.

        Raises:
            DivergenceError: If a probability is not finite.
            InputError: If there is no image, or one cannot be read, has another shape, is on
                another scale, or is not finite.

        Example:
            >>> import torch
            >>> classes, probabilities = FNNLitModule().predict(torch.zeros(3, 28, 28))
            >>> classes.shape, probabilities.shape
            (torch.Size([3]), torch.Size([3, 10]))
        """
        from fnn_lightning.data.raw_pixels import raw_pixels  # Pillow is slow to import

        pixels, single = raw_pixels(x, self.framing)
        logits = predict_logits(self, pixels)
        predicted = Prediction(logits.argmax(dim=1), to_probabilities(logits, self.temperature))
        check_finite(predicted)
        return Prediction(*(each[0] for each in predicted)) if single else predicted

    def _step(
        self, batch: Batch, loss_fn: TrainingLoss = CROSS_ENTROPY, targets: Tensor | None = None
    ) -> StepOutput:
        """Compute the loss of a batch, against its labels if there are no other targets."""
        images, labels = batch
        logits = self(images)
        targets = labels if targets is None else targets
        # a rank's share can be empty, and then adds nothing
        loss = loss_fn.mean(logits, targets) if len(labels) else logits.sum()
        return StepOutput(loss, logits, labels)

    def _step_and_loss(self, batch: Batch, targets: Tensor | None) -> tuple[StepOutput, Tensor]:
        """Compute a training step of a batch, and the loss that it lowers."""
        if not self.adversarial_examples:
            output = self._step(batch, self.training_loss, targets)
            return output, output.loss
        images, labels = batch
        images = images.to(self.network.dtype).detach().requires_grad_()
        output = self._step((images, labels), self.training_loss, targets)

        def loss_at(images: Tensor) -> Tensor:
            return self._step((images, labels), self.training_loss, targets).loss

        with batch_statistics_only(self.network):
            examples = self.adversarial_examples.of(images, output.loss, loss_at)
            adversarial_loss = loss_at(examples)
        return output, (output.loss + adversarial_loss) / 2

    def _evaluate(self, batch: Batch, metrics: SplitMetrics) -> dict[str, Tensor]:
        with self._without_autocast():
            loss, logits, labels = self._step(batch)
        if len(labels):
            metrics.update(preds=logits, target=labels, value=loss, weight=len(labels))
        return {"logits": logits}  # for callbacks

    def _without_autocast(self) -> AbstractContextManager[None]:
        """Compute in the dtype of the weights, even if they are trained in mixed precision.

        So `test` gives the figures of the network that `load` and `export` make of a checkpoint.
        """
        return autocast(self.device.type, enabled=False)

    def _sharding(self, batch_idx: int) -> Sharding | None:
        """Tell how a batch was dealt to the ranks, if there are several."""
        loader = self.trainer.train_dataloader if self.trainer.world_size > 1 else None
        return (loader, batch_idx) if isinstance(loader, InMemoryDataLoader) else None

    def _masks(
        self, batch_idx: int, dealt: int, rows: Tensor | None
    ) -> AbstractContextManager[None]:
        """Let dropout draw its masks for the whole batch, alike on any number of ranks.

        Args:
            batch_idx: Number of the batch.
            dealt: Number of this rank's images of it.
            rows: Which images of the whole batch the step is taken on; None for all of the rank's.
        """
        source, loader = self.network.mask_source, self.trainer.train_dataloader
        if source is None or not isinstance(loader, InMemoryDataLoader):
            return nullcontext()
        size = loader.global_batch_size(batch_idx)
        share = slice(loader.rank, size, loader.world_size)
        if len(range(size)[share]) != dealt:  # a hook has made another batch of it
            return nullcontext()
        seed = loader.sampler.seed if hasattr(loader, "sampler") else 0  # no order, no seed
        key = (seed, self.current_epoch, batch_idx + 1)
        return source.seeded(key, self.device, size, share if rows is None else rows)

    def _weigh(
        self, loss: Tensor, count: int, loader: InMemoryDataLoader, batch_idx: int
    ) -> Tensor:
        """Weigh a rank's loss by its share of the batch: DDP takes the mean over the ranks."""
        size = loader.global_batch_size(batch_idx)
        if self.hard_examples is not None:
            size = self.hard_examples.count(size)
        return loss * (count * loader.world_size / size)

    def on_validation_epoch_start(self) -> None:
        # not at the end of the last one, whose inference mode the sums would keep
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()
        self.test_train_set_metrics.reset()

    def on_validation_epoch_end(self) -> None:
        trainer: Any = self.trainer
        self._log_split(self.val_metrics, trainer.val_dataloaders, trainer.num_val_batches[0])

    def on_test_epoch_end(self) -> None:
        trainer: Any = self.trainer
        loaders = trainer.test_dataloaders
        loaders = loaders if isinstance(loaders, list) else [loaders]
        splits = (self.test_metrics, self.test_train_set_metrics)
        for split, loader, batches in zip(splits, loaders, trainer.num_test_batches, strict=False):
            if batches:
                self._log_split(split, loader, batches)

    def _log_split(self, split: SplitMetrics, loader: Any, batches: int) -> None:
        """Log what was measured over the first batches of a split, usually all."""
        means = split.compute_and_reset()
        if self.trainer.sanity_checking:
            return
        if isinstance(loader, InMemoryDataLoader):
            expected = loader.image_count(int(batches))
            total = self.counts[str(split.prefix)][1]
            if total != expected:  # some left out, or some counted on several ranks
                raise RuntimeError(f"{total:,} images were counted instead of {expected:,}")
        fitting = self.trainer.state.fn == "fit"
        # torchmetrics has them over all ranks already; the maximum of equal values changes nothing.
        self.log_dict(
            means, prog_bar=True, logger=False if fitting else None, sync_dist=True, reduce_fx="max"
        )
        # The x-axis is the number of optimiser steps; Lightning's own counts the batches of a run.
        if fitting:
            log_values(self.trainer, means, self.global_step)
        else:  # through Lightning, which returns them; it takes the metric `step` for the x-axis
            self.log("step", float(self.step_count), sync_dist=True, reduce_fx="max")

    @property
    def lr(self) -> float:
        """The learning rate that the optimiser starts with; the schedule starts from it.

        Setting it takes effect when the optimiser is made, in the next `fit`.
        """
        return self.optim.lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self.optim = self.optim.with_lr(lr)
        self.hparams["optimizer"] = self.optim.optimizer

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """For each measured split, by its prefix: number of correct images, and of all images."""
        splits = self.train_metrics.split, self.val_metrics, self.test_metrics
        measured = (*splits, self.test_train_set_metrics)
        return {str(each.prefix): each.counts for each in measured if each.counts is not None}

    @property
    def step_count(self) -> int:
        """Number of optimiser steps that the weights have seen."""
        return self.global_step or self._loaded_step

    def configure_optimizers(self) -> Any:
        self.schedule_lengths = self.optim.schedule_lengths(lambda: run_length(self))
        trained = [each for each in self.parameters() if each.requires_grad]
        return self.optim.build(trained, self.schedule_lengths)

    def configure_callbacks(self) -> list[Callback]:
        """Return the callbacks that log, resume and step; a derived module has to return them too.

        A Trainer that is used again has them already.
        """
        try:
            trainer: Any = self.trainer
        except RuntimeError:  # not attached to one
            trainer = None
        if trainer and trainer.state.fn == "fit":
            # in the one hook that comes before the logger makes a folder
            check_module_not_compiled(self)
            check_clock(trainer)
            check_no_swa(trainer)
            self.teachers.load(self.class_names)
        if trainer and any(isinstance(each, TrainLog) for each in trainer.callbacks):
            return []
        log, threads = TrainLog(), Threads()
        steps = MultiStep(log, threads, FNNLitModule)
        parts = [Resume(), HParams(), PixelScale(), AugmentationEnd(), MatmulPrecision()]
        return [log, threads, *parts, steps]

    def on_fit_start(self) -> None:
        attached = [type(each) for each in self.trainer.callbacks]  # type: ignore[attr-defined]
        if TrainLog not in attached or Resume not in attached:
            raise InputError(
                f"Expected `configure_callbacks` of {type(self).__name__} to return the callbacks "
                "of FNNLitModule too, but got only its own: return "
                "[*super().configure_callbacks(), …]"
            )
        if any(issubclass(each, FINDERS) for each in attached):
            # They may have changed the learning rate or the length of an epoch, and have left a
            # schedule as it was.
            self.trainer.strategy.setup_optimizers(self.trainer)
            self.trainer.callback_metrics.clear()
        weights = getattr(self.trainer.datamodule, "class_weights", None)  # type: ignore[attr-defined]
        self.training_loss.class_weights = None if weights is None else weights.to(self.device)
        self.teachers.start(self.trainer)

    def on_train_start(self) -> None:
        self.temperature = None  # of weights that are about to change
        self.frozen.eval_batch_norm()  # not before: the Trainer warns of such layers
        if self.hparams["batch_norm"]:
            check_batch_norm(self.trainer, self.hard_examples)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # An error here comes before the file is touched: the last good checkpoint stays.
        if not all(parameter.isfinite().all() for parameter in self.parameters()):
            raise DivergenceError(
                f"A weight is no longer a finite number at step {self.global_step}"
            )
        checkpoint["state_dict"] = drop_prefix(checkpoint["state_dict"])
        if self.teachers:
            checkpoint["teachers"] = self.teachers.state_dict()
        if self.temperature is not None:
            checkpoint["temperature"] = self.temperature

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._loaded_step = checkpoint["global_step"]
        checkpoint["state_dict"] = add_prefix(checkpoint["state_dict"], self)
        self.teachers.load_state_dict(checkpoint.get("teachers", {}))
        self.temperature = stored_temperature(checkpoint, "the checkpoint")
