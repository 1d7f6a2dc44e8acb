"""LightningCLI with this project's defaults, checkpoints and messages."""

import json
import logging
import math
import os
import re
import reprlib
import shlex
import signal
import sys
import time
import warnings
from argparse import ArgumentError
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO

from fnn_lightning import __version__
from fnn_lightning.commands.main import COMMAND
from fnn_lightning.commands.options import explain
from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.errors import DivergenceError, InputError, one_line
from fnn_lightning.evaluation.prediction_writer import PredictionWriter
from fnn_lightning.evaluation.report import Report
from fnn_lightning.evaluation.tensorboard import TensorBoardPlots
from fnn_lightning.lit_module import MONITORED, SGD, FNNLitModule
from fnn_lightning.runs.checkpoint_io import AtomicCheckpointIO, check_state, read_checkpoint
from fnn_lightning.runs.loggers import RunLogger, SaveConfig, read_curves, resuming_logger
from fnn_lightning.runs.run_folder import CONFIG, LAST, read_metrics, run_folder, write_metrics
from fnn_lightning.runs.signals import LOST, Stopped, lost_a_rank, requeue
from fnn_lightning.training.checkpointing import Checkpoint, EarlyStopping
from fnn_lightning.training.console import Console, ProgressBar, TerminateOnSigterm

TRAINER_DEFAULTS = {"num_sanity_val_steps": 0, "enable_model_summary": False}
MAX_EPOCHS = 5  # unless something else ends the run
PLATEAU = "lightning.pytorch.cli.ReduceLROnPlateau"
# the texts that settings of the Trainer, the checkpoints and torch.optim's classes can be
WORDS = (
    *("auto", "cpu", "gpu", "cuda", "mps", "tpu", "ddp", "fsdp"),
    *("16-mixed", "bf16-mixed", "16-true", "bf16-true", "32-true", "64-true", "bf16"),
    *("val/acc", "val/loss", "min", "max", "rel", "abs", "norm", "value", "cos", "linear"),
    *("triangular", "triangular2", "exp_range", "cycle", "iterations"),
)


class FNNCLI(LightningCLI):
    """The subcommands fit, validate, test and predict.

    All but `fit` need a checkpoint and take from it what the network and the data set are; what
    is said on the command line or in a config file wins over the checkpoint, and that over the
    defaults.

    Args:
        argv: The command line, without the program's name; a subcommand comes first.
    """

    def __init__(self, argv: list[str]) -> None:
        quiet_lightning()
        self.argv = argv = gather_images(argv)
        self.given = given_options(argv)
        self._ckpt_path: str | None = self.given.get("ckpt_path")
        self._run = self._find_run()
        self.checkpoint = None if self._ckpt_path is None else read_checkpoint(self._ckpt_path)
        # An error is raised, and `main` prints it; a shortened option is one.
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            FNNLitModule,
            MNISTDataModule,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={
                **dict.fromkeys(self.subcommands(), strict),
                **strict,
                "description": "Trains feed-forward neural nets on MNIST.",
                "version": f"fnn_lightning {__version__}",
            },
            args=argv,
            auto_configure_optimizers=False,  # FNNLitModule does it
            load_from_checkpoint_support=False,  # its arguments are of plain types
            save_config_callback=SaveConfig,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # the Trainer's arguments that the methods below set
        fixed = {"model", "datamodule", "weights_only", "verbose", "return_predictions"}
        loaders = {"train_dataloaders", "val_dataloaders", "dataloaders"}
        # to collect the options of one takes a tenth of a second: the others' are left alone
        return {self.argv[0]: fixed | loaders}

    def _find_run(self) -> Path | None:
        """Find the folder to go on in, and the checkpoint to go on from if it is not named."""
        named = self.given.get("run_folder") if self.argv[0] == "fit" else None
        if named is None:
            return run_folder(self._ckpt_path) if self._ckpt_path else None
        if self._ckpt_path is not None:
            raise InputError(
                "Expected either --run_folder, which goes on from its own last.ckpt, "
                "or --ckpt_path, but got both"
            )
        run = Path(str(named)).expanduser().absolute()
        if run.exists() and not run.is_dir():
            raise InputError(f"Expected --run_folder to be a folder, but got {named}: it is a file")
        if (run / LAST).exists():
            self._ckpt_path = str(run / LAST)
        elif (run / CONFIG).exists() and self.given.keys() == {"run_folder"}:
            raise InputError(
                f"Expected a checkpoint in {named}, but it holds none yet: give the settings "
                f"again, as --config {shlex.quote(str(Path(str(named)) / CONFIG))}"
            )
        return run

    def fit(self, **kwargs: Any) -> None:
        trainer, kwargs["ckpt_path"] = self.trainer, self._ckpt_path
        began = time.monotonic()
        try:
            trainer.fit(weights_only=True, **kwargs)
        except Stopped as stop:
            if trainer.is_global_zero:
                requeue(stop)
            raise
        except DivergenceError as error:
            raise DivergenceError(f"{error}; {self._kept()}. Try a lower learning rate") from None
        except InputError:
            raise
        except Exception as error:
            if lost_a_rank(error):
                raise ConnectionError(f"{LOST}; {self._kept()}") from None
            if self.checkpoint and not (self.model.began or isinstance(error, OSError)):
                raise InputError(
                    f"Expected a state to go on from in {self._ckpt_path}, but it cannot be "
                    f"restored: {type(error).__name__}: {error}"
                ) from error
            raise
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt(self._kept()) from None
            if trainer.received_sigterm:  # before training has begun
                raise Stopped(signal.SIGTERM, "") from None
            raise
        if self.checkpoint and not self.model.began:
            self._finish()
        unvalidated = trainer.global_step not in (0, self.model.validated_step)
        if unvalidated and trainer.enable_validation and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            # The result is that of the last step, wherever the last validation was.
            trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        self._seconds = time.monotonic() - began

    def _finish(self) -> None:
        """Do what is left of a run that was interrupted after its last step, if anything is."""
        trainer = self.trainer
        to_go_on = "to go on, raise --trainer.max_epochs, --trainer.max_steps or --trainer.max_time"
        if self._run is None:
            raise InputError(
                f"Expected more than the {trainer.global_step:,} steps that the checkpoint has "
                f"seen already; {to_go_on}"
            )
        logged: set[str] = set()
        if trainer.is_global_zero:
            step = trainer.global_step
            for name, points in read_curves(self._run).items():
                logged |= {name for logged_step, _ in points if logged_step == step}
        logged = trainer.strategy.broadcast(logged)
        self.model.finish(log="train/loss" not in logged)
        insight = self.config_init[self.subcommand].insight
        if insight.enabled:
            insight.save_losses(trainer, self.model)
        if "val/acc" in logged:
            trainer.loggers = []
        if "fit" not in read_metrics(self._run):
            self.model.validated_step = None  # its result was not written
        if trainer.is_global_zero:
            print(f"all {trainer.global_step:,} steps are done already; {to_go_on}")

    def _kept(self) -> str:
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        last = next(
            (each.last_model_path for each in callbacks if isinstance(each, Checkpoint)), ""
        )
        if not last:
            return "no checkpoint was saved yet"
        return f"the last good checkpoint is {os.path.relpath(last)}"

    def validate(self, **kwargs: Any) -> None:
        kwargs["ckpt_path"] = self._ckpt_path
        self.trainer.validate(weights_only=True, verbose=False, **kwargs)

    def test(self, **kwargs: Any) -> None:
        kwargs["ckpt_path"] = self._ckpt_path
        self.trainer.test(weights_only=True, verbose=False, **kwargs)
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        reports = [callback.written for callback in callbacks if isinstance(callback, Report)]
        if not any(reports) and self.trainer.is_global_zero:
            why = "no folder for it: name one by --report_folder"
            print(f"no report: {'no image was tested' if reports else why}")

    def predict(self, **kwargs: Any) -> None:
        kwargs["ckpt_path"] = self._ckpt_path
        self.trainer.predict(weights_only=True, return_predictions=False, **kwargs)
        if self.datamodule.unread and self.trainer.is_global_zero:
            for path, reason in self.datamodule.unread.items():
                print(one_line(f"error: {path}: {reason}"), file=sys.stderr)
            raise SystemExit(1)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything",
            type=int,
            default=0,
            help="Seed of everything random: first weights, order of the batches.",
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        self.options = parser
        if self.argv[0] == "fit":
            parser.add_argument(
                "--run_folder",
                type=str | None,
                default=None,
                help="Folder of the run. If it holds a checkpoint, the run goes on from it.",
            )
        if self.argv[0] == "predict":
            parser.add_argument(
                "--output",
                type=str | None,
                default=None,
                help="File for the predictions, .csv or .json.",
            )
            parser.add_argument(
                "--save_inputs",
                type=str | None,
                default=None,
                help="Folder for the 28×28 pixels that the net sees of each of --data.images.",
            )
        if self.argv[0] == "test":
            parser.add_argument(
                "--report_folder",
                type=str | None,
                default=None,
                help="Folder for report.html, predictions.csv and metrics.json; that of the run, "
                "if the checkpoint lies in one.",
            )
        parser.add_optimizer_args()
        parser.add_lr_scheduler_args()
        parser.add_class_arguments(Checkpoint, "checkpoint")
        parser.add_class_arguments(EarlyStopping, "early_stopping")
        parser.add_class_arguments(TensorBoardPlots, "insight")
        parser.link_arguments("optimizer", "model.optimizer", compute_fn=plain)
        parser.link_arguments("lr_scheduler", "model.lr_scheduler", compute_fn=plain)
        parser.link_arguments("seed_everything", "data.seed")
        if not names_a_class(self.given.get("optimizer")):
            # Not a default beside `--optimizer Adam`, which would inherit the learning rate.
            parser.set_defaults({"optimizer": SGD})
        if self.checkpoint is not None:
            self._take_defaults_from_checkpoint(parser)

    def _take_defaults_from_checkpoint(self, parser: LightningArgumentParser) -> None:
        assert self.checkpoint is not None
        model = dict(self.checkpoint["hyper_parameters"])
        data = dict(self.checkpoint.get("datamodule_hyper_parameters", {}))
        defaults = {"seed_everything": data.pop("seed", 0)}
        for name in ("optimizer", "lr_scheduler"):
            config = model.pop(name, None)
            if config and not names_a_class(self.given.get(name)):
                check_is_data(config)
                defaults[name] = config
        defaults |= {f"model.{name}": value for name, value in model.items()}
        defaults |= {f"data.{name}": value for name, value in data.items()}
        gave_config = any(word.partition("=")[0] in ("-c", "--config") for word in self.argv)
        if self.argv[0] == "fit" and self._run and not gave_config:
            defaults |= run_settings(self._run)
        try:
            parser.set_defaults(defaults)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"The settings stored in the checkpoint do not fit fnn_lightning {__version__}: "
                f"{error}"
            ) from error

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        try:
            self.config = parser.parse_args(self.argv)
        except ArgumentError as error:
            raise InputError(explain(str(error), self.options.get_defaults().keys())) from None
        section = self.config[self.config.subcommand]
        check_ranges(section.trainer)
        if not 0 <= section.seed_everything < 2**32:
            raise InputError(
                f"Expected `seed_everything` to be from 0 to {2**32 - 1}, "
                f"but got {section.seed_everything}"
            )
        # Out of the sight of LightningCLI, which would let what the checkpoint stores win over what
        # the user says, and not in the run's config.yaml, which is to run again from the start.
        section.ckpt_path = None
        if "run_folder" in section:
            section.run_folder = None

    def before_instantiate_classes(self) -> None:
        section = self.config[self.subcommand]
        if self.subcommand == "fit":
            check_what_is_monitored(section)
            if self.checkpoint is not None:
                check_state(self.checkpoint, str(self._ckpt_path))
                check_resumes(section, self.checkpoint)
        elif self._ckpt_path is None:
            raise InputError(
                f"Expected --ckpt_path with a checkpoint of a trained network, but got none: "
                f"{COMMAND} {self.subcommand} --ckpt_path RUN_FOLDER/checkpoints/last.ckpt"
            )
        if section.get("save_inputs") is not None and section.data.images is None:
            raise InputError(
                "--save_inputs keeps what the net sees of pictures: name --data.images"
            )
        if self.subcommand != "fit":
            # The state of what watched the training is of no use here.
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        # Only `fit` makes a run's folder; without a logger there is none.
        if self.subcommand != "fit" or section.trainer.logger is False:
            self.save_config_callback = None

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except InputError:
            raise
        except (ImportError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            # from the Trainer, its plugins, or layers too large for the memory
            raise InputError(str(error).partition("\n")[0]) from error
        if self.subcommand == "fit":
            self.model.configure_optimizers()  # fails now, before anything is written
        if self.checkpoint is not None:
            try:
                self.model.load_state_dict(self.checkpoint["state_dict"])
            except (AttributeError, RuntimeError, TypeError) as error:
                raise InputError(
                    f"The weights in {self._ckpt_path} do not fit the network: {error}"
                ) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        section = self.config_init[self.subcommand]
        config = section.trainer
        callbacks: list[Callback] = [TerminateOnSigterm(), Console()]
        fitting = self.subcommand == "fit"
        if config.enable_progress_bar is None:
            # in a file, and between the lines of CSV, a progress bar is noise
            terminal = sys.stdout is not None and sys.stdout.isatty()
            config.enable_progress_bar = terminal and self.subcommand != "predict"
        if config.enable_progress_bar:
            callbacks.append(ProgressBar())
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter(section.output, section.save_inputs))
        if self.subcommand == "test" and (report := self._report(section)):
            callbacks.append(report)
        if config.max_epochs is None and config.max_steps == -1 and config.max_time is None:
            config.max_epochs = MAX_EPOCHS
        if config.logger in (None, True):
            config.logger = self._logger(config.default_root_dir)
        # unless the user has a way of his own to write checkpoints
        plugins = config.plugins or []
        given_plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(each, CheckpointIO) for each in given_plugins):
            config.plugins = [AtomicCheckpointIO(), *given_plugins]
        if section.insight.enabled:
            callbacks.append(section.insight)
        if fitting and section.early_stopping.enabled:
            callbacks.append(section.early_stopping)
        if fitting:
            # it also obeys signals to stop, whether it writes or not
            section.checkpoint.writes = bool(
                config.enable_checkpointing is not False and config.logger
            )
            callbacks.append(section.checkpoint)
        config.enable_checkpointing = fitting
        given = config.callbacks or []
        config.callbacks = [*(given if isinstance(given, list) else [given]), *callbacks]
        return super().instantiate_trainer(**kwargs)

    def _logger(self, root_dir: str | None) -> TensorBoardLogger | Literal[False]:
        """Log to a new folder in a new `fit`, to the run's own otherwise; `predict` does not."""
        if self.subcommand == "fit":
            step = self.checkpoint["global_step"] if self.checkpoint else 0
            return resuming_logger(self._run, step) if self._run else RunLogger(root_dir or ".")
        if self._run is None or self.subcommand == "predict":
            return False
        return resuming_logger(self._run, None)

    def _report(self, section: Namespace) -> Report | None:
        """Report into the folder named, or that of the run, unless the run is not to be touched."""
        folder = section.report_folder
        if folder is None and self._run and section.trainer.logger is not False:
            folder = self._run
        if folder is None or section.trainer.fast_dev_run:
            return None
        path = Path(folder).expanduser()
        if path.exists() and not path.is_dir():
            raise InputError(
                f"Expected --report_folder to be a folder, but got {folder}: it is a file"
            )
        assert self.checkpoint is not None
        return Report(path, self._run, Path(str(self._ckpt_path)), self.checkpoint)

    def after_fit(self) -> None:
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        keepers = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
        if not self.trainer.is_global_zero or not keepers:
            return
        keeper = keepers[0]
        name, path = "val/acc", keeper.last_model_path
        value: Any = self.trainer.callback_metrics.get(name)
        if keeper.best_model_path:
            name, value, path = f"best {keeper.monitor}", keeper.best_score, keeper.best_model_path
        if not path:  # fast_dev_run
            return
        run = Path(path).absolute().parents[1]  # RUN/checkpoints/FILE
        if self.model.began or "fit" not in read_metrics(run):
            write_metrics(run, "fit", self._figures(keeper, Path(path).absolute().relative_to(run)))
        path, runs = os.path.relpath(path), os.path.relpath(run.parent)
        figure = ""
        if value is not None:
            figure = (
                f"{name} {100 * value:.2f} %, " if name.endswith("acc") else f"{name} {value:.4f}, "
            )
        print(f"result     {figure}{self.trainer.global_step:,} steps in all")
        print(f"checkpoint {path}")
        print(f"test it    {COMMAND} test --ckpt_path {shlex.quote(path)}")
        print(f"look at it tensorboard --logdir {shlex.quote(runs)}")

    def _figures(self, keeper: Checkpoint, checkpoint: Path) -> dict[str, Any]:
        """Collect what a finished run came to."""
        metrics = self.trainer.callback_metrics
        best = {"monitor": keeper.monitor, "score": keeper.best_score}
        return {
            "step": self.trainer.global_step,
            **{name: finite(metrics[name]) for name in MONITORED if name in metrics},
            "best": best if keeper.best_model_path else None,
            "checkpoint": checkpoint.as_posix(),
            "seconds": round(self._seconds, 1),
        }


def finite(value: Any) -> float | None:
    """Return a number as JSON can hold it."""
    return float(value) if math.isfinite(value) else None


def gather_images(argv: list[str]) -> list[str]:
    """Write the files after --data.images as one list, which is all that the parser takes."""
    option = "--data.images"
    found: list[str] = []
    rest: list[str] = []
    after_it = False
    for word in argv:
        given = word.removeprefix(f"{option}=")
        if word == option:
            after_it = True
        elif given != word and not given.startswith("[") and given != "null":
            found.append(given)
        elif after_it and not word.startswith("-"):
            found.append(word)
        else:
            after_it = False
            rest.append(word)
    named = option in argv or found
    # a character beyond YAML's escapes stays as it is
    return [*rest, f"{option}={json.dumps(found, ensure_ascii=False)}"] if named else argv


def check_what_is_monitored(config: Namespace) -> None:
    """Refuse to monitor what is not measured, or what nothing may be selected by."""
    scheduler = (config.lr_scheduler or {}).get("init_args") or {}
    monitors = {
        "--checkpoint.monitor": config.checkpoint.monitor,
        "--early_stopping.patience": config.early_stopping.patience is not None
        and config.early_stopping.monitor,
        "--lr_scheduler.monitor": scheduler.get("monitor"),
    }
    for option, metric in monitors.items():
        if metric and config.data.val_size == 0:
            raise InputError(
                f"{option} would select by {metric}, but with val_size 0 validation watches the "
                "test set, by which nothing may be selected: give --data.val_size 5000, or drop "
                f"{option}"
            )
        if metric and config.trainer.limit_val_batches == 0:
            raise InputError(f"{option} needs validation, which limit_val_batches 0 switches off")
    writes = config.trainer.enable_checkpointing is not False and config.trainer.logger is not False
    if config.checkpoint.monitor and not writes:
        raise InputError("--checkpoint.monitor needs checkpoints, which are switched off")


def check_ranges(trainer: Namespace) -> None:
    """Check the numbers that the Trainer itself takes as they come."""
    at_least = {
        "accumulate_grad_batches": 1,
        "check_val_every_n_epoch": 1,
        "log_every_n_steps": 0,
        "gradient_clip_val": 0,
    }
    for name, least in at_least.items():
        value = trainer[name]
        if value is not None and value < least:
            raise InputError(f"Expected `trainer.{name}` to be {least} or more, but got {value}")
    interval = trainer.val_check_interval
    if isinstance(interval, int | float) and interval <= 0:
        raise InputError(
            f"Expected `trainer.val_check_interval` to be positive, but got {interval}"
        )


def check_resumes(config: Namespace, checkpoint: dict[str, Any]) -> None:
    """Refuse another optimiser or schedule than the one whose state the checkpoint brings."""
    for name in ("optimizer", "lr_scheduler"):
        stored, now = checkpoint["hyper_parameters"].get(name), plain(config[name])
        if stored:
            check_is_data(stored)
        if stored != now:
            raise InputError(
                f"Expected `{name}` to be that of the checkpoint, whose state comes with it, "
                f"{stored}, but got {now}"
            )
    for name in ("averaging", "warmup"):
        stored, now = checkpoint["hyper_parameters"].get(name, 0), config.model[name]
        if stored != now:
            raise InputError(
                f"Expected `model.{name}` to be that of the checkpoint, whose state comes with it, "
                f"{stored}, but got {now}"
            )


def check_is_data(config: Any) -> None:
    """Refuse a stored class or argument by which the parser would import code."""
    path = str(config.get("class_path")) if isinstance(config, dict) else ""
    name = path.rpartition(".")[2]
    known = (f"torch.optim.{name}", f"torch.optim.lr_scheduler.{name}", PLATEAU)
    arguments = (config.get("init_args") or {}) if isinstance(config, dict) else None
    if (
        path not in known
        or not set(config) <= {"class_path", "init_args"}
        or not isinstance(arguments, dict)
        or not all(map(is_data, arguments.values()))
    ):
        raise InputError(f"The checkpoint names code, which is not run: {config!r:.200}")


def is_data(value: Any) -> bool:
    """Tell whether a stored setting is a number or one of the few words that settings can be.

    The parser takes any other text for YAML, the name of a class or that of a file.
    """
    if isinstance(value, list | tuple):
        return all(part is None or isinstance(part, int | float) for part in value)
    if isinstance(value, str):
        return value in WORDS or re.fullmatch(r"[0-9:,.]+", value) is not None
    return value is None or isinstance(value, bool | int | float)


def run_settings(run: Path) -> dict[str, Any]:
    """Read how a run was trained, as far as its checkpoints do not say so themselves.

    Raises:
        InputError: If the run's config.yaml names code, by which a folder from a stranger could
            run it; given as --config, it may.
    """
    config = read_config(str(run / CONFIG))
    settings = {}
    for section in ("trainer", "checkpoint", "early_stopping", "insight"):
        for name, value in (config.get(section) or {}).items():
            if name == "default_root_dir":
                continue  # the run has its folder
            if not is_data(value):
                raise InputError(
                    f"{run / CONFIG} may name code, as {section}.{name}, which is not run for a "
                    f"checkpoint: add --config {shlex.quote(str(run / CONFIG))} if you trust it"
                )
            settings[f"{section}.{name}"] = value
    return settings


def quiet_lightning() -> None:
    """Silence what Lightning says on every run and does not concern the user."""
    # hardware found, seeds set, advertisements: Console prints what matters
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.distributed").setLevel(logging.WARNING)
    # FNNLitModule's logging interval may span epochs
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than")
    # Lightning 2.6.6 calls what torch 2.14 has deprecated
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    # none of the pictures could be read, which `predict` says in its own words
    warnings.filterwarnings(
        "ignore", message="Total length of `InMemoryDataLoader` across ranks is zero"
    )


def given_options(argv: list[str]) -> dict[str, Any]:
    """Collect the top-level options that the command line and the config files they name give.

    The parser mixes what was said with defaults; this tells them apart. The last value wins.

    Raises:
        InputError: If a config file does not exist or is not YAML.
    """
    given: dict[str, Any] = {}
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        option, equals, rest = word.partition("=")
        value = rest if equals else following
        if option in ("-c", "--config"):
            # null is how a saved config says that something was not given
            given |= {key: value for key, value in read_config(value).items() if value is not None}
        elif option.startswith("--"):
            given[option[2:].removesuffix(".class_path")] = value
    return given


def read_config(path: str) -> dict[str, Any]:
    """Read a config file: a YAML mapping."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"Expected --config to be a YAML file, but got {path!r}: {error.strerror}"
        ) from error
    except (RecursionError, ValueError, yaml.YAMLError) as error:  # a date like 2001-99-99
        raise InputError(f"Expected {path} to be a YAML file, but it is not: {error}") from error
    if not isinstance(config, dict):
        raise InputError(
            f"Expected {path} to hold settings, `name: value`, but got {reprlib.repr(config):.100}"
        )
    for section in (
        *("trainer", "model", "data"),
        *("checkpoint", "early_stopping", "insight", "optimizer"),
    ):
        accepted = dict | str if section == "optimizer" else dict
        if section in config and not isinstance(config[section], accepted):
            raise InputError(
                f"Expected `{section}` in {path} to hold settings, `name: value`, "
                f"but got {reprlib.repr(config[section]):.100}"
            )
    # linked: the parser would ignore them here
    linked = {"model": ("optimizer", "lr_scheduler"), "data": ("seed",)}
    for section, names in linked.items():
        for name in names:
            if name in config.get(section, {}):
                instead = "seed_everything" if name == "seed" else name
                raise InputError(
                    f"Expected `{instead}` at the top level of {path}, but got {section}.{name}"
                )
    return config


def names_a_class(value: Any) -> bool:
    """Tell whether what is given for an optimiser or a scheduler says which class it is."""
    return "class_path" in value if isinstance(value, dict) else value is not None


def plain(config: Any) -> dict[str, Any] | None:
    """Turn jsonargparse's namespace of a class and its arguments into a plain dictionary."""
    return None if config is None else config.as_dict()
