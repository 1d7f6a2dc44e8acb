"""Parsing a subcommand's options with jsonargparse; errors are one line."""

import difflib
import re
from argparse import ArgumentError
from collections.abc import Iterable

from jsonargparse import ArgumentParser, Namespace

from fnn_lightning.errors import InputError

ANSWERS = {  # what to do instead of an option that does not exist, by its name
    "run_folder": "only `fit` takes it: drop it, from the config too",
    "init_from": "only `fit` takes it: drop it, from the config too",
}


def make_parser(subcommand: str, description: str) -> ArgumentParser:
    """Make the parser of a subcommand that needs no Trainer, for `parse`."""
    return ArgumentParser(
        prog=f"python -m fnn_lightning {subcommand}",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
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
    try:
        return parser.parse_args(argv)
    except ArgumentError as error:
        if stray := re.search(r"unrecognized arguments: (?P<value>[^-\s]\S*)", str(error)):
            raise InputError(
                f"Unexpected argument {stray['value']}: positional arguments come before options"
            ) from None
        raise InputError(explain(str(error), parser.get_defaults().keys())) from None


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
        if option in reserved:
            raise InputError(f"Expected no {option}, which `{subcommand}` sets itself")


def explain(message: str, known: Iterable[str]) -> str:
    """Reword jsonargparse's message as one line, which suggests the nearest option to a wrong one.

    Args:
        message: The message.
        known: The names of all options.

    Example:
        >>> explain("unrecognized arguments: --data.batch_sise=3", ["data.batch_size"])
        'Unknown option data.batch_sise; did you mean data.batch_size?'
    """
    text = " ".join(message.split())
    return explain_unknown_option(text, known) or explain_wrong_value(text)


def explain_unknown_option(text: str, known: Iterable[str]) -> str | None:
    """Reword a message about an unknown option; None if it is about something else."""
    unknown = (
        re.search(r"unrecognized arguments: (?P<name>[^\s=]+)", text)
        or re.search(r"does not accept option '(?P<name>[^']+)'", text)
        or re.search(r'"(?P<group>\w+)":.*Option \'(?P<name>[^\']+)\' is not accepted', text)
    )
    if not unknown:
        return None
    parts = unknown.groupdict()
    name = ".".join(filter(None, (parts.get("group"), parts["name"]))).lstrip("-")
    if answer := ANSWERS.get(name):
        return f"Unknown option {name}: {answer}"
    keys = [key.replace("init_args.", "") for key in known]
    groups = {key.partition(".")[0] for key in keys}
    near = difflib.get_close_matches(
        name, keys if "." in name else [*keys, *groups], n=1, cutoff=0.5
    )
    return f"Unknown option {name}" + (f"; did you mean {near[0]}?" if near else "")


def explain_wrong_value(text: str) -> str:
    r"""Reword a message about an option's value; one of an unknown form stays as it is.

    Example:
        >>> explain_wrong_value('Parser key "seeds": Expected a <class \'int\'>. Got value: many')
        'Expected `seeds` to be int, but got many'
    """
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    wrong = re.search(r'Parser key "(?P<key>[\w.]+)":', text)
    if not wrong:
        return text
    if unloadable := re.search(r"Unable to load config '(.*?)' - ", text):
        return (
            f"Expected `{wrong['key']}` to be a config file, or its settings one by one as "
            f"--{wrong['key']}.NAME, but got {unloadable[1]}"
        )
    if argument := re.search(r"NestedArg\(key='(\w+)', val='?(.*?)'?\)$", text):
        return f"`{wrong['key']}.{argument[1]}` cannot be {argument[2]}"
    if required := re.search(r"class_path '([\w.]+)': (the following [^-]+)", text):
        hint = " (0 is the length of the run)" if "T_max" in required[2] else ""
        return f"{required[1]} as {wrong['key']}: {required[2].strip()}{hint}"
    # a union of types: "Expected a X. Got value: V" for each of them
    expected = [
        choice.removeprefix("a ")
        for choice in re.findall(
            r"Expected (?:an? )?(.+?)(?=\.? Got value| - | Given value|$)", text
        )
    ]
    value = re.search(r"(?:Got|Given) value: (.*)", text)
    if not expected or not value:
        return text
    if wrong["key"] in ("optimizer", "lr_scheduler"):
        expected = [f"a class of torch.optim{'.lr_scheduler' * (wrong['key'] != 'optimizer')}"]
    choices = " or ".join(dict.fromkeys(expected)).replace("NoneType", "null")
    choices = choices.replace("Sequence", "a list")
    return f"Expected `{wrong['key']}` to be {choices}, but got {value[1]}"
