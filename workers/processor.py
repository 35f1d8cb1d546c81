"""How many cores this process may use, which in a container is fewer than the machine has."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(limit: Path = _CGROUP_LIMIT) -> int:
    """Return the cores of this process's affinity, or fewer where its cgroup allows less time; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limit.read_text(encoding="ascii").split()
        allowed = int(quota) // int(period)
    except (OSError, ValueError):  # No cgroup of version 2, or "max".
        return cores
    return max(1, min(cores, allowed))


def use_threads(count: int | None) -> None:
    """Let torch compute with ``count`` threads, or where that is None, with one a core."""
    import torch

    torch.set_num_threads(count or usable_cores())
