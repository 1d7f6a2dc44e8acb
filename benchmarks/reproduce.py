"""Trains every tutorial's config with several seeds and compares the accuracies with theirs.

    python benchmarks/reproduce.py --seeds 3 --data_dir data

Prints a Markdown table of final test accuracies: what the source published, the reference (the
same training as a plain PyTorch loop, five seeds), and this project. Exits with 1 if a mean
leaves the reference by more than 0.3 points, or if `test` of a checkpoint finds another figure
than its training printed.
"""

import argparse
import contextlib
import io
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import lightning
import torch

from fnn_lightning.commands.lightning_cli import FNNCLI
from fnn_lightning.training.checkpointing import RunCheckpoint

CONFIGS = Path(__file__).parent.parent / "configs"
TOLERANCE = 0.3  # points


class Figures(NamedTuple):
    """Test accuracies in %."""

    published: str
    mean: float
    sd: float


REFERENCE = {
    "logistic": Figures("–", 91.81, 0.06),
    "sigmoid_100": Figures("91", 92.04, 0.07),
    "tanh_100": Figures("95", 95.06, 0.07),
    "relu_100": Figures("95", 95.69, 0.17),
    "relu_100x2": Figures("96", 96.48, 0.36),
    "relu_100x3": Figures("97 (CPU), 96 (GPU)", 96.80, 0.18),
    "sigmoid_100_batch128": Figures("91.26 and 91.10 after 2,000 steps", 91.53, 0.09),
    "relu_128_128_64_64": Figures("95.95", 96.61, 0.10),
    "relu_50_adam": Figures("over 90", 93.03, 0.24),
}


def train_and_test(config: Path, seed: int, arguments: list[str]) -> tuple[float, float]:
    """Run `fit` and then `test` of its checkpoint.

    Returns:
        Test accuracy in %, and the seconds that `fit` took, imports not included.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        fit = FNNCLI(["fit", "--config", str(config), "--seed_everything", str(seed), *arguments])
        seconds = time.perf_counter() - start
        keeper = fit.trainer.checkpoint_callback
        assert isinstance(keeper, RunCheckpoint)
        test = FNNCLI(["test", "--ckpt_path", keeper.last_model_path])
    printed, measured = fit.model.counts["val/"], test.model.counts["test/"]
    if printed != measured:
        sys.exit(f"{config.name}: training ended with {printed}, `test` found {measured}")
    correct, total = measured
    return 100 * correct / total, seconds


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each config")
    parser.add_argument("--data_dir", default="data", help="where MNIST lives")
    parser.add_argument("configs", nargs="*", default=list(REFERENCE), help="names; default: all")
    options = parser.parse_args()

    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"lightning {lightning.__version__}, {options.seeds} seeds\n"
    )
    print("| config | published | reference | ours | seconds |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.configs:
            arguments = ["--trainer.default_root_dir", folder, "--data.data_dir", options.data_dir]
            runs = [
                train_and_test(CONFIGS / f"{name}.yaml", seed, arguments)
                for seed in range(options.seeds)
            ]
            accuracies = [accuracy for accuracy, _ in runs]
            mean = statistics.mean(accuracies)
            sd = statistics.stdev(accuracies) if len(runs) > 1 else 0.0
            published, reference, reference_sd = REFERENCE[name]
            seconds = statistics.median(seconds for _, seconds in runs)
            print(
                f"| `{name}.yaml` | {published} | {reference:.2f} ± {reference_sd:.2f} "
                f"| {mean:.2f} ± {sd:.2f} | {seconds:.1f} |",
                flush=True,
            )
            if abs(mean - reference) > TOLERANCE:
                failed.append(name)
    if failed:
        sys.exit(f"more than {TOLERANCE} points from the reference: {', '.join(failed)}")


if __name__ == "__main__":
    main()
