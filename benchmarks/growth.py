"""How the cost of a step grows with the net and the batch; `speed.py --growth` prints it.

SGD on random pixels, without evaluations and checkpoints; this project with TensorBoard and
metrics, the plain loop without. Both run in this process, in turn.
"""

import itertools
import statistics
import tempfile
import time
import warnings
from typing import Any

import torch
from contenders import LR, faster_threads, mlp, plain_loop
from lightning.pytorch import Trainer
from loop_timer import LoopTimer
from torch import Tensor

from fnn_lightning import FNNLitModule
from fnn_lightning.data.dataloader import InMemoryDataLoader
from fnn_lightning.trainer import quiet_lightning

SIZE = 60_000
WIDTHS, DEPTHS, BATCH_SIZES = (100, 300, 1_000, 3_000), (1, 3, 5), (32, 100, 500, 4_000)

Data = tuple[Tensor, Tensor]
"""Images, `uint8` of shape `(60000, 28, 28)`, and labels."""


def flops(hidden_dims: list[int]) -> int:
    """Count the floating-point operations of a training step for one image.

    Two for each weight in the forward pass, two for its gradient, and two for that of the layer's
    input, which the first layer does without.
    """
    dims = [784, *hidden_dims, 10]
    weights = [inputs * outputs for inputs, outputs in itertools.pairwise(dims)]
    return 6 * sum(weights) - 2 * weights[0]


def machine_rate() -> float:
    """Measure the floating-point operations a second of one large `torch.mm`."""
    n = 4_096
    a, b, out = torch.rand(n, n), torch.rand(n, n), torch.empty(n, n)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(seconds)


def train_ours(
    data: tuple[Tensor, Tensor], hidden_dims: list[int], batch: int, steps: int
) -> float:
    """Return the images a second of this project."""
    torch.manual_seed(0)
    images, labels = data
    source = InMemoryDataLoader(
        images, labels, torch.arange(SIZE), batch_size=batch, shuffle_seed=0
    )
    timer = LoopTimer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=steps,
            max_epochs=-1,
            limit_val_batches=0,
            accelerator="cpu",
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[timer],
        )
        module = FNNLitModule(
            hidden_dims=hidden_dims,
            optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": LR}},
        )
        trainer.fit(module, source)
    return steps * batch / timer.seconds


def train_plain(
    data: tuple[Tensor, Tensor], hidden_dims: list[int], batch: int, steps: int
) -> float:
    """Return the images a second of the plain loop."""
    images, labels = data
    model = mlp(hidden_dims)
    start = time.perf_counter()
    plain_loop(model, (images.flatten(1), labels), batch, steps)
    return steps * batch / (time.perf_counter() - start)


def measure(data: Data, hidden_dims: list[int], batch: int, rounds: int, seconds: float) -> Any:
    """Train with both, in turn, for about `seconds` each.

    The plain loop runs on one or on all threads, whichever is faster.

    Returns:
        The median of images a second, and the ratios to the plain loop, one a round.
    """
    trial = train_plain(data, hidden_dims, batch, 2)
    steps = min(max(2, round(seconds * trial / batch)), 2_000)
    all_threads = torch.get_num_threads()
    trial_steps = max(2, steps // 10)
    threads = faster_threads(lambda: train_plain(data, hidden_dims, batch, trial_steps))
    rates, ratios = [], []
    for _ in range(rounds):
        torch.set_num_threads(threads)
        plain = train_plain(data, hidden_dims, batch, steps)
        torch.set_num_threads(all_threads)
        rates.append(train_ours(data, hidden_dims, batch, steps))
        ratios.append(rates[-1] / plain)
    return statistics.median(rates), ratios


def show_growth(rounds: int) -> None:
    """Print the rows of the larger nets, and the table."""
    quiet_lightning()
    warnings.filterwarnings("ignore", message=".*does not have many workers|.*val_dataloader")
    data = (
        torch.randint(256, (SIZE, 28, 28), dtype=torch.uint8),
        torch.randint(10, (SIZE,)),
    )
    print("| larger nets | median (least–greatest) | at least | aim |")
    print("| --- | --- | --- | --- |")
    _, ratios = measure(data, [1_000] * 3, 500, rounds, 4.0)
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(
        "| images/s, 3 × 1,000 hidden, batch 500, this project / plain loop "
        f"| {middle:.2f} ({low:.2f}–{high:.2f}) | 0.95 | 0.99 |",
        flush=True,
    )
    shares = []
    for _ in range(rounds):
        before = machine_rate()
        rate, _ = measure(data, [2_000] * 3, 1_000, 1, 4.0)
        shares.append(rate * flops([2_000] * 3) / statistics.mean((before, machine_rate())))
    middle, low, high = statistics.median(shares), min(shares), max(shares)
    print(
        "| floating-point rate, 3 × 2,000 hidden, batch 1,000 / that of one `torch.mm` "
        f"| {middle:.2f} ({low:.2f}–{high:.2f}) | 0.70 | 0.85 |\n",
        flush=True,
    )
    limit = machine_rate()
    print(f"`torch.mm`: {limit / 1e9:.0f} GFLOP/s. Each cell: images/s, ratio to the plain loop,")
    print("share of the rate of `torch.mm`.\n")
    print("| depth × width | " + " | ".join(f"batch {batch:,}" for batch in BATCH_SIZES) + " |")
    print("| --- |" + " --- |" * len(BATCH_SIZES))
    for depth, width in itertools.product(DEPTHS, WIDTHS):
        cells = []
        for batch in BATCH_SIZES:
            hidden_dims = [width] * depth
            rate, ratios = measure(data, hidden_dims, batch, 3, 0.7)
            share = rate * flops(hidden_dims) / limit
            cells.append(f"{rate:,.0f}, {statistics.median(ratios):.2f}, {share:.2f}")
        print(f"| {depth} × {width:,} | " + " | ".join(cells) + " |", flush=True)
