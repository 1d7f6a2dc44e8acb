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
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from fnn_lightning.commands import FNNCLI

    try:
        FNNCLI(words)
    except Exception as error:
        meant_for_the_user = (InputError, DivergenceError, MisconfigurationException, OSError)
        module = raised_in(error)
        if not (
            isinstance(error, meant_for_the_user)
            # Settings that do not go together: Lightning reports some as a plain ValueError, and
            # an optimiser or a schedule finds some only when it steps.
            or (isinstance(error, ValueError) and module.startswith("lightning."))
            or module.startswith("torch.optim.")
        ):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, DivergenceError) else 2) from None


def raised_in(error: BaseException) -> str:
    """Return the name of the module that raised an error."""
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    return str(traceback.tb_frame.f_globals["__name__"]) if traceback else ""
