"""Options of our own, and the parsers of the subcommands that need no Trainer."""

import sys
from argparse import ArgumentError
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from fnn_lightning.commands.help_formatter import HelpFormatter
from fnn_lightning.commands.hints import explain, refuse_single_dash
from fnn_lightning.commands.main import COMMAND
from fnn_lightning.errors import InputError

if TYPE_CHECKING:
    from fnn_lightning.runs.load import TrainedNetwork

NO_CHECKPOINT = (
    "Expected --ckpt_path with a checkpoint of a trained network, or a run in lightning_logs, but "
    f"got neither in this folder: train first, {COMMAND} fit --config mnist, or name a run, "
    f"{COMMAND} {{command}} --ckpt_path RUN_FOLDER"
)
OF_NEWEST_RUN = "checkpoint {path}, of the newest run"
CKPT_PATH = "Checkpoint, or folder of a run; by default the newest run in lightning_logs."
# of the subcommands with a Trainer
OWN_OPTIONS = {
    "fit": {
        "run_folder": "Folder of the run. If it holds a checkpoint, the run resumes from it.",
        "init_from": "Checkpoint or folder of a run. The new run starts with its weights, layer by "
        "layer as far as the shapes fit, and with its settings where no others are given.",
        "ckpt_path": "Checkpoint, or folder of a run, to resume.",
    },
    "validate": {"ckpt_path": CKPT_PATH},
    "test": {
        "ckpt_path": CKPT_PATH,
        "report_folder": "Folder for report.html, predictions.csv and metrics.json. By default the "
        "folder of the run that the checkpoint is in.",
    },
    "predict": {
        "ckpt_path": CKPT_PATH,
        "output": "File for the predictions, .csv or .json.",
        "save_inputs": "Folder for the 28×28 pixels that the net sees of each of --data.images.",
    },
}


def make_parser(subcommand: str, description: str) -> ArgumentParser:
    """Make the parser of a subcommand that needs no Trainer, for `parse`."""
    return ArgumentParser(
        prog=f"{COMMAND} {subcommand}",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )


def parse(parser: ArgumentParser, argv: list[str]) -> Namespace:
    """Parse the command line after the subcommand.

    Raises:
        InputError: If the parser does not accept it.

    Example:
        >>> parser = make_parser("seeds", "Trains with several seeds.")
        >>> _ = parser.add_argument("seeds", type=int)
        >>> parse(parser, ["3"]).seeds
        3
    """
    refuse_single_dash(argv)
    try:
        return parser.parse_args(argv)
    except ArgumentError as error:
        raise InputError(explain(str(error), parser.get_defaults().keys())) from None


def add_ckpt_path(parser: ArgumentParser) -> None:
    """Add the option that names the trained network."""
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        default=None,
        help=CKPT_PATH,
    )


def load_given(ckpt_path: str | None, command: str) -> "TrainedNetwork":
    """Load the network that the user named, or that of the newest run, and then say so.

    Args:
        ckpt_path: What `--ckpt_path` gave.
        command: The subcommand, for the message.

    Raises:
        InputError: If there is none, or it cannot be used.
    """
    from fnn_lightning.runs.load import load_trained, newest_checkpoint  # slow

    if ckpt_path is not None:
        return load_trained(ckpt_path)
    newest = newest_checkpoint()
    if newest is None:
        raise InputError(NO_CHECKPOINT.format(command=command))
    print(OF_NEWEST_RUN.format(path=newest), file=sys.stderr)  # stdout may be a table
    return load_trained(newest)


def split_argv(parser: ArgumentParser, argv: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line into a subcommand's own part and the part it passes on to `fit`.

    Args:
        parser: The subcommand's parser.
        argv: The command line after the subcommand.

    Returns:
        The subcommand's own arguments, with everything before the first option; those of `fit`.

    Example:
        >>> parser = make_parser("seeds", "Trains with several seeds.")
        >>> _ = parser.add_argument("--folder")
        >>> split_argv(parser, ["3", "--optimizer.lr", "0.1", "--folder", "a"])
        (['3', '--folder', 'a'], ['--optimizer.lr', '0.1'])
    """
    known = parser.get_defaults().keys()
    own_options = {"-h", "--help", *(f"--{key}" for key in known)}
    own_argv: list[str] = []
    fit_argv: list[str] = []
    target = own_argv
    for argument in argv:
        if argument.startswith("--") or argument in ("-h", "-c"):
            target = own_argv if argument.partition("=")[0] in own_options else fit_argv
        target.append(argument)
    return own_argv, fit_argv


def refuse_options(argv: list[str], subcommand: str, reserved: Iterable[str]) -> None:
    """Refuse the options of `fit` that a subcommand sets itself.

    Args:
        argv: The arguments for `fit`.
        subcommand: Name of the subcommand.
        reserved: The options that it sets.

    Raises:
        InputError: If one of them is given.
    """
    for argument in argv:
        option = argument.partition("=")[0]
        if option == "--find_lr":
            raise InputError(
                "Expected no --find_lr, by which each run would get a rate of its own: find one "
                "with `fit`, and give it as --optimizer.lr"
            )
        if option in reserved:
            raise InputError(f"Expected no {option}, which `{subcommand}` sets itself")
