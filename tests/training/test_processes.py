"""Runs on several processes, and runs that are killed: real processes, ended by the tests."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.datasets import MNIST

from fnn_lightning.runs.signals import LOST
from tests.forks import SECOND_RANK, Fork, StartFork, held
from tests.support import ROOT, SECONDS, Program, Start, assert_same, ended, scalars, until

FIT = ["-m", "fnn_lightning", "fit", "--trainer.accelerator", "cpu"]
GO_ON = re.compile(r"stopped by (\w+), saved; resume with: python (-m fnn_lightning fit .*)\n")


def wait_for(process: Program, step: int) -> None:
    """Read what a run prints until it has come to a step."""
    assert process.stdout
    for line in process.stdout:
        found = re.match(r" *[\d,]+/[\d,]+ +([\d,]+) ", line)  # epoch, step
        if found and int(found[1].replace(",", "")) >= step:
            return
    pytest.fail(f"the run ended: {process.communicate()[1]}")


def results(output: str) -> str:
    """Return what a run prints below its header, without the times."""
    return re.sub(r" +[\d.]+ s$", "", output.partition("\n\n")[2], flags=re.MULTILINE)


def done(process: Program) -> str:
    status, out, err = ended(process)
    assert status == 0, err
    return out


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def ddp(processes: int) -> list[str]:
    return ["--trainer.devices", str(processes), "--trainer.strategy", "ddp"]


def ranks(fork: StartFork, processes: int, *words: str, nodes: bool = False) -> list[Fork]:
    """Start each rank, as a cluster's scheduler does; on a node of its own if need be."""
    env = {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    name = "NODE_RANK" if nodes else "LOCAL_RANK"
    first, *others = words
    words = (first, "--trainer.accelerator=cpu", *ddp(processes), *others)
    return [
        fork(*words, **{**env, "RANK": str(rank), name: str(rank)}) for rank in range(processes)
    ]


def fit(fork: StartFork, *options: str, processes: int = 1, nodes: bool = False) -> str:
    """Train in forks to the end, and return what the first one prints."""
    if processes == 1:
        return done(fork("fit", "--trainer.accelerator=cpu", *options))
    first, *others = map(done, ranks(fork, processes, "fit", *options, nodes=nodes))
    assert not any(others), "the first process alone speaks"
    return first


def end_of(run: str) -> Any:
    return torch.load(Path(run) / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_run(run: str, other: str) -> None:
    """Compare all that two runs have left, to the bit."""
    assert_same(end_of(run), end_of(other))
    assert scalars(run) == scalars(other)


@pytest.mark.soak
def test_the_number_of_ranks_changes_nothing(data_dir: str, start: Start, fork: StartFork) -> None:
    # batches of 137, 137 and 1: shares of different sizes, and empty ones
    options = ["--data.data_dir", data_dir, "--data.batch_size", "137", "--model.hidden_dims=[16]"]
    options += ["--trainer.max_steps", "40", "--trainer.log_every_n_steps", "1"]
    outputs = [
        fit(fork, *options, "--run_folder", "run1"),
        done(start(*FIT, *options, *ddp(2), "--run_folder", "run2")),
        fit(fork, *options, "--run_folder", "run3", processes=3),
    ]
    assert "single steps" not in outputs[0]
    assert "the strategy is DDPStrategy" in " ".join(outputs[1].split())
    one, *others = (scalars(f"run{processes}") for processes in (1, 2, 3))
    assert len(one["train/loss"]) == 40
    for curves in others:
        for tag, points in one.items():
            assert [step for step, _ in points] == [step for step, _ in curves[tag]]
            values = [[value for _, value in each] for each in (curves[tag], points)]
            assert values[0] == pytest.approx(values[1], rel=1e-5), tag
    losses = [
        torch.load(f"run{processes}/checkpoints/last.ckpt", weights_only=True)["callbacks"][
            "TrainLog"
        ]["losses"]
        for processes in (1, 2, 3)
    ]
    assert torch.equal(losses[0], torch.tensor([value for _, value in one["train/loss"]]))
    for each in losses[1:]:
        torch.testing.assert_close(each, losses[0])
    for processes, output in zip((2, 3), outputs[1:], strict=True):
        # the first process alone speaks and writes
        assert results(output).replace(f"run{processes}", "run1") == results(outputs[0])
        assert len(list(Path(f"run{processes}").glob("config.yaml"))) == 1
        pids = {path.name.split(".")[-2] for path in Path(f"run{processes}").glob("events*")}
        assert len(pids) == 1

    last = "run2/checkpoints/last.ckpt"
    for command in ("test", "predict"):
        words = [command, "--ckpt_path", last, "--trainer.accelerator=cpu"]
        alone = done(fork(*words))
        # 100 images for 3 processes
        assert [done(rank) for rank in ranks(fork, 3, *words)] == [alone, "", ""]
        assert ("/ 100 correct" in alone) == (command == "test")


AUGMENTED = [
    "--data.augmentation.rotation=20",
    "--data.augmentation.scale=0.1",
    "--data.augmentation.shift=1",
    "--data.augmentation.elastic=1",
]
AUGMENTED += ["--ema.decay=0.9", "--model.label_smoothing=0.1", "--model.hidden_dims=[16]"]
AUGMENTED += ["--model.input_dropout=0.3"]


@pytest.mark.soak
def test_augmentation_dropout_and_ema_are_the_same_on_two_ranks(
    data_dir: str, fork: StartFork
) -> None:
    options = ["--data.data_dir", data_dir, *AUGMENTED, "--trainer.log_every_n_steps", "1"]
    fit(fork, *options, "--run_folder", "one")
    fit(fork, *options, "--run_folder", "two", processes=2)
    one, two = scalars("one"), scalars("two")
    for tag, points in one.items():
        values = [[value for _, value in each] for each in (two[tag], points)]
        assert values[0] == pytest.approx(values[1], rel=1e-4), tag

    # the hardest of the whole batch, however many of them a process has
    hardest = [*options, "--model.keep_hardest=0.3", "--model.dropout=0.2"]
    hardest += ["--data.augmentation.end=0.7"]
    hardest += ["--model.adversarial_radius=1", "--model.adversarial_steps=2"]
    hardest += ["--model.teachers=[one]"]
    fit(fork, *hardest, "--run_folder", "hard")
    fit(fork, *hardest, "--run_folder", "hard2", processes=2)
    alone, shared = scalars("hard"), scalars("hard2")
    assert alone["train/loss"] != one["train/loss"]
    assert set(alone) == set(shared)
    for tag, points in alone.items():
        values = [[value for _, value in each] for each in (shared[tag], points)]
        assert values[0] == pytest.approx(values[1], rel=1e-4), tag
    hardest += ["--model.batch_norm=true", "--run_folder", "no"]
    for refused in ranks(fork, 2, "fit", *hardest):
        status, _, err = ended(refused)
        assert status != 0
        assert "Expected one rank for batch normalisation with `keep_hardest`" in err

    # each rank normalises by its own share: other figures, but the same ones in a resumed run
    options += ["--model.batch_norm=true", "--model.dropout=0.2", "--model.warmup=2"]
    fit(fork, *options, "--run_folder", "straight", processes=2)
    for epochs in (2, 5):
        resumed = ["--run_folder", "resumed", f"--trainer.max_epochs={epochs}"]
        fit(fork, *options, *resumed, processes=2)
    ends = [end_of(name) for name in ("straight", "resumed")]
    for part in ("state_dict", "callbacks", "optimizer_states", "lr_schedulers"):
        assert_same(ends[0][part], ends[1][part], part)


@pytest.mark.soak
def test_each_rank_draws_random_numbers_of_its_own(data_dir: str, fork: StartFork) -> None:
    # with a bar, as in a terminal, which the first rank alone shows
    options = ["--data.data_dir", data_dir, "--model.hidden_dims=[16]"]
    options += ["--trainer.enable_progress_bar=true"]
    # two processes with as many images each, from the start and after one process
    fit(fork, *options, "--trainer.max_steps=1", "--run_folder", "two", processes=2)
    fit(fork, *options, "--trainer.max_steps=1", "--run_folder", "one")
    fit(fork, *options, "--trainer.max_steps=2", "--run_folder", "one", processes=2)
    for run in ("two", "one"):
        first, second = end_of(run)["callbacks"]["Resume"]["random_states"]
        assert not torch.equal(first["cpu"], second["cpu"])


def test_two_nodes_train_as_one(data_dir: str, start: Start, fork: StartFork) -> None:
    options = ["--data.data_dir", data_dir, "--trainer.max_epochs", "3", "--trainer.devices", "1"]
    port = free_port()
    nodes = [
        start("-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}",
              "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}",
              *FIT, *options, "--trainer.num_nodes", "2", "--run_folder", "two")
        for node in (0, 1)
    ]  # fmt: skip
    outputs = [done(node) for node in nodes]
    assert "device     2 × cpu" in outputs[0]
    assert outputs[1] == ""
    fit(fork, *options, "--run_folder", "one")
    one, two = scalars("one"), scalars("two")
    assert one["val/acc"] == two["val/acc"]
    assert [loss for _, loss in two["val/loss"]] == pytest.approx(
        [loss for _, loss in one["val/loss"]]
    )


LONG = ["--model.hidden_dims=[16]", "--optimizer=Adam", "--optimizer.lr=0.001"]
LONG += ["--data.batch_size=32", "--trainer.log_every_n_steps=7"]
LONG += ["--checkpoint.monitor=val/loss", "--checkpoint.every_n_steps=5"]
STEPS = 9  # in an epoch


@pytest.mark.soak
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_resumes_bit_for_bit(data_dir: str, fork: StartFork, processes: int) -> None:
    epochs = 16 if processes > 1 else 60  # steps of two processes are slower
    options = ["--data.data_dir", data_dir, *LONG, f"--trainer.max_epochs={epochs}"]
    fit(fork, *options, "--run_folder", "straight", processes=processes)
    words = ["--trainer.accelerator=cpu", *options, *(ddp(processes) if processes > 1 else [])]
    second = SECOND_RANK if processes > 1 else ""
    again = "lightning_logs/version_0/checkpoints/last.ckpt"
    stops = {signal.SIGTERM: 93, signal.SIGKILL: 183, signal.SIGINT: 273}
    for signum, step in stops.items() if processes == 1 else [(signal.SIGTERM, 30)]:
        run = fork("fit", *words, before=f"{held(step)}; {second}")
        words = ["--ckpt_path", again]
        until(Path(f"held_{step}"))
        sent = time.monotonic()
        run.send_signal(signum)
        status, _, err = ended(run, seconds=60)
        if signum == signal.SIGKILL:
            assert status == -signum
            # the log is ahead of it by a line
            assert end_of("lightning_logs/version_0")["global_step"] == 180
        else:
            assert time.monotonic() - sent < 10
            assert status == 128 + signum
            found = GO_ON.search(err)
            assert found, err
            assert found[1] == signal.Signals(signum).name
            assert found[2] == f"-m fnn_lightning fit --ckpt_path {again}"
    if processes > 1:
        run = fork("fit", *words, before=f"{held(75)}; {second}")
        until(Path("held_75"))
        child = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()[0]
        os.kill(int(child), signal.SIGKILL)
        Path("go").touch()
        status, _, err = ended(run, seconds=60)
        assert status == 1
        assert "error: another rank died" in err
        assert f"the last good checkpoint is {again}" in err
    fit(fork, *words, processes=processes)
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert_same_run("lightning_logs/version_0", "straight")


def test_signals_end_stages_that_save_nothing(data_dir: str, fork: StartFork) -> None:
    options = ["--data.data_dir", data_dir, "--model.hidden_dims=[8]"]
    endless = fork("fit", *options, "--trainer.max_epochs=9999", "--trainer.logger=false")
    wait_for(endless, 30)
    endless.send_signal(signal.SIGTERM)
    assert ended(endless)[::2] == (143, "stopped by SIGTERM, nothing was saved\n")

    fit(fork, *options, "--run_folder", "run")
    words = ["predict", "--ckpt_path", "run/checkpoints/last.ckpt", "--data.data_dir", data_dir]
    import fcntl  # which Windows lacks

    # a reader that does not read holds the command up in its midst
    many = "from fnn_lightning import datamodule; datamodule.EVAL_BATCH_SIZE = 1"
    reader, writer = map(os.fdopen, os.pipe(), "rw")
    with reader:
        with writer:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)  # half of what it prints
            run = fork(*words, "--trainer.accelerator=cpu", before=many, files=(writer, None))
        assert os.read(reader.fileno(), 1)
        run.send_signal(signal.SIGTERM)
        assert run.wait(SECONDS) == -signal.SIGTERM


@pytest.mark.soak
def test_a_requeued_slurm_job_resumes(
    data_dir: str, tmp_path: Path, start: Start, fork: StartFork
) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "scontrol").write_text('#!/bin/bash\necho "$@" >> scontrol.log\n')
    (bin_folder / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$@" > command\n')
    for name in ("scontrol", "srun"):
        (bin_folder / name).chmod(0o755)
    job = {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4217", "SLURM_JOB_NAME": "fnn_lightning", "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0",
        "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_NODELIST": "127.0.0.1",
        "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip
    options = ["--data.data_dir", data_dir, *LONG, "--trainer.max_epochs=16"]
    options += ["--trainer.accelerator", "cpu"]
    fit(fork, *options, "--run_folder", "straight", processes=2)

    def run_job(before: str = "") -> list[Fork]:
        """Run the script, and start the tasks of its `srun`."""
        done(start("bash", str(ROOT / "docs" / "slurm.sh"), *options, **job))
        command = Path("command").read_text().splitlines()
        assert command[:4] == ["--kill-on-bad-exit=1", "python", "-m", "fnn_lightning"]
        env = {**job, "MASTER_PORT": free_port()}
        return [
            fork(*command[4:], before=before, SLURM_PROCID=task, SLURM_LOCALID=task, **env)
            for task in "01"
        ]

    tasks = run_job(held(39))
    until(Path("held_39"))
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
    stopped = [ended(task) for task in tasks]
    assert "stopped by SIGUSR1, saved" in stopped[0][2], stopped
    assert Path("scontrol.log").read_text() == "requeue 4217\n"
    assert end_of("runs/4217")["global_step"] < 16 * STEPS
    for task in run_job():
        done(task)
    assert_same_run("runs/4217", "straight")


def test_two_simultaneous_runs_get_a_folder_each(mirror: Path, fork: StartFork) -> None:
    # the digests of the tiny archives stand in for those of MNIST, as in this process
    code = (
        "from torchvision.datasets import MNIST\n"
        f"MNIST.resources, MNIST.mirrors = {MNIST.resources!r}, []"
    )
    words = ["fit", "--data.data_dir", "new", "--data.mirror", str(mirror)]
    words += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    for run in [fork(*words, before=code) for _ in range(2)]:
        done(run)
    runs = sorted(Path("lightning_logs").iterdir())
    assert [run.name for run in runs] == ["version_0", "version_1"]
    for folder in runs:
        assert len({path.name.split(".")[-2] for path in folder.glob("events*")}) == 1
    assert_same(end_of(str(runs[0])), end_of(str(runs[1])))


def test_a_full_disk_keeps_the_last_checkpoint(data_dir: str, fork: StartFork) -> None:
    # a limit on the size of files is met like the end of a disk
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
    words = ["fit", "--data.data_dir", data_dir, "--trainer.max_epochs", "1"]
    done(fork(*words, "--model.hidden_dims=[4]"))
    last = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    before = last.read_bytes()
    status, _, err = ended(fork(*words, "--model.hidden_dims=[200]", before=code))  # 640 kB
    assert status == 2
    new = "lightning_logs/version_1/checkpoints/last.ckpt"
    assert err == (
        f"error: {new} cannot be written: File too large; earlier checkpoints are unchanged\n"
    )
    assert list(Path(new).parent.iterdir()) == []
    assert last.read_bytes() == before


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Make two network namespaces, joined by a cable; return their names."""
    names = [f"fnn{os.getpid()}n{node}" for node in (0, 1)]
    ip = shutil.which("ip")
    commands = [
        *(f"netns add {name}" for name in names),
        f"link add cable0 netns {names[0]} type veth peer name cable1 netns {names[1]}",
    ]
    for node, name in enumerate(names):
        commands += [
            f"-n {name} address add 10.201.0.{node + 1}/24 dev cable{node}",
            f"-n {name} link set cable{node} up",
            f"-n {name} link set lo up",
        ]
    try:
        for command in commands if ip else ():
            made = subprocess.run([str(ip), *command.split()], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"network namespaces are not allowed: {made.stderr.strip()}")
        if not ip:
            pytest.skip("needs `ip` of iproute2")
        yield names
    finally:
        for name in names if ip else ():
            subprocess.run([str(ip), "netns", "delete", name], capture_output=True)


@pytest.mark.soak
def test_a_cut_network_ends_the_run_which_resumes_bit_for_bit(
    data_dir: str, fork: StartFork, machines: list[str]
) -> None:
    options = ["--data.data_dir", data_dir, *LONG, "--trainer.max_epochs=16", "--trainer.devices=1"]
    options += ["--trainer.num_nodes=2", "--trainer.strategy=DDPStrategy"]
    options += ["--trainer.strategy.timeout=00:00:10"]

    fit(fork, *options, "--run_folder", "straight", processes=2, nodes=True)
    env = {"MASTER_ADDR": "10.201.0.1", "MASTER_PORT": "29500", "LOCAL_RANK": "0"}
    cut = [
        fork("fit", "--trainer.accelerator=cpu", *options, "--run_folder", "cut",
             before=f"{held(75)}; from tests.forks import enter; enter({machine!r})", **env,
             GLOO_SOCKET_IFNAME=f"cable{node}", RANK=str(node), NODE_RANK=str(node))
        for node, machine in enumerate(machines)
    ]  # fmt: skip
    until(Path("held_75"))
    cable = ["ip", "-n", machines[0], "link", "set", "cable0"]
    subprocess.run([*cable, "down"], check=True)
    Path("go").touch()
    for node, error in zip(cut, ("error", "error on rank 1"), strict=True):
        status, _, err = ended(node, seconds=60)
        assert status == 1
        assert f"{error}: {LOST}; the last good checkpoint is cut/checkpoints/last.ckpt\n" in err
    assert end_of("cut")["global_step"] == 72  # the last one saved before it was cut
    fit(fork, *options, "--run_folder", "cut", processes=2, nodes=True)
    assert_same_run("cut", "straight")


IN_PYTHON = """
import sys, torch
from lightning.pytorch import Trainer
from fnn_lightning import FNNLitModule, MNISTDataModule
from fnn_lightning.runs.checkpoint_io import AtomicCheckpointIO
from fnn_lightning.training.checkpointing import RunCheckpoint

if __name__ == "__main__":
    for name in sys.argv[3:]:
        module, data = FNNLitModule(hidden_dims=[8]), MNISTDataModule(data_dir=sys.argv[2])
        plugins = [AtomicCheckpointIO()] if name == "AtomicCheckpointIO" else None
        trainer = Trainer(
            strategy=sys.argv[1], devices=2, accelerator="cpu", max_epochs=1, plugins=plugins,
            callbacks=[RunCheckpoint()], default_root_dir=name, enable_progress_bar=False,
        )
        trainer.fit(module, datamodule=data)
        torch.save(module.state_dict(), f"{name}/trained.pt")
"""


@pytest.mark.parametrize(
    ("strategy", "names"),
    [
        ("ddp_notebook", ["AtomicCheckpointIO", "no_plugin"]),
        pytest.param("ddp_spawn", ["AtomicCheckpointIO"], marks=pytest.mark.soak),
    ],
)
def test_a_module_trained_in_other_processes_gets_its_weights(
    data_dir: str, tmp_path: Path, start: Start, strategy: str, names: list[str]
) -> None:
    Path("train.py").write_text(IN_PYTHON)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done(start("train.py", strategy, data_dir, *names, TMPDIR=str(temporary), PYTHONPATH=str(ROOT)))
    for name in names:
        run = Path(name, "lightning_logs", "version_0")
        last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == 3
        assert_same(dict(torch.load(f"{name}/trained.pt")), dict(last["state_dict"]))
    assert not list(tmp_path.rglob(".temp.ckpt"))
