"""The cores of this process: how many it may use, how its threads wait and divide a product."""

import math
import os
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

# turns of a loop, 300,000 by default; `docs/speed.md` has the figures behind it
SPIN_COUNT = "5000"
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def limit_spinning(environ: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads sleep when they have waited for a moment, unless the user has a say.

    By default a thread that has done its part of a product keeps its core busy until the others
    have done theirs. Where another program needs that core, the threads then wait for each other
    for longer than they compute. The runtimes read the variables when they are loaded, so this has
    to come before PyTorch is imported. GNU's, in PyTorch's packages for Linux, obeys
    GOMP_SPINCOUNT. Intel's and LLVM's, in conda's packages and on macOS, obey KMP_BLOCKTIME, in
    milliseconds. MKL uses whichever of them is loaded.

    Args:
        environ: The environment, which is changed.
    """
    if not any(name in environ for name in WAITING):
        environ["GOMP_SPINCOUNT"] = SPIN_COUNT
        environ["KMP_BLOCKTIME"] = "0"


def reproduce_products(environ: MutableMapping[str, str]) -> None:
    """Let products of matrices have the same bits on other numbers of threads.

    MKL, which computes them on x86-64, then divides the result among threads, but none of its sums
    unless the threads are many for a small matrix, and rounds the same wherever in memory the
    matrices lie. It reads the variable at its first product. Source: oneMKL's developer guide,
    "Strict CNR mode".

    Args:
        environ: The environment, which is changed where the user has not set the variable.
    """
    environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def available_cores() -> int:
    """Return how many cores this process may keep busy.

    The least of the cores that it is bound to, the quota of its cgroup, as set by
    `docker run --cpus`, and SLURM's `--cpus-per-task`.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = [bound or 1, cgroup_quota()]
    with suppress(KeyError, ValueError):
        limits.append(int(os.environ["SLURM_CPUS_PER_TASK"]))
    return max(1, math.ceil(min(limits)))


def cgroup_quota(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float:
    """Return how many cores the cgroups of this process grant it; infinity if they do not say.

    Args:
        root: Where cgroups are mounted.
        own: Names the cgroups of this process.
    """
    quotas = [math.inf]
    with suppress(OSError, ValueError):  # not on Linux
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
                continue
            folder = root / controllers / path.lstrip("/")
            # those further up are limits too; in a container the path may be one of the host
            for each in (folder, *folder.parents):
                if root not in (each, *each.parents):
                    break
                with suppress(OSError, ValueError, ZeroDivisionError):
                    if controllers:  # version 1
                        quota = (each / "cpu.cfs_quota_us").read_text()
                        period = (each / "cpu.cfs_period_us").read_text()
                    else:
                        quota, period = (each / "cpu.max").read_text().split()
                    if int(quota) > 0:  # -1 and "max" are no limit
                        quotas.append(int(quota) / int(period))
    return min(quotas)
