"""Measures steps a second on one and two processes of one thread each.

    python benchmarks/scaling.py

A small net, whose step is shorter than a word between two processes, and a large one. SGD on
`configs/relu_100.yaml`'s data in batches of the same global size, started by the Trainer; MNIST is
read from `--data_dir`. Validation is switched off.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
NETS = {
    "1 × 100 hidden, batch 100": ("[100]", 100, 600),
    "3 × 2,000 hidden, batch 4,000": ("[2000, 2000, 2000]", 4_000, 6),
}


def steps_a_second(net: str, processes: int, data_dir: str, single_steps: bool = False) -> float:
    """Train in processes of one thread each, and return the steps a second."""
    hidden_dims, batch_size, steps = NETS[net]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "fnn_lightning", "fit", "--data.data_dir", data_dir]
        command += ["--model.hidden_dims", hidden_dims, "--data.batch_size", str(batch_size)]
        command += ["--trainer.max_steps", str(steps), "--trainer.limit_val_batches", "0"]
        command += ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", folder]
        command += ["--trainer.enable_checkpointing", "false"]
        command += ["--trainer.callbacks", "benchmarks.loop_timer.LoopTimer"]
        command += ["--trainer.callbacks.report", str(report)]
        if single_steps:
            command += ["--model.multi_step", "false"]
        if processes > 1:
            command += ["--trainer.devices", str(processes), "--trainer.strategy", "ddp"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            command, cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.DEVNULL
        )
        return steps / float(json.loads(report.read_text())["loop"])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default="data", help="where MNIST lives")
    parser.add_argument("--rounds", type=int, default=5, help="after one to warm up")
    options = parser.parse_args()
    data_dir = str(Path(options.data_dir).absolute())
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "lightning"))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, one thread a process, "
        f"Python {platform.python_version()}, {packages}, {options.rounds} rounds.\n"
    )
    print("| net | 1 process, steps/s | single steps | 2 processes, steps/s | 2 / 1 process |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for net in NETS:
        rounds = [
            (
                steps_a_second(net, 1, data_dir),
                steps_a_second(net, 1, data_dir, single_steps=True),
                steps_a_second(net, 2, data_dir),
            )
            for _ in range(options.rounds + 1)
        ][1:]
        one, single, two = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratios = [both / alone for alone, _, both in rounds]
        print(
            f"| {net} | {one:.4g} | {single:.4g} | {two:.4g} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
