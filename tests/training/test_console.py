"""What a terminal of 80 columns shows of a run, and after Ctrl-C."""

import io
import os
import re
import select
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.commands.main import main
from fnn_lightning.training import progress_bar
from fnn_lightning.training.console import GREEN, Console, describe_seed, styled
from tests.forks import StartFork
from tests.support import LAST, RUN, fit, scalars, trainer

Capture = pytest.CaptureFixture[str]
needs_terminal = pytest.mark.skipif(os.name != "posix", reason="needs a Unix terminal")
COLUMNS, SECONDS = 80, 100
# evaluation is slow, so that Ctrl-C comes while its bar is there
IN_A_TERMINAL = """
import fcntl, os, signal, termios, time
from fnn_lightning import FNNLitModule

def slow(step):
    return lambda *args: [time.sleep(1), step(*args)][1]

os.dup2(1, 0)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
FNNLitModule.validation_step = slow(FNNLitModule.validation_step)
FNNLitModule.test_step = slow(FNNLitModule.test_step)
"""


def screen(output: str) -> list[str]:
    """Lay out what was written to a terminal that is as high as need be; without blank lines."""
    rows: dict[int, dict[int, str]] = {}
    row = column = 0
    for character in output.replace("\x1b[A", "\x1b"):
        if character == "\x1b":
            row -= 1
        elif character == "\n":
            row += 1
        elif character == "\r":
            column = 0
        else:
            if column == COLUMNS:
                row, column = row + 1, 0
            rows.setdefault(row, {})[column] = character
            column += 1
    lines = [
        "".join(cells.get(place, " ") for place in range(COLUMNS)).rstrip()
        for _, cells in sorted(rows.items())
    ]
    return [line for line in lines if line]


def type_ctrl_c(
    fork: StartFork, words: list[str], when: str, times: int
) -> tuple[int | None, list[str]]:
    """Run the command line in a terminal, and press Ctrl-C once it shows a text."""
    import fcntl
    import pty
    import termios

    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    with os.fdopen(its, "wb", buffering=0) as terminal:
        process = fork(*words, files=(terminal, terminal), before=IN_A_TERMINAL, NO_COLOR="1")
    output, typed, end = b"", False, time.monotonic() + SECONDS
    try:
        while select.select([ours], [], [], max(end - time.monotonic(), 0))[0]:
            try:
                output += os.read(ours, 65536)
            except OSError:  # how a terminal ends on Linux
                break
            if not typed and when in output.decode(errors="replace"):
                typed = True
                for _ in range(times):
                    os.write(ours, b"\x03")
                    time.sleep(0.05)
        return process.wait(max(end - time.monotonic(), 1)), screen(output.decode())
    finally:
        os.close(ours)


@needs_terminal
@pytest.mark.parametrize(
    ("times", "message"), [(1, "stopped by SIGINT, saved"), (2, "interrupted")]
)
def test_ctrl_c_leaves_one_closed_bar_and_a_line(
    data_dir: str, fork: StartFork, times: int, message: str
) -> None:
    words = ["fit", "--data.data_dir", data_dir, "--model.hidden_dims", "[8]",
             "--data.batch_size", "10", "--trainer.val_check_interval", "7"]  # fmt: skip
    status, lines = type_ctrl_c(fork, words, "validating", times)
    assert status == 130, lines
    bars = [line for line in lines if "|" in line]
    assert len(bars) == 1
    assert "%|" in bars[0].replace(" ", "")
    last = lines.index(bars[0])
    assert lines[last + 1].startswith(message)
    keys = ("data", "network", "optimizer", "length", "device", "steps", " ")
    assert all(line.startswith(keys) for line in lines[:last])
    assert "^C" in "".join(lines[6 : last + 1])  # the terminal's, at the end of a line


@needs_terminal
def test_ctrl_c_in_test_says_so(data_dir: str, fork: StartFork) -> None:
    fit(data_dir)
    status, lines = type_ctrl_c(fork, ["test", "--ckpt_path", LAST], "Testing DataLoader", 1)
    assert status == 130, lines
    assert len(lines) == 2
    assert lines[0].startswith("Testing")
    assert lines[1] == "interrupted"


def header(output: str) -> dict[str, str]:
    lines = [line for line in output.split("\n\n")[0].splitlines() if line[0] != " "]
    return {line[:11].rstrip(): line[11:] for line in lines}


def rows(output: str) -> list[list[str]]:
    table = output.split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in re.split(r"  +", row.strip())] for row in table]
    return [row for row in cells[1:] if "%" in "".join(row)]


def test_the_header_says_what_was_configured_and_where_a_run_resumes(
    data_dir: str, capsys: Capture
) -> None:
    words = ["--optimizer", "Adam", "--optimizer.lr", "0.02", "--lr_scheduler",
             "CosineAnnealingLR", "--lr_scheduler.T_max", "9", "--model.lr_interval", "step",
             "--model.warmup", "2", "--seed_everything", "7"]  # fmt: skip
    fit(data_dir, *words, "--model.label_smoothing", "0.1")
    lines = header(capsys.readouterr().out)
    # the first rate of the warm-up is a third of it
    assert lines["optimizer"] == "Adam, learning rate 0.02, 2 steps of warm-up, CosineAnnealingLR"
    assert lines["length"] == "2 epochs of 3 steps, 6 in all"
    assert lines["device"].endswith(", seed 7")
    assert lines["losses"].startswith("train loss has label smoothing 0.1, val loss none")
    assert "steps" not in lines

    main(["fit", "--ckpt_path", LAST, "--trainer.max_steps", "8", "--trainer.max_epochs", "-1"])
    lines = header(capsys.readouterr().out)
    assert lines["optimizer"].startswith("Adam, learning rate 0.02,")
    assert lines["length"] == "8 steps, 2.67 epochs of 3"
    assert lines["resumed"] == "after step 6"
    # in the middle of an epoch
    main(["fit", "--ckpt_path", LAST, "--trainer.max_steps", "9"])
    assert header(capsys.readouterr().out)["resumed"] == "after step 8"


def test_a_row_has_the_means_since_the_last_one_and_a_star_if_it_is_the_best(
    data_dir: str, capsys: Capture
) -> None:
    # batches of 100, 100 and 75: after two steps, the rest of the epoch
    fit(data_dir, "--checkpoint.monitor", "val/loss", "--optimizer.lr", "1e-9",
        "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1")  # fmt: skip
    table = rows(capsys.readouterr().out)
    assert [row[:2] for row in table] == [["1/2", "2"], ["2/2", "5"], ["2/2", "6"]]
    logged = scalars(str(RUN))
    for row, counts in zip(table, ({1: 100, 2: 100}, {3: 75, 4: 100, 5: 100}), strict=False):
        for name, cell in (("loss", row[2]), ("acc", row[3])):
            points = dict(logged[f"train/{name}"])
            mean = sum(points[step] * count for step, count in counts.items()) / sum(
                counts.values()
            )
            scale = 100 if name == "acc" else 1
            assert float(cell.removesuffix(" %")) == pytest.approx(scale * mean, abs=6e-3 * scale)
    # the weights stay as they are, and so does the loss: only the first is better than none
    assert [row[-1] == "*" for row in table] == [True, False, False]


def test_without_validation_every_epoch_has_a_row(data_dir: str, capsys: Capture) -> None:
    fit(data_dir, "--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "1")
    output = capsys.readouterr().out
    assert header(output)["validation"] == "none"
    losses = [loss for _, loss in scalars(str(RUN))["train/loss"]]
    second = (100 * losses[3] + 100 * losses[4] + 75 * losses[5]) / 275
    table = rows(output)
    assert [row[:2] for row in table] == [["1/2", "3"], ["2/2", "6"]]
    assert float(table[1][2]) == pytest.approx(second, abs=6e-5)
    assert len(table[1]) == 5  # no cells of a validation


@pytest.mark.parametrize(
    "limit",
    ["max_epochs=0", "max_steps=0", "max_time=00:00:00:00", "limit_train_batches=0"],
)
def test_a_run_without_a_step_says_so(data_dir: str, capsys: Capture, limit: str) -> None:
    main(["fit", "--data.data_dir", data_dir, f"--trainer.{limit}"])
    done = " ".join(capsys.readouterr().out.split())
    assert done.endswith(
        "done without a step, so nothing is saved: --trainer.max_epochs, --trainer.max_steps, "
        "--trainer.max_time or --trainer.limit_train_batches allows none"
    )
    assert not Path(LAST).exists()


def test_early_stopping_says_so(data_dir: str, capsys: Capture) -> None:
    fit(data_dir, "--optimizer.lr", "1e-9", "--early_stopping.patience", "1",
        "--trainer.max_epochs", "9")  # fmt: skip
    output = capsys.readouterr().out
    assert "9 epochs of 3 steps, 27 in all, or until val/acc stops improving\n" in output
    assert "stopped    early, since val/acc has not improved for 1 validation\n" in output


def test_one_bar_counts_the_steps_of_the_whole_run(
    data_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(progress_bar, "REDRAW_SECONDS", -1.0)
    fit(data_dir, "--trainer.enable_progress_bar", "true", "--trainer.log_every_n_steps", "1",
        "--model.multi_step", "false")  # fmt: skip
    drawn = re.findall(
        r" *(\d+) %\|.*?epoch (\d)/2, .*? left(?:, loss ([\d.]+))?", capsys.readouterr().out
    )
    shares = [int(share) for share, _, _ in drawn]
    assert shares == sorted(shares)
    assert set(shares) >= {0, 17, 33, 50, 67, 83, 100}
    assert next(epoch for share, epoch, _ in drawn if share == "67") == "2"
    losses = [loss for _, loss in scalars(str(RUN))["train/loss"]]
    # the log, which comes after the bar, has measured one step by then
    assert [loss for share, _, loss in drawn if share == "33"][-1] == f"{losses[0]:.4f}"


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert styled("*", GREEN) == "*"  # the tests' output is no terminal
    monkeypatch.setattr("sys.stdout", terminal := io.StringIO())
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    assert styled("*", GREEN) == "\x1b[32m*\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert styled("*", GREEN) == "*"


def test_the_header_counts_the_images_that_are_used(data_dir: str, capsys: Capture) -> None:
    fit(data_dir, "--trainer.limit_train_batches", "2", "--trainer.check_val_every_n_epoch", "2")
    lines = header(capsys.readouterr().out)
    assert lines["data"] == "mnist: 200 images to train, 25 to validate, batches of 100"
    fit(data_dir, "--data.batch_size", "300", "--trainer.max_epochs", "1")
    assert header(capsys.readouterr().out)["length"] == "1 epoch of 1 step, 1 in all"


def test_without_an_end_of_an_epoch_the_table_counts_steps(
    make_model: Callable[..., FNNLitModule], tmp_path: Path, capsys: Capture
) -> None:
    class Endless(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for _ in range(30):
                yield torch.zeros(28, 28), torch.tensor(1)

    loader = DataLoader(Endless(), batch_size=10)
    run = trainer(tmp_path, callbacks=[Console()], max_steps=6, max_epochs=-1)
    run.fit(make_model(), loader, loader)
    output = capsys.readouterr().out
    lines = header(output)
    assert lines["data"] == "batches an epoch from a DataLoader"
    assert lines["length"] == "6 steps"
    assert [row[:2] for row in rows(output)] == [["1", "3"], ["2", "6"]]


def test_seeds_of_run_and_data_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert describe_seed(MNISTDataModule(seed=7)) == ", seed 7"
    assert describe_seed(MNISTDataModule(seed=3)) == ", seed 7, of the data 3"
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert describe_seed(MNISTDataModule(seed=3)) == ", seed of the data 3"
    assert describe_seed(None) == ""


def test_dataloaders_alone_have_a_header_before_they_are_validated(
    make_data: Callable[..., MNISTDataModule],
    make_model: Callable[..., FNNLitModule],
    tmp_path: Path,
    capsys: Capture,
) -> None:
    data = make_data()
    data.setup("fit")
    run = trainer(tmp_path, callbacks=[Console()], max_epochs=2, check_val_every_n_epoch=2)
    run.fit(make_model(), data.train_dataloader(), data.val_dataloader())
    assert header(capsys.readouterr().out)["data"].startswith("275 images to train, batches of ")


@pytest.mark.parametrize(("decay", "said"), [(0.9, True), (0.5, False)])
def test_an_average_of_mostly_the_first_weights_is_said(
    data_dir: str, capsys: Capture, decay: float, said: bool
) -> None:
    # 6 steps: 0.9^6 is 53 %, 0.5^6 is 2 %
    fit(data_dir, "--ema.decay", str(decay))
    text = header(capsys.readouterr().out).get("average", "")
    assert text.startswith("EMA of decay 0.9: after 6 steps the first weights are 53 %") == said
