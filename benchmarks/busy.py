"""How long a run takes alone and beside a busy process; `speed.py --busy` prints it.

With the checkout of an earlier state, also how long it takes alone here and there.
"""

import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from timing import BENCHMARKS, REPOSITORY, run, spread

BESIDE = {"relu_100": ("2.0", "1.4"), "mnist": ("2.2", "1.7")}
"""Configs that run beside a busy process: at most so many times as long as alone, and the aim."""

BEFORE = {"relu_100": ("1.02", "0.95"), "mnist": ("0.85", "0.70"), "fast99": ("0.85", "0.70")}
"""Configs that run in an earlier checkout too: this / base at most, and the aim."""

EPOCHS = {"mnist": 7, "fast99": 3}
"""Configs of which only some epochs run: whole runs take minutes, or once had fewer epochs."""

# It ends by itself if the benchmark is killed and cannot end it.
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000): pass
"""


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy meanwhile."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def train(config: str, data_dir: str, checkout: Path) -> float:
    """Train by a config of a checkout, and return the seconds of the training loop."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "fnn_lightning", "fit", "--config"]
        command += [f"configs/{config}.yaml", "--data.data_dir", data_dir]
        command += ["--trainer.default_root_dir", folder]
        command += ["--trainer.callbacks", "loop_timer.LoopTimer"]
        command += ["--trainer.callbacks.report", str(report)]
        if config in EPOCHS:
            command += ["--trainer.max_epochs", str(EPOCHS[config])]
        # the package is the checkout's, the timer always the one beside this file
        paths = [str(checkout), str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        return run(command, report, checkout, environment).loop


def show_busy(rounds: int, data_dir: str, base: Path | None) -> None:
    """Train in turn, and print the tables.

    Args:
        rounds: After a run of each checkout to warm up.
        data_dir: Where MNIST lives.
        base: The checkout of an earlier state.
    """
    alone, beside, before = (defaultdict[str, list[float]](list) for _ in range(3))
    train("relu_100", data_dir, REPOSITORY)
    if base:
        train("relu_100", data_dir, base)
    for number in range(1, rounds + 1):
        for config in BEFORE if base else BESIDE:
            alone[config].append(train(config, data_dir, REPOSITORY))
            if base:
                before[config].append(train(config, data_dir, base))
            if config in BESIDE:
                with busy_process():
                    beside[config].append(train(config, data_dir, REPOSITORY))
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    show("alone, s | beside a busy process, s | beside / alone", alone, beside, BESIDE)
    if base:
        show("base, s | this, s | alone, this / base", before, alone, BEFORE)


def show(
    columns: str,
    first: dict[str, list[float]],
    second: dict[str, list[float]],
    limits: dict[str, tuple[str, str]],
) -> None:
    """Print a table of seconds and of the ratios second / first, taken within a round."""
    print(f"| config | {columns} | at most | aim |")
    print("| --- | --- | --- | --- | --- | --- |")
    for config, (at_most, aim) in limits.items():
        ratios = [b / a for a, b in zip(first[config], second[config], strict=True)]
        name = f"`{config}.yaml`"
        if config in EPOCHS:
            name += f", {EPOCHS[config]} epochs"
        cells = [name, spread(first[config]), spread(second[config]), spread(ratios), at_most, aim]
        print(f"| {' | '.join(cells)} |")
    print(flush=True)
