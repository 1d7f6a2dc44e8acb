"""Two machines, as two network namespaces with a cable between them that the test unplugs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fnn_lightning.runs.signals import LOST
from tests.support import Start, ended
from tests.training.test_processes import FIT, LONG, assert_same_run, done, end_of, wait_for

EPOCHS, STEPS = 16, 9
MACHINES = ("one", "two")
PORT = "29500"  # of a network of the test's own
SECONDS_TO_LOSE = 10  # how long the ranks wait for each other


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Return the names of two network namespaces, joined by a veth pair, 10.77.0.1 and .2."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip: apt-get install iproute2")
    names = [f"fnn_{os.getpid()}_{machine}" for machine in MACHINES]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            pair = ["type", "veth", "peer", "name", "eth", "netns", names[1]]
            ip("link", "add", "eth", "netns", names[0], *pair)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs network namespaces, but ip says: {error.stderr.strip()}")
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth")
            for device in ("lo", "eth"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.mark.soak
def test_a_cut_cable_ends_the_run_and_resuming_gives_the_same_bits(
    data_dir: str, start: Start, machines: list[str]
) -> None:
    options = ["--data.data_dir", data_dir, *LONG, f"--trainer.max_epochs={EPOCHS}"]
    options += ["--trainer.devices=1", "--trainer.num_nodes=2"]
    options += ["--trainer.strategy=lightning.pytorch.strategies.DDPStrategy"]
    options += [f"--trainer.strategy.timeout=0:00:{SECONDS_TO_LOSE}"]

    def both(run: str, *config: str) -> list[subprocess.Popen[str]]:
        return [
            start("bash", "-c", 'exec ip netns exec "$@"', "bash", name, sys.executable,
                  "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}",
                  "--nproc-per-node=1", "--master-addr=10.77.0.1", f"--master-port={PORT}",
                  *FIT, *options, "--run_folder", run, *config,
                  GLOO_SOCKET_IFNAME="eth")
            for rank, name in enumerate(machines)
        ]  # fmt: skip

    for node in both("straight"):
        done(node)
    nodes = both("cut")
    wait_for(nodes[0], EPOCHS // 2 * STEPS + 4)  # in the middle of an epoch
    ip("-n", machines[0], "link", "set", "eth", "down")
    for node, error in zip(nodes, ("error", "error on rank 1"), strict=True):
        status, _, err = ended(node)
        assert status == 1
        message = f"{error}: {LOST}; the last good checkpoint is cut/checkpoints/last.ckpt\n"
        assert message in err
    assert 0 < end_of("cut")["global_step"] < EPOCHS * STEPS

    ip("-n", machines[0], "link", "set", "eth", "up")
    # the config names a class, the strategy, so it has to be trusted
    for node in both("cut", "--config", "cut/config.yaml"):
        done(node)
    assert_same_run("cut", "straight")
