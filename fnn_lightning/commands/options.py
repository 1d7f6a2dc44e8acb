"""The options of a subcommand: parsed by jsonargparse, refused in one line."""

import difflib
import os
import re
from argparse import ArgumentError
from collections.abc import Iterable
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fnn_lightning.errors import InputError


def make_parser(subcommand: str, description: str) -> ArgumentParser:
    """Make the parser of a subcommand that does without the Trainer, for `parse`."""
    return ArgumentParser(
        prog=f"python -m fnn_lightning {subcommand}",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
    )


def parse(parser: ArgumentParser, argv: list[str]) -> Namespace:
    """Parse what follows the subcommand.

    Raises:
        InputError: If it does not fit the parser.
    """
    try:
        return parser.parse_args(argv)
    except ArgumentError as error:
        if stray := re.search(r"unrecognized arguments: (?P<word>[^-\s]\S*)", str(error)):
            raise InputError(
                f"Expected an option, but got {stray['word']}; what is none goes before all options"
            ) from None
        raise InputError(explain(str(error), parser.get_defaults().keys())) from None


def split(parser: ArgumentParser, argv: list[str]) -> tuple[list[str], list[str]]:
    """Tell a subcommand's own options from those that it hands on to another.

    Args:
        parser: That of the subcommand.
        argv: What follows the subcommand.

    Returns:
        The argv for `parse`, which are those before the first option, too, and the others.
    """
    known = parser.get_defaults().keys()
    names = {"-h", "--help", *(f"--{key}" for key in known)}
    own: list[str] = []
    others: list[str] = []
    target = own
    for word in argv:
        if word.startswith("--") or word in ("-h", "-c"):
            target = own if word.partition("=")[0] in names else others
        target.append(word)
    return own, others


def refuse(argv: list[str], subcommand: str, names: Iterable[str]) -> None:
    """Refuse options that a subcommand gives to `fit` itself.

    Raises:
        InputError: If the argv hold one of them.
    """
    for word in argv:
        option = word.partition("=")[0]
        if option in names:
            raise InputError(f"Expected no {option}, which `{subcommand}` itself gives to `fit`")


def output_file(given: str, suffixes: tuple[str, ...]) -> Path:
    """Check, before any work, that a file can be written.

    Args:
        given: What `--output` names.
        suffixes: Those that it may have.

    Raises:
        InputError: If it has another suffix, is a folder, or is to lie in what is not one.
    """
    path = Path(given).expanduser()
    if path.suffix.lower() not in suffixes:
        raise InputError(f"Expected --output to end in {' or '.join(suffixes)}, but got {given!r}")
    if path.is_dir():
        raise InputError(f"Expected --output to be a file, but got {given}: it is a folder")
    check_writable(path, "--output")
    return path


def check_writable(path: Path, option: str) -> None:
    """Check that a file or a folder can be made.

    Raises:
        InputError: If it cannot.
    """
    above = next(each for each in path.resolve().parents if each.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"Expected {option} in a folder that can be written, but got {path}")


def explain(message: str, known: Iterable[str]) -> str:
    """Turn the parser's message into one line, with the nearest option if one is unknown.

    Args:
        message: What jsonargparse says.
        known: The names of all options.
    """
    text = " ".join(message.split())
    unknown = (
        re.search(r"unrecognized arguments: (?P<name>[^\s=]+)", text)
        or re.search(r"does not accept option '(?P<name>[^']+)'", text)
        or re.search(r'"(?P<group>\w+)":.*Option \'(?P<name>[^\']+)\' is not accepted', text)
    )
    if unknown:
        parts = unknown.groupdict()
        name = ".".join(filter(None, (parts.get("group"), parts["name"]))).lstrip("-")
        keys = [key.replace("init_args.", "") for key in known]
        groups = {key.partition(".")[0] for key in keys}
        near = difflib.get_close_matches(
            name, keys if "." in name else [*keys, *groups], n=1, cutoff=0.5
        )
        return f"Unknown option {name}" + (f"; did you mean {near[0]}?" if near else "")
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    wrong = re.search(r'Parser key "(?P<key>[\w.]+)":', text)
    if not wrong:
        return text
    if argument := re.search(r"NestedArg\(key='(\w+)', val='?(.*?)'?\)$", text):
        return f"`{wrong['key']}.{argument[1]}` cannot be {argument[2]}"
    if required := re.search(r"class_path '([\w.]+)': (the following [^-]+)", text):
        hint = " (0 is the length of the run)" if "T_max" in required[2] else ""
        return f"{required[1]} as {wrong['key']}: {required[2].strip()}{hint}"
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
