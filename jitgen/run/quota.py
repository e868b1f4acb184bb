"""How many CPUs this process may keep busy: its affinity, and the quota of its control groups.

A container with a quota of one CPU on a machine of 64 has one: more threads would only use up the
quota sooner, and wait for each other while none runs. Not here: threads (`jitgen.run.threads`).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from functools import lru_cache

#: Where control groups are mounted (cgroups(7)); of version 1 also under the controllers' names
ROOT = "/sys/fs/cgroup"
CONTROLLERS = ("cpu", "cpu,cpuacct")


@lru_cache(maxsize=1)
def cpus() -> int:
    """CPUs of this process: those it may run on, and no more than its quota, rounded up, pays for.

    Looked up once in a process.
    """
    quota = min(quotas("/proc/self/cgroup", ROOT), default=math.inf)
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota >= allowed else max(1, math.ceil(quota))


def quotas(membership: str, root: str) -> Iterator[float]:
    """CPUs' worth of time a period, of each group that this process is in and that has a limit.

    A group's limit holds for all below it, so every folder up to the root counts. `membership` is
    the file that says which groups (cgroups(7)); in a container they may be missing under `root`,
    which then is the container's own group.
    """
    for line in _read(membership).splitlines():
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and not controllers:
            for folder in _upwards(root, path):
                quota, _, period = _read(f"{folder}/cpu.max").strip().partition(" ")
                yield from _ratio(quota, period)
        elif "cpu" in controllers.split(","):
            for name in CONTROLLERS:
                for folder in _upwards(f"{root}/{name}", path):
                    quota = _read(f"{folder}/cpu.cfs_quota_us")
                    yield from _ratio(quota, _read(f"{folder}/cpu.cfs_period_us"))


def _upwards(top: str, path: str) -> Iterator[str]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        yield "/".join([top, *parts[:depth]])


def _ratio(quota: str, period: str) -> Iterator[float]:
    # "max" or -1: no limit
    with contextlib.suppress(ValueError, ZeroDivisionError):
        if int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


if hasattr(os, "register_at_fork"):
    # a child may be put into another group
    os.register_at_fork(after_in_child=cpus.cache_clear)
