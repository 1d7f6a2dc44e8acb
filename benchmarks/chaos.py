"""Kills runs at random moments, resumes them, and compares the end with undisturbed runs.

    python benchmarks/chaos.py --data_dir data

Each of twenty trials starts the work of `configs/relu_100.yaml` on one process, or two epochs of
it on two, kills it at a random moment of training (the whole run by SIGKILL or SIGTERM, or one
process of two by SIGKILL), waits until nothing of it is left, resumes with the same command, and
compares weights, optimiser, metrics and curves with those of a run that was left alone.
"""

import argparse
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

REPOSITORY = Path(__file__).parent.parent
CONFIG = REPOSITORY / "configs" / "relu_100.yaml"
LAST = Path("checkpoints", "last.ckpt")
KINDS = [(1, "SIGKILL"), (1, "SIGTERM"), (2, "SIGKILL of one"), (2, "SIGTERM"), (2, "SIGKILL")]
SECONDS_TO_END = 60  # after a kill; SIGTERM is given time to save


def start(folder: Path, processes: int, data_dir: str, log: Any) -> subprocess.Popen[bytes]:
    """Start a run, or go on with it."""
    command = [sys.executable, "-m", "fnn_lightning", "fit", "--config", str(CONFIG)]
    command += ["--run_folder", str(folder), "--data.data_dir", data_dir]
    command += ["--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "7"]
    command += ["--checkpoint.every_n_steps", "50"]
    if processes > 1:
        command += [
            "--trainer.max_epochs",
            "2",
            "--trainer.devices",
            str(processes),
            "--trainer.strategy",
            "ddp",
        ]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)


def wait_for_training(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a run has said what it is going to do."""
    while process.poll() is None and b"\nsteps " not in log.read_bytes():
        time.sleep(0.01)


def kill(process: subprocess.Popen[bytes], kind: str) -> None:
    """Send a signal to a run, or to one of its processes but the first."""
    if kind == "SIGKILL of one":
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children:  # otherwise it has not started any yet
            os.kill(int(children[0]), signal.SIGKILL)
            return
    process.send_signal(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)


def wait(process: subprocess.Popen[bytes]) -> float:
    """Wait until no process of a run is left; return the seconds that took."""
    start_time = time.monotonic()
    process.wait(SECONDS_TO_END)
    while time.monotonic() < start_time + SECONDS_TO_END:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return time.monotonic() - start_time
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    sys.exit(f"processes of the run were left {SECONDS_TO_END} s after the kill")


def result(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a run's last checkpoint, without paths, and its curves."""
    checkpoint = torch.load(folder / LAST, weights_only=True)
    checkpoint["callbacks"] = {
        key: {name: value for name, value in state.items() if not name.endswith("_path")}
        for key, state in checkpoint["callbacks"].items()
    }
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    curves = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    return checkpoint, curves


def same(ours: Any, theirs: Any) -> bool:
    """Compare to the bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


def main() -> None:
    """Run the trials."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every killed run
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default="data", help="where MNIST lives")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    data_dir, rng = str(Path(options.data_dir).absolute()), random.Random(options.seed)
    identical = 0
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed, seconds = {}, {}
        for processes in (1, 2):
            folder, log = Path(scratch) / f"undisturbed{processes}", Path(scratch) / "log"
            with log.open("wb") as file:
                process = start(folder, processes, data_dir, file)
                wait_for_training(process, log)
                begin = time.monotonic()
                if process.wait():
                    sys.exit(f"the undisturbed run failed:\n{log.read_text()}")
            seconds[processes] = time.monotonic() - begin
            undisturbed[processes] = result(folder)
        print(
            "| kill | processes | signal | after s of training | step saved | gone after s | same |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for trial in range(options.kills):
            processes, kind = KINDS[trial % len(KINDS)]
            folder, log = Path(scratch) / f"trial{trial}", Path(scratch) / f"log{trial}"
            after = rng.uniform(0, 0.9) * seconds[processes]
            with log.open("wb") as file:
                process = start(folder, processes, data_dir, file)
                wait_for_training(process, log)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(after)
                if process.poll() is None:
                    kill(process, kind)
                gone = wait(process)
                saved = 0
                if (folder / LAST).exists():
                    saved = torch.load(folder / LAST, weights_only=True)["global_step"]
                if start(folder, processes, data_dir, file).wait():
                    sys.exit(f"the run did not go on:\n{log.read_text()[-3000:]}")
            alike = same(result(folder), undisturbed[processes])
            identical += alike
            print(
                f"| {trial + 1} | {processes} | {kind} | {after:.1f} | {saved:,} | {gone:.1f} | "
                f"{'yes' if alike else 'NO'} |",
                flush=True,
            )
    print(f"\n{identical} of {options.kills} identical")
    sys.exit(identical != options.kills)


if __name__ == "__main__":
    main()
