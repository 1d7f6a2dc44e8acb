"""Runs a command as a process of its own, and writes what several of them took."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

BENCHMARKS = Path(__file__).parent
REPOSITORY = BENCHMARKS.parent


class Run(NamedTuple):
    """What one process took."""

    process: float
    """Seconds from its start to its end."""
    memory: float
    """Peak resident memory in MB."""
    loop: float = 0.0
    """Seconds of the training loop, evaluations included."""
    modules: Sequence[str] = ()
    """What it had imported by the end of training."""
    compilation: float = 0.0
    """Seconds of compilation, which are not in `loop`."""
    threads: int = 0
    """How many threads a contender chose to run on; 0 if it chose none."""


def run(
    command: list[str],
    report: Path | None = None,
    folder: Path = REPOSITORY,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """Run a command to its end in a folder, and read the report that it writes.

    Its modules are compiled once, as for a user: without bytecode, an installed package would start
    faster than this checkout.
    """
    environment = dict(os.environ if environment is None else environment)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{errors.decode()}")
    values = json.loads(report.read_text()) if report else {}
    return Run(seconds, usage.ru_maxrss / 1024, **values)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Write a median and, in brackets, the least and the greatest value."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"
