"""The subcommand `configs`: lists the configs that come with the package, or prints one of them."""

import difflib
import re
import sys
from pathlib import Path
from typing import Any

from fnn_lightning.commands.main import COMMAND
from fnn_lightning.errors import InputError

# "Expect: 98.6 % on the test set, in about a minute on 2 cores", at the top of every config
EXPECTED = re.compile(r"^# Expect: (.+?) % on .*\bin (.+) on 2 cores", re.MULTILINE)
NOT_RUN = re.compile(r"^# Not run: ", re.MULTILINE)  # instead, where the data were out of reach


def main(argv: list[str]) -> None:
    """Run the subcommand.

    Args:
        argv: The name of a config, to print it; none to list them all.

    Raises:
        InputError: If there is no such config, or more than one name is given.
    """
    if argv in (["--help"], ["-h"]):
        print(f"usage: {COMMAND} configs [NAME]\n")
        print("Lists the configs that `--config NAME` takes, or prints one of them to change:\n")
        print(f"  {COMMAND} configs mnist > my.yaml")
        raise SystemExit(0)
    if len(argv) > 1:
        raise InputError(f"Expected the name of one config, but got {' '.join(argv)}")
    if argv:
        path = packaged().get(argv[0])
        if path is None:
            raise InputError(
                f"Expected the name of a config, but got {argv[0]!r}; {nearest_config(argv[0])}"
            )
        sys.stdout.write(path.read_text(encoding="utf-8"))
        return
    rows = [("config", "network", "accuracy, %", "time on 2 cores")]
    rows += [(name, *describe(path)) for name, path in packaged().items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        print(line.rstrip())


def folder() -> Path:
    """Return the folder of the configs: in the package if it was installed, else in the clone."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def packaged() -> dict[str, Path]:
    """Return the configs that come with the package, by name."""
    return {path.stem: path for path in sorted(folder().glob("*.yaml"))}


def nearest_config(name: str) -> str:
    """Say which config the user may have meant."""
    near = difflib.get_close_matches(name, packaged(), n=1)
    return f"did you mean {near[0]}?" if near else f"`{COMMAND} configs` lists those with a name"


def find_config(name: str) -> Path:
    """Find what the user gave as a config: a file, or else one that comes with the package.

    Returns:
        The file; where there is neither, the path as given.
    """
    path = Path(name).expanduser()
    return path if path.is_file() else packaged().get(name, path)


def describe(path: Path) -> tuple[str, str, str]:
    """Return the network of a config, and the accuracy and the time that its first lines expect."""
    import yaml

    text = path.read_text(encoding="utf-8")
    model: dict[str, Any] = yaml.safe_load(text).get("model") or {}
    widths = [784, *model.get("hidden_dims", [100]), 10]
    activation = model.get("activation", "relu") if len(widths) > 2 else ""
    expected = EXPECTED.search(text)
    return (
        f"{'–'.join(map(str, widths))} {activation}".strip(),
        *(expected.groups() if expected else ("not run" if NOT_RUN.search(text) else "", "")),
    )  # type: ignore[return-value]
