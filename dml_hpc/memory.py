"""How much memory a node still has, and how much a process takes."""

from __future__ import annotations

import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def free_bytes() -> int | None:
    """Return what this process's node, or the control group it runs in, can still give it; None when nothing tells.

    A batch system gives a job a control group with less memory than the node has, and kills what takes more.
    """
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return free
    for line in lines:
        number, _, path = line.split(":", 2)
        if number == "0":  # version 2: one tree, and a limit may stand at every level
            own = Path(_GROUPS, path.lstrip("/"))
            for group in (own, *own.parents):
                free = min(free, _left(group, free))
    return max(free, 0)


def resident_bytes() -> int:
    """Return how much of this process lies in memory now, pages of mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """Return the most that this process ever had in memory, pages of mapped files included."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def _left(group: Path, otherwise: int) -> int:
    """Return how far a control group is from its limit; files it has cached would make room."""
    try:
        limit = int((group / "memory.max").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - int((group / "memory.current").read_text()) + int(statistics["inactive_file"])
    except (OSError, ValueError, KeyError):
        return otherwise
