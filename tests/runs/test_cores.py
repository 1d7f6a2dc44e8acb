import os
import subprocess
import sys
from pathlib import Path

import pytest

from fnn_lightning.runs import cores
from fnn_lightning.runs.cores import (
    available_cores,
    cgroup_quota,
    limit_spinning,
    reproduce_products,
)


def test_threads_sleep_soon_unless_the_user_has_a_say() -> None:
    environ = {"PATH": "/bin"}
    limit_spinning(environ)
    assert environ == {"PATH": "/bin", "GOMP_SPINCOUNT": cores.SPIN_COUNT, "KMP_BLOCKTIME": "0"}
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"):
        environ = {name: "the user's"}
        limit_spinning(environ)
        assert environ == {name: "the user's"}


def test_the_user_may_set_how_products_are_computed() -> None:
    environ: dict[str, str] = {}
    reproduce_products(environ)
    assert environ == {"MKL_CBWR": "AUTO,STRICT"}
    environ = {"MKL_CBWR": "COMPATIBLE"}
    reproduce_products(environ)
    assert environ == {"MKL_CBWR": "COMPATIBLE"}


def test_the_variables_are_there_before_pytorch() -> None:
    program = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            print(os.environ['GOMP_SPINCOUNT'], os.environ['MKL_CBWR'])\n"
        "            raise SystemExit\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from fnn_lightning import FNN\n"
    )
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in (*cores.WAITING, "MKL_CBWR")
    }
    printed = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60
    )
    assert printed.stdout.split() == [cores.SPIN_COUNT, "AUTO,STRICT"], printed.stderr


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/job/step\n", {"job/step/cpu.max": "150000 100000\n"}, 1.5),
        # the least of the cgroup's own and those around it
        ("0::/job/step\n", {"job/cpu.max": "200000 100000\n", "job/step/cpu.max": "max 1\n"}, 2),
        # in a container, whose own cgroup is mounted as the root
        ("0::/docker/abc\n", {"cpu.max": "50000 100000\n"}, 0.5),
        (
            "3:memory:/\n2:cpu,cpuacct:/job\n",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "300000\n",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            "2:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            float("inf"),
        ),
        ("0::/\n", {}, float("inf")),
        ("nonsense", {}, float("inf")),
    ],
)
def test_the_quota_of_the_cgroup(
    own: str, files: dict[str, str], quota: float, tmp_path: Path
) -> None:
    write(tmp_path / "own", own)
    for name, text in files.items():
        write(tmp_path / "cgroup" / name, text)
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "own") == quota
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "missing") == float("inf")


def test_the_least_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = set(range(8))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: bound, raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(cores, "cgroup_quota", lambda: 2.5)
    assert available_cores() == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert available_cores() == 2
    bound.clear()
    bound.add(5)
    assert available_cores() == 1
