"""The subcommand `completion`: prints a script by which a shell completes the command line.

The script holds all words, so that TAB starts no Python. jsonargparse can make one too, but with
all arguments of every class that an option may name it has 40 MB.
"""

import inspect
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal, get_args

from jsonargparse import capture_parser

from fnn_lightning.commands.configs import packaged
from fnn_lightning.commands.help_formatter import HELP, LINKED, accepted_by, plain_text
from fnn_lightning.commands.hints import CLASSES, classes_of, classes_to_name
from fnn_lightning.commands.main import SUBCOMMANDS, WITH_TRAINER
from fnn_lightning.commands.options import make_parser, parse
from fnn_lightning.data.datasets import NAMES
from fnn_lightning.errors import InputError

Shell = Literal["bash", "zsh"]
TAKE_OPTIONS_OF_FIT = ("seeds", "sweep")
# by the last part of its name, what takes a path
FILES = ("runs", "ckpt_path", "init_from", "images", "output", "space")
FOLDERS = (
    *("run_folder", "report_folder", "folder", "save_inputs"),
    *("data_dir", "mirror", "default_root_dir"),
)
# By the last part of its name, what takes a name or a path. shtab adds `/` to a folder in bash if
# the name of the function has `_file` in it.
NAMES_OR_FILES = {"config": "*.y*ml", "dataset": "*.npz"}
FUNCTIONS = {
    "bash": """_fnn_{option}_files() {{
  compgen -W "{names}" -- "$1"
  compgen -f -X "!{files}" -- "$1"
  compgen -d -- "$1"
}}""",
    "zsh": """_fnn_{option}_files() {{
  _alternative "{option}s:{option}:({names})" "files:file:_files -g '{files}'"
}}""",
}


def main(argv: list[str]) -> None:
    """Print the script.

    Args:
        argv: The name of the shell.

    Raises:
        InputError: If it is another shell, or shtab is not installed.
    """
    parser = make_parser(
        "completion",
        "Prints a script by which the shell completes subcommands, options, configs, choices and "
        "paths after `fnn`. docs/options.md says where to put it.",
    )
    parser.add_argument("shell", type=Shell, metavar="SHELL", help="The shell.")
    shell = parse(parser, argv).shell
    try:
        import shtab
    except ImportError as error:
        raise InputError(
            f"Expected shtab, but it is not installed ({error}): pip install -e '.[completion]'"
        ) from error
    names = {"config": packaged(), "dataset": NAMES}
    functions = [
        FUNCTIONS[shell].format(option=option, names=" ".join(names[option]), files=files)
        for option, files in NAMES_OR_FILES.items()
    ]
    print(shtab.complete(describe_all(), shell, preamble="\n".join(functions)))


def describe_all() -> ArgumentParser:
    """Describe the whole command line in one parser of argparse, as shtab reads it."""
    root = ArgumentParser("fnn")
    root.add_argument("--version", action="version", help="Show the version, and exit.")
    subparsers = root.add_subparsers()
    for name, description in SUBCOMMANDS.items():
        parser = subparsers.add_parser(name, help=description, description=description)
        if name in WITH_TRAINER:
            parser.add_argument("--help_all", action="help", help="List all options, and exit.")
        if name == "configs":
            parser.add_argument("name", nargs="?", choices=list(packaged()), help="Config.")
            continue
        for action in actions_of(name):
            describe(action, parser)
    return root


def actions_of(subcommand: str) -> Iterator[Action]:
    """Yield the arguments of a subcommand but --help.

    argparse has no public way to the arguments of a parser, nor to the parser of a subcommand.
    """
    if subcommand in WITH_TRAINER:
        from fnn_lightning.commands.lightning_cli import FNNCLI

        # --help: without the defaults of the newest run
        captured: Any = capture_parser(FNNCLI, [subcommand, "--help"])
        parser = captured._subparsers._group_actions[0].choices[subcommand]
    else:
        module = import_module(f"fnn_lightning.commands.{subcommand}")
        parser = capture_parser(module.main, [])
    own = {action.dest for action in parser._actions}
    for action in parser._actions:
        # neither links between settings nor a config file for each section
        ours = action.metavar not in (*LINKED, "CONFIG")
        if ours and action.dest != "help" and action.help != SUPPRESS:
            yield action
    if subcommand in TAKE_OPTIONS_OF_FIT:
        refused = {*module.RESERVED, "--find_lr"}
        for action in actions_of("fit"):
            if action.dest not in own and not refused & {*action.option_strings}:
                yield action


def describe(action: Action, parser: ArgumentParser) -> None:
    """Add an argument to a parser, with its choices or the paths that it takes."""
    parent, _, last = action.dest.rpartition(".")
    option = parent if last == "help" else action.dest  # that names a class
    if last == "help" and option not in CLASSES:
        return
    text = HELP.get(action.dest) or plain_text(action.help or "")
    settings: dict[str, Any] = {"help": text.partition(". ")[0].replace("%", "%%")}
    if option in CLASSES:
        settings["choices"] = classes_to_name(option)
    elif choices := action.choices or choices_of(getattr(action, "_typehint", None)):
        settings["choices"] = list(choices)
    if action.nargs == "*" or last == "images":
        settings["nargs"] = "*"
    elif action.nargs == "?" and not action.option_strings:
        settings["nargs"] = "?"
    elif action.dest == "print_config":
        settings |= {"action": "store_true"}
    # `--data.images+`, which appends to a list, is for the few who know of it
    names = [name for name in action.option_strings if not name.endswith("+")]
    added: Any = parser.add_argument(*(names or [action.dest]), **settings)
    complete = completion_of_path(last)
    if complete is not None:
        added.complete = complete
    if action.dest in ("optimizer", "lr_scheduler"):
        for name, takers in arguments_of_classes(action.dest).items():
            parser.add_argument(f"--{action.dest}.{name}", help=f"For {', '.join(takers)}.")


def choices_of(hint: Any) -> list[str]:
    """Return the words that a type accepts, without numbers.

    Example:
        >>> choices_of(bool | int), choices_of(float)
        (['true', 'false'], [])
    """
    numbers = ("int", "float", "list of")
    return [word for word in accepted_by(hint) if not word.startswith(numbers)]


def completion_of_path(name: str) -> Any:
    """Return how shtab completes an option that takes a path; None if it takes none."""
    import shtab

    if name in NAMES_OR_FILES:
        return dict.fromkeys(get_args(Shell), f"_fnn_{name}_files")
    known: Any = shtab.FILE if name in FILES else shtab.DIRECTORY
    return known if name in (*FILES, *FOLDERS) else None


def arguments_of_classes(option: str) -> dict[str, list[str]]:
    """Return the arguments of the classes that an option may name, with the classes that take them.

    Example:
        >>> arguments_of_classes("optimizer")["momentum"]
        ['RMSprop', 'SGD']
    """
    classes = classes_of(option)
    found: dict[str, list[str]] = {}
    for name in classes_to_name(option):
        _, *arguments = inspect.signature(classes[name]).parameters  # the first: what it works on
        for argument in arguments:
            found.setdefault(argument, []).append(name)
    return found
