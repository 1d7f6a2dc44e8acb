"""Compares the speed of this project with other ways to do the same work.

    python benchmarks/speed.py --data_dir data

The work is that of `configs/relu_100.yaml`. Each contender runs in a process of its own, once to
warm up and then in turn; ratios are taken within a round. MNIST is read from `--data_dir`, or
fetched into it from the mirror FNN_LIGHTNING_MIRROR; without either, random pixels of the same
shape take its place.

    python benchmarks/speed.py --profile   # where the time of a step goes
    python benchmarks/speed.py --growth    # larger nets and batches, and the machine's limit
"""

import argparse
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

BENCHMARKS = Path(__file__).parent
REPOSITORY = BENCHMARKS.parent
CONFIG = REPOSITORY / "configs" / "relu_100.yaml"
PROJECT = [sys.executable, "-m", "fnn_lightning"]
NAMES = {
    "tutorial": "(a) the tutorials' loop",
    "lightning": "(b) Lightning over a DataLoader",
    "sklearn": "(c) scikit-learn",
    "plain": "(d) a plain loop over tensors",
    "ours": "(e) this project",
}


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


def run(command: list[str], report: Path | None = None) -> Run:
    """Run a command to its end, and read the report that it writes."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{errors.decode()}")
    values = json.loads(report.read_text()) if report else {}
    return Run(seconds, usage.ru_maxrss / 1024, **values)


def contender(name: str, data_dir: str, folder: Path) -> Run:
    """Run one contender."""
    report = folder / "report.json"
    if name != "ours":
        script = [sys.executable, str(BENCHMARKS / "contenders.py"), name]
        return run([*script, "--data_dir", data_dir, "--report", str(report)], report)
    fit = [*PROJECT, "fit", "--config", str(CONFIG), "--data.data_dir", data_dir]
    fit += ["--trainer.default_root_dir", str(folder), "--trainer.enable_progress_bar", "true"]
    fit += ["--trainer.callbacks", "benchmarks.loop_timer.LoopTimer"]
    return run([*fit, "--trainer.callbacks.report", str(report)], report)


def imports(modules: Sequence[str]) -> Run:
    """Run a process that only imports, without what cannot be imported by its name alone."""
    code = "import importlib, sys, warnings\nwarnings.simplefilter('ignore')\n"
    code += "for name in sys.stdin.read().split():\n"
    code += "    try: importlib.import_module(name)\n    except Exception: pass\n"
    with tempfile.TemporaryFile() as file:
        file.write("\n".join(modules).encode())
        file.seek(0)
        process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdin=file)
        _, _, usage = os.wait4(process.pid, 0)
    return Run(0.0, usage.ru_maxrss / 1024)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Write a median and, in brackets, the least and the greatest value."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"


def compare(names: list[str], rounds: int, data_dir: str) -> None:
    """Run the contenders in turn, and print the tables."""
    results: dict[str, list[Run]] = {name: [] for name in names}
    start_up: dict[str, list[float]] = {"lightning": [], "config": [], "version": []}
    commands = {
        "lightning": [sys.executable, "-c", "import lightning.pytorch.cli"],
        "config": [*PROJECT, "fit", "--print_config"],
        "version": [*PROJECT, "--version"],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in range(rounds + 1):
            for name in names:
                result = contender(name, data_dir, folder)
                if number:  # the first is the warm-up
                    results[name].append(result)
            for name, command in commands.items():
                seconds = run(command).process
                if number:
                    start_up[name].append(seconds)
            print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    print("| | training loop, s | whole process, s | peak memory, MB |")
    print("| --- | --- | --- | --- |")
    for name in names:
        loop, process, memory = (
            spread([getattr(each, field) for each in results[name]], form)
            for field, form in (("loop", ".2f"), ("process", ".1f"), ("memory", ".0f"))
        )
        print(f"| {NAMES[name]} | {loop} | {process} | {memory} |")
    print("\n| ratio | median (least–greatest) | at most | aim |")
    print("| --- | --- | --- | --- |")

    def row(what: str, values: Sequence[float], at_most: str, aim: str, form: str = ".2f") -> None:
        print(f"| {what} | {spread(values, form)} | {at_most} | {aim} |", flush=True)

    def ratios(field: str, other: str) -> list[float]:
        pairs = zip(results["ours"], results[other], strict=True)
        return [getattr(ours, field) / getattr(theirs, field) for ours, theirs in pairs]

    limits = {"plain": ("1.30", "1.10"), "sklearn": ("1.00", "0.85"), "tutorial": ("0.14", "0.11")}
    if "ours" in results:
        for other, (at_most, aim) in limits.items():
            if other in results:
                row(f"training loop, (e) / {NAMES[other]}", ratios("loop", other), at_most, aim)
        if "tutorial" in results:
            row("whole process, (e) / (a)", ratios("process", "tutorial"), "0.45", "0.38")
    pairs = zip(start_up["config"], start_up["lightning"], strict=True)
    row(
        "start-up, `fit --print_config` / `import lightning.pytorch.cli`",
        [config / lightning for config, lightning in pairs],
        "1.15",
        "1.05",
    )
    row("`--version`, seconds", start_up["version"], "0.3", "0.1")
    if "ours" in results:
        above = [each.memory - imports(each.modules).memory for each in results["ours"]]
        row("peak memory of (e) above its imports, MB", above, "150", "100", ".0f")


def get_data(data_dir: str, folder: Path) -> str:
    """Fetch MNIST into `data_dir`, or make files of random pixels in `folder`; return which."""
    code = "import sys; from fnn_lightning import MNISTDataModule as Data; "
    code += "Data(data_dir=sys.argv[1]).prepare_data()"
    command = [sys.executable, "-c", code, data_dir]
    if not subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode:
        print("Data: MNIST.\n")
        return data_dir
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, size in (("train", 60_000), ("t10k", 10_000)):
        header = struct.pack(">BBBB3I", 0, 0, 8, 3, size, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + os.urandom(size * 784))
        labels = bytes(value % 10 for value in os.urandom(size))
        header = struct.pack(">BBBBI", 0, 0, 8, 1, size)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels)
    print("Data: random pixels in the shape of MNIST, which is not to be had.\n")
    return str(folder)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="after one to warm up")
    parser.add_argument("--data_dir", default="data", help="where MNIST lives")
    parser.add_argument("--profile", action="store_true", help="split the time of a step")
    parser.add_argument("--growth", action="store_true", help="measure larger nets and batches")
    parser.add_argument("contenders", nargs="*", help=f"default: {' '.join(NAMES)}")
    options = parser.parse_args()
    unknown = set(options.contenders) - NAMES.keys()
    if unknown or options.rounds < 1:
        parser.error(f"expected contenders among {' '.join(NAMES)} and at least one round")
    packages = ("torch", "torchvision", "lightning", "torchmetrics", "scikit-learn")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    rounds = "" if options.profile else f", {options.rounds} rounds"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, ", end="")
    print(f"{versions}{rounds}.\n", flush=True)
    if options.growth:
        from growth import show_growth

        show_growth(options.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        data_dir = get_data(str(Path(options.data_dir).absolute()), Path(folder))
        if options.profile:
            from step_profile import show_profile

            sys.path.insert(0, str(REPOSITORY))
            show_profile(CONFIG, data_dir)
        else:
            compare(options.contenders or list(NAMES), options.rounds, data_dir)


if __name__ == "__main__":
    main()
