"""Compares the speed of this project with other ways to do the same work.

    python benchmarks/speed.py --data_dir data

The work is that of `configs/relu_100.yaml`. Each contender runs in a process of its own, once to
warm up and then in turn; ratios are taken within a round. MNIST is read from `--data_dir`, or
fetched into it from the mirror FNN_LIGHTNING_MIRROR; without either, random pixels of the same
shape take its place.

    python benchmarks/speed.py --busy             # beside a process that keeps one core busy
    python benchmarks/speed.py --profile mnist    # where the time of a step goes, by any config
    python benchmarks/speed.py --growth           # larger nets and batches, the machine's limit

Contender (f) needs JAX (`pip install jax`), and is left out without it.
"""

import argparse
import os
import platform
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from timing import BENCHMARKS, REPOSITORY, Run, run, spread

CONFIGS = REPOSITORY / "configs"
PROJECT = [sys.executable, "-m", "fnn_lightning"]
NAMES = {
    "tutorial": "(a) the tutorials' loop",
    "lightning": "(b) Lightning over a DataLoader",
    "sklearn": "(c) scikit-learn",
    "plain": "(d) a plain loop over tensors",
    "ours": "(e) this project",
    "jax": "(f) JAX",
}


def contender(name: str, data_dir: str, folder: Path) -> Run:
    """Run one contender."""
    report = folder / "report.json"
    if name != "ours":
        script = [sys.executable, str(BENCHMARKS / "contenders.py"), name]
        return run([*script, "--data_dir", data_dir, "--report", str(report)], report)
    fit = [*PROJECT, "fit", "--config", str(CONFIGS / "relu_100.yaml"), "--data.data_dir", data_dir]
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
    if "plain" in results:
        threads = ", ".join(str(each.threads) for each in results["plain"])
        print(f"\nThreads of (d), the faster of one and all, round by round: {threads}.")
    if "jax" in results:
        compilation = spread([each.compilation for each in results["jax"]])
        print(f"\nCompilation of (f), not in its training loop: {compilation} s.")
    print("\n| ratio | median (least–greatest) | at most | aim |")
    print("| --- | --- | --- | --- |")

    def row(what: str, values: Sequence[float], at_most: str, aim: str, form: str = ".2f") -> None:
        print(f"| {what} | {spread(values, form)} | {at_most} | {aim} |", flush=True)

    def ratios(field: str, other: str) -> list[float]:
        pairs = zip(results["ours"], results[other], strict=True)
        return [getattr(ours, field) / getattr(theirs, field) for ours, theirs in pairs]

    limits = {
        "plain": ("1.10", "0.95"),
        "sklearn": ("0.95", "0.80"),
        "jax": ("1.50", "1.00"),
        "tutorial": ("0.14", "0.11"),
    }
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
        "1.05",
        "0.90",
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


def describe_machine() -> str:
    """Return the machine, the versions, and what the environment says of threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [platform.machine(), f"{cores} cores", f"Python {platform.python_version()}"]
    for package in ("torch", "torchvision", "lightning", "torchmetrics", "scikit-learn", "jax"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    # such a variable changes every figure, and is easily forgotten
    parts += [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))
    ]
    return ", ".join(parts)


def main() -> None:
    """Run the benchmark."""
    configs = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="after one to warm up")
    parser.add_argument("--data_dir", default="data", help="where MNIST lives")
    parser.add_argument("--busy", action="store_true", help="measure beside a busy process")
    parser.add_argument(
        "--base", type=Path, help="with --busy: checkout of an earlier state to compare with"
    )
    parser.add_argument(
        "--profile",
        nargs="?",
        const="relu_100",
        choices=configs,
        metavar="CONFIG",
        help="split the time of a step (default: relu_100)",
    )
    parser.add_argument("--growth", action="store_true", help="measure larger nets and batches")
    parser.add_argument("contenders", nargs="*", help=f"default: {' '.join(NAMES)}")
    options = parser.parse_args()
    unknown = set(options.contenders) - NAMES.keys()
    if unknown or options.rounds < 1:
        parser.error(f"expected contenders among {' '.join(NAMES)} and at least one round")
    if options.base and not (options.busy and (options.base / "fnn_lightning").is_dir()):
        parser.error(f"expected --busy and a checkout of this project, but got {options.base}")
    rounds = "" if options.profile else f", {options.rounds} rounds"
    print(f"{describe_machine()}{rounds}.\n", flush=True)
    if options.growth:
        from growth import show_growth

        show_growth(options.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        data_dir = get_data(str(Path(options.data_dir).absolute()), Path(folder))
        if options.busy:
            from busy import show_busy

            show_busy(options.rounds, data_dir, options.base and options.base.absolute())
        elif options.profile:
            os.environ["KINETO_LOG_LEVEL"] = "99"  # nothing from PyTorch's profiler on stderr
            from step_profile import show_profile

            sys.path.insert(0, str(REPOSITORY))
            show_profile(CONFIGS / f"{options.profile}.yaml", data_dir)
        else:
            names = options.contenders or list(NAMES)
            if "jax" in names and not find_spec("jax"):
                names.remove("jax")
                print("(f) is left out: JAX is not installed (pip install jax).\n")
            compare(names, options.rounds, data_dir)


if __name__ == "__main__":
    main()
