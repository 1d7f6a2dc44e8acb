"""The entry of the command line: starts fast, and turns errors into one line."""

import difflib
import io
import os
import signal
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from fnn_lightning import __version__
from fnn_lightning.errors import DivergenceError, InputError, one_line
from fnn_lightning.runs.progress import says
from fnn_lightning.runs.signals import LOST, Stopped, destroy_process_group, lost_a_rank

WITH_TRAINER = {
    "fit": "train a network, or resume a run",
    "validate": "measure a checkpoint on the validation images",
    "test": "measure a checkpoint on the test images, and write a report",
    "predict": "predict the classes of the test set or of your own pictures",
}
WITHOUT_TRAINER = {  # each run by `main` of the module of that name
    "compare": "compare runs: settings, accuracies, significance",
    "seeds": "train with several seeds: mean, standard deviation, interval",
    "runs": "list runs, the best first: recipes, accuracies, times",
    "sweep": "search for the settings with the best validation accuracy",
    "export": "write an ONNX or .pt2 file, and compare it with its checkpoint",
    "demo": "draw in the browser, and see what the net predicts",
    "configs": "list the configs that come with it, or print one",
    "completion": "print a script for bash or zsh that completes the command line",
}
SUBCOMMANDS = WITH_TRAINER | WITHOUT_TRAINER
# as the user has called it: by the console script, or as a module
COMMAND = "fnn" if Path(sys.argv[0]).stem == "fnn" else "python -m fnn_lightning"
CALLBACKS = "lightning.pytorch.callbacks."


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: What would follow `fnn` or `python -m fnn_lightning`; taken from there if not given.

    Raises:
        SystemExit: With one line on stderr, and status 2 if what the user gave cannot be used, 1
            if training diverged, 130 if it was interrupted.
    """
    argv = sys.argv[1:] if args is None else args
    if "" not in sys.path and not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, "")  # classes of the user's own are found by `fnn` as by `python -m`
    accept_any_character()
    if argv == ["--version"]:
        print(f"fnn_lightning {__version__}")
        return

    if argv in ([], ["--help"], ["-h"], ["--help_all"]):
        print(f"usage: {COMMAND} SUBCOMMAND [--help] [options]\n")
        print("Trains feed-forward neural nets on MNIST.\n")
        for name, description in SUBCOMMANDS.items():
            print(f"  {name:<10} {description}")
        return

    try:
        check_subcommand(argv)
        if argv[0] in WITH_TRAINER and {"-h", "--help"} & set(argv):
            print(import_module("fnn_lightning.commands.help").help_text(argv[0]))
            raise SystemExit(0)
        argv = ["--help" if word == "--help_all" else word for word in argv]
        # Not at the top: importing torch and Lightning takes seconds, and --version needs neither.
        module = argv[0] if argv[0] in WITHOUT_TRAINER else "lightning_cli"
        with says("loading"):
            command = import_module(f"fnn_lightning.commands.{module}")
        warnings.formatwarning = warning_text  # not before: Lightning has its own
        if argv[0] in WITHOUT_TRAINER:
            command.main(argv[1:])
            return
        command.FNNCLI(argv)
        destroy_process_group()
    except Stopped as stop:
        if not rank():
            saved = "nothing was saved"
            if stop.path:
                from fnn_lightning.commands.given import resume_options  # takes Lightning

                saved = f"saved; resume with: {COMMAND} fit {resume_options(stop.path)}"
            print(f"stopped by {signal.Signals(stop.signum).name}, {saved}", file=sys.stderr)
        # a status other than 0 would make Lightning kill the first process before it says so
        raise SystemExit(0 if rank() else 128 + stop.signum) from None
    except KeyboardInterrupt as stop:
        print(f"interrupted; {stop}" if str(stop) else "interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except SystemExit as stop:
        # which the Trainer handles without a word
        if isinstance(stop.__context__, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        raise
    except BrokenPipeError:
        # The reader of the output, such as `head`, has closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        if isinstance(error, UnicodeEncodeError):  # a path
            error = InputError(
                f"Expected text that can be written as {error.encoding}, but got "
                f"{error.object!r:.100}: set LC_ALL=C.UTF-8"
            )
        module = raised_in(error)
        if not (
            isinstance(error, InputError | DivergenceError | OSError)
            or type(error).__name__ == "MisconfigurationException"  # Lightning's: slow to import
            # Settings that do not go together: Lightning reports some as a plain ValueError, and
            # an optimiser or a schedule finds some only when it steps.
            or (isinstance(error, ValueError | ImportError) and module.startswith("lightning."))
            # a callback that lacks something, such as the metric that it monitors
            or (isinstance(error, RuntimeError) and module.startswith(CALLBACKS))
            or module.startswith("torch.optim.")
            # a path that begins with ~nobody
            or (isinstance(error, RuntimeError) and module.startswith("pathlib"))
        ):
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                error = InputError(
                    "Expected a C++ compiler that torch.compile can use, but got "
                    f"{str(error).partition(chr(10))[0]}: install one, or drop --model.compile"
                )
            elif not lost_a_rank(error):
                raise
            else:
                error = ConnectionError(LOST)
        where = f" on rank {rank()}" if rank() else ""
        print(f"error{where}: {one_line(str(error))}", file=sys.stderr)
        wrong_input = not isinstance(error, DivergenceError | ConnectionError)
        raise SystemExit(2 if wrong_input else 1) from None


def accept_any_character() -> None:
    """Print `?` for a character that the encoding of the output lacks, here and in children.

    Without it a dash would end the run where the output is ASCII, Latin-1 or a Windows code page.
    An output that is closed is replaced by one that discards.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            null = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, os.fdopen(null, "w", encoding="utf-8", closefd=False))
        elif isinstance(stream, io.TextIOWrapper):  # not in a notebook, which takes any character
            stream.reconfigure(errors="replace")
    # for the processes that the Trainer starts without this function
    encoding = os.environ.get("PYTHONIOENCODING", "").partition(":")[0]
    os.environ["PYTHONIOENCODING"] = f"{encoding}:replace"


def warning_text(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: Any = None
) -> str:
    """Format a warning, as `warnings.formatwarning` does: ours without the line of code.

    >>> print(warning_text("few pictures", UserWarning, str(Path(__file__)), 1), end="")
    warning: few pictures
    """
    if issubclass(category, UserWarning) and Path(__file__).parents[1] in Path(filename).parents:
        return f"warning: {one_line(str(message))}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def check_subcommand(argv: list[str]) -> None:
    """Refuse a command line that does not begin with a subcommand.

    Raises:
        InputError: If it does not.
    """
    if argv[0] in SUBCOMMANDS:
        return
    if any(word in SUBCOMMANDS for word in argv):
        raise InputError(
            f"Expected the subcommand before its options, but got {argv[0]} first: "
            f"{COMMAND} {'|'.join(SUBCOMMANDS)} --config FILE"
        )
    near = difflib.get_close_matches(argv[0], SUBCOMMANDS, n=1)
    raise InputError(
        f"Expected a subcommand, one of {', '.join(SUBCOMMANDS)}, but got {argv[0]}"
        + (f"; did you mean {near[0]}?" if near else f"; {COMMAND} --help tells more")
    )


def rank() -> int:
    """Return the rank of this process; 0 if there is one process."""
    if "lightning" not in sys.modules:  # slow to import
        return 0
    from lightning.pytorch.utilities import rank_zero_only

    return int(getattr(rank_zero_only, "rank", 0) or 0)


def raised_in(error: BaseException) -> str:
    """Return the name of the module that raised an error."""
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    return str(traceback.tb_frame.f_globals["__name__"]) if traceback else ""
