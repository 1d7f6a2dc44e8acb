"""The entry of the command line: starts fast, and turns errors into one line."""

import sys

from fnn_lightning import __version__
from fnn_lightning.errors import DivergenceError, InputError


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: What would follow `python -m fnn_lightning`; taken from there if not given.

    Raises:
        SystemExit: With status 2 and one line on stderr if what the user gave cannot be used,
            with status 1 if training diverged.
    """
    words = sys.argv[1:] if args is None else args
    if words == ["--version"]:
        print(f"fnn_lightning {__version__}")
        return

    # Not at the top: importing torch and Lightning takes seconds, and --version needs neither.
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from fnn_lightning.commands import FNNCLI

    try:
        FNNCLI(words)
    except (InputError, DivergenceError, MisconfigurationException, OSError) as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, DivergenceError) else 2) from None
