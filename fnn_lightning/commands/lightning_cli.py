"""LightningCLI with this project's defaults, checkpoints and messages."""

import sys
import warnings
from argparse import SUPPRESS, ArgumentError
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from fnn_lightning import __version__
from fnn_lightning.commands.config_checks import (
    check_barebones,
    check_ranges,
    check_resumes,
    check_strategy,
    check_what_is_monitored,
    plain,
)
from fnn_lightning.commands.datamodules import MNISTOrPictures, MNISTWithTrainSet
from fnn_lightning.commands.fit import Fit, search_lr
from fnn_lightning.commands.given import (
    checkpoint_settings,
    config_is_given,
    find_init,
    find_run,
    gather_images,
    given_options,
    in_parsing_order,
    keep_found_lr,
    names_a_class,
    read_config,
    stored_settings,
    with_config_texts,
)
from fnn_lightning.commands.help_formatter import TITLES, WideHelpFormatter
from fnn_lightning.commands.hints import explain, explain_instance, refuse_single_dash
from fnn_lightning.commands.main import COMMAND, WITH_TRAINER
from fnn_lightning.commands.options import NO_CHECKPOINT, OF_NEWEST_RUN, OWN_OPTIONS
from fnn_lightning.commands.trainer_setup import setup_trainer
from fnn_lightning.datamodule import MNISTDataModule
from fnn_lightning.errors import InputError, one_line
from fnn_lightning.evaluation.report import Report
from fnn_lightning.evaluation.tensorboard import TensorBoardPlots
from fnn_lightning.lit_module import FNNLitModule
from fnn_lightning.runs.checkpoint_io import (
    check_state,
    read_checkpoint,
)
from fnn_lightning.runs.load import copy_layers, load_weights
from fnn_lightning.runs.loggers import SaveConfig
from fnn_lightning.runs.run_folder import CONFIG
from fnn_lightning.runs.settings import MAX_EPOCHS, TRAINER_DEFAULTS
from fnn_lightning.trainer import quiet_lightning
from fnn_lightning.training.checkpointing import RunCheckpoint, RunEarlyStopping
from fnn_lightning.training.console import heading
from fnn_lightning.training.ema import EMA
from fnn_lightning.training.hparams import OF_DATA
from fnn_lightning.training.optim import SGD

DATA_MODULES = {"test": MNISTWithTrainSet, "predict": MNISTOrPictures}


class FNNCLI(LightningCLI):
    """The subcommands fit, validate, test and predict.

    All but `fit` need a checkpoint, which says what the network and the data set are. Options and
    config files win over the checkpoint, and the checkpoint over the defaults.

    Args:
        argv: The command line without the program's name, beginning with a subcommand.
    """

    def __init__(self, argv: list[str]) -> None:
        quiet_lightning()
        refuse_single_dash(argv)
        argv = in_parsing_order(gather_images(argv))
        self.given = given_options(argv)
        self.argv = with_config_texts(argv)
        # not beside a config, whose run would be meant, nor for help, which shows the defaults
        newest = argv[0] != "fit" and not config_is_given(argv) and "--help" not in argv
        self._ckpt_path, self._run = find_run(argv[0], self.given, newest)
        self._init_from = None if self._ckpt_path else find_init(argv[0], self.given)
        loaded = self._ckpt_path or self._init_from
        self.checkpoint = None if loaded is None else read_checkpoint(loaded)
        # An error is raised, and `main` prints it; a shortened option is one.
        strict = {
            "exit_on_error": False,
            "allow_abbrev": False,
            "formatter_class": WideHelpFormatter,
        }
        own = {
            "usage": f"{COMMAND} {argv[0]} [options]",
            "description": WITH_TRAINER[argv[0]].capitalize() + ".",
        }
        super().__init__(
            FNNLitModule,
            DATA_MODULES.get(argv[0], MNISTDataModule),
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={
                argv[0]: {**strict, **own},
                **strict,
                "prog": COMMAND,
                "description": "Trains feed-forward neural nets on MNIST.",
                "version": f"fnn_lightning {__version__}",
            },
            args=self.argv,
            auto_configure_optimizers=False,  # FNNLitModule does it
            load_from_checkpoint_support=False,  # its arguments are of plain types
            save_config_callback=SaveConfig,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # arguments of the Trainer's methods that the methods below set
        fixed = {"model", "datamodule", "weights_only", "verbose", "return_predictions"}
        fixed |= {"ckpt_path"}  # which may be the folder of a run, here
        loaders = {"train_dataloaders", "val_dataloaders", "dataloaders"}
        # Only the subcommand's own: collecting the options of each takes a tenth of a second.
        return {self.argv[0]: fixed | loaders}

    def fit(self, **kwargs: Any) -> None:
        section = self.config["fit"]
        if self._finds_lr and not section.trainer.fast_dev_run:
            # `config.yaml` holds the rate, so that it runs again as it is
            lr = search_lr(self.trainer, self.model, self.datamodule)
            section.optimizer.init_args.lr = lr
        Fit(self.trainer, self.model, self.datamodule, self._ckpt_path, self._run)()

    def validate(self, **kwargs: Any) -> None:
        kwargs["ckpt_path"] = self._ckpt_path
        self.trainer.validate(weights_only=True, verbose=False, **kwargs)

    def test(self, **kwargs: Any) -> None:
        kwargs["ckpt_path"] = self._ckpt_path
        self.trainer.test(weights_only=True, verbose=False, **kwargs)
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        reports = [callback.written for callback in callbacks if isinstance(callback, Report)]
        if not any(reports) and self.trainer.is_global_zero:
            whose = "no run's folder" if self._run is None else "the run has other data"
            why = f"{whose}: name a folder by --report_folder"
            print(f"{heading('report')}none: {'no image was tested' if reports else why}")

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
            help="Seed of everything random: initial weights, order of the batches, augmentation.",
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        self.options = parser
        for name, text in OWN_OPTIONS.get(self.argv[0], {}).items():
            # left out of a saved config unless given: it has to fit the other subcommands too
            default = SUPPRESS if self.argv[0] == "fit" and name != "ckpt_path" else None
            parser.add_argument(f"--{name}", type=str | None, default=default, help=text)
        if self.argv[0] == "fit":
            parser.add_argument(
                "--find_lr",
                type=bool,
                default=SUPPRESS,
                help="Whether to find the learning rate in 100 steps before the run, and use it.",
            )
        parser.add_optimizer_args()
        parser.add_lr_scheduler_args()
        parser.add_class_arguments(RunCheckpoint, "checkpoint")
        parser.add_class_arguments(RunEarlyStopping, "early_stopping")
        parser.add_class_arguments(TensorBoardPlots, "tensorboard")
        parser.add_class_arguments(EMA, "ema")
        parser.set_defaults({"ema.decay": 0.0})  # no EMA
        for name, group in (parser.groups or {}).items():
            group.title = TITLES.get(name, group.title)
        parser.link_arguments("optimizer", "model.optimizer", compute_fn=plain)
        parser.link_arguments("lr_scheduler", "model.lr_scheduler", compute_fn=plain)
        parser.link_arguments("seed_everything", "data.seed")
        for name in OF_DATA:
            parser.link_arguments(
                "data", f"model.{name}", partial(self._of_data, name), apply_on="instantiate"
            )
        if not names_a_class(self.given.get("optimizer")):
            # Not a default beside `--optimizer Adam`, which would inherit the learning rate.
            parser.set_defaults({"optimizer": SGD})
        if self.checkpoint is None:
            return
        defaults = checkpoint_settings(self.checkpoint, self.given)
        if self._init_from and "data.dataset" in self.given:  # of the other run's data
            for name in ("data.framing", "data.class_weights"):
                defaults.pop(name, None)
        resumed = self._run if self.argv[0] == "fit" and self._ckpt_path else None
        if resumed and not config_is_given(self.argv):
            defaults |= stored_settings(resumed, self.given)
        try:
            parser.set_defaults(defaults)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"The settings stored in the checkpoint do not fit fnn_lightning {__version__}: "
                f"{error}"
            ) from error

    def _of_data(self, name: str, datamodule: MNISTDataModule) -> Any:
        """Return what a network takes from its data; a trained one, from those it was trained on.

        Args:
            name: One of `OF_DATA`.
            datamodule: The data of the run.
        """
        if self.checkpoint is None or self._init_from:
            return getattr(datamodule, name)
        return self.checkpoint["hyper_parameters"].get(name, OF_DATA[name])

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        try:
            self.config = parser.parse_args(self.argv)
        except ArgumentError as error:
            known = [*self.options.get_defaults().keys(), *OWN_OPTIONS.get(self.argv[0], {})]
            raise InputError(explain(str(error), known)) from None
        section = self.config[self.config.subcommand]
        length = section.trainer
        if length.max_epochs is None and length.max_steps == -1 and length.max_time is None:
            length.max_epochs = MAX_EPOCHS
        check_ranges(section.trainer)
        check_strategy(section.trainer.strategy)
        if not 0 <= section.seed_everything < 2**32:
            raise InputError(
                f"Expected `seed_everything` to be from 0 to {2**32 - 1}, "
                f"but got {section.seed_everything}"
            )
        # Hidden from LightningCLI, which would let the checkpoint win over the user's options, and
        # from the run's config.yaml, which starts a new run.
        self._finds_lr = bool(section.pop("find_lr", False))
        for name in ("ckpt_path", "run_folder", "init_from"):
            section.pop(name, None)

    def before_instantiate_classes(self) -> None:
        section = self.config[self.subcommand]
        if self.subcommand == "fit":
            check_barebones(section, self.given.get("run_folder"), self._finds_lr)
            check_what_is_monitored(section)
            if self.checkpoint is not None and self._ckpt_path:
                if self._finds_lr:
                    keep_found_lr(section, self.checkpoint, self.given)
                    self._finds_lr = False
                check_state(self.checkpoint, self._ckpt_path)
                stored = read_config(str(self._run / CONFIG)) if self._run else {}
                check_resumes(section, self.checkpoint, self._ckpt_path, stored)
        elif self._ckpt_path is None:
            raise InputError(NO_CHECKPOINT.format(command=self.subcommand))
        if section.get("save_inputs") is not None and section.data.images is None:
            raise InputError(
                "Expected --data.images with --save_inputs, which saves what the net sees of them"
            )
        if self.subcommand != "fit":
            # The states of the callbacks that watched the training are of no use here.
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        # Only `fit` makes a run's folder; without a logger there is none.
        logs = section.trainer.logger is not False and not section.trainer.barebones
        if self.subcommand != "fit" or not logs:
            self.save_config_callback = None

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except InputError:
            raise
        except (ImportError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error.__cause__, InputError):  # from `_of_data`, wrapped by the parser
                raise error.__cause__ from None
            # from the Trainer, its plugins, or layers too large for the memory
            raise InputError(explain_instance(str(error))) from error
        if self.subcommand == "fit":
            self.model.configure_optimizers()  # fails now, before anything is written
            if self._finds_lr:
                self.model.optim.check_uses_lr()
        if self.checkpoint is not None and self._ckpt_path:
            load_weights(self.model, self.checkpoint, self._ckpt_path)
            if self.given.get("ckpt_path") is None and self.subcommand != "fit":
                say = rank_zero_only(print)
                say(OF_NEWEST_RUN.format(path=self._ckpt_path), file=sys.stderr)
        elif self.checkpoint is not None:
            copied = copy_layers(self.model, self.checkpoint, str(self._init_from))
            if self.trainer.is_global_zero:
                print(f"weights    {copied}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        setup_trainer(
            str(self.subcommand),
            self.config_init[self.subcommand],
            self._ckpt_path,
            self.checkpoint if self._ckpt_path else None,
            self._run,
        )
        return super().instantiate_trainer(**kwargs)
