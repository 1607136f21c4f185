"""How many CPU threads this process may really use."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

QuotaReader = Callable[[Path], float | None]


def available_threads() -> int:
    """CPUs granted to this process: affinity mask and cgroup CPU quota, the smaller; at least 1."""
    quota = cgroup_cpus()
    granted = affinity_cpus()
    return granted if quota is None else max(1, min(granted, math.ceil(quota)))


def affinity_cpus() -> int:
    """CPUs in this process's affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_cpus(root: Path = Path("/")) -> float | None:
    """CPUs that the Linux cgroup quota (v1 or v2) grants (1.5: 150 ms in every 100), or None.

    The smallest of the process's own group and the groups above it. `root` is where /proc and
    /sys are looked for.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return None
    quotas: list[float] = []
    for line in lines:
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        hierarchy, controllers, group = parts
        if hierarchy == "0" and not controllers:
            quotas += _quotas(root / "sys/fs/cgroup", group, _quota_v2)
        elif "cpu" in controllers.split(","):
            for mount in (controllers, "cpu"):
                quotas += _quotas(root / "sys/fs/cgroup" / mount, group, _quota_v1)
    return min(quotas, default=None)


def _quotas(mount: Path, group: str, read: QuotaReader) -> list[float]:
    """Quotas of `group` and of every group above it, up to the mount.

    Inside a container the mount often shows the group itself as its root, while the name in
    /proc is the host's: folders that are not there are passed over.
    """
    folder = mount / group.lstrip("/")
    folders = [folder, *folder.parents]
    above = folders[: folders.index(mount) + 1] if mount in folders else [mount]
    return [quota for each in above if (quota := read(each)) is not None]


def _quota_v2(folder: Path) -> float | None:
    words = _words(folder / "cpu.max")
    if len(words) != 2 or words[0] == "max":
        return None
    return _ratio(words[0], words[1])


def _quota_v1(folder: Path) -> float | None:
    quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    if len(quota) != 1 or len(period) != 1 or quota[0] == "-1":
        return None
    return _ratio(quota[0], period[0])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except (OSError, ValueError):
        return []


def _ratio(quota: str, period: str) -> float | None:
    try:
        microseconds, every = int(quota), int(period)
    except ValueError:
        return None
    return microseconds / every if microseconds > 0 and every > 0 else None
