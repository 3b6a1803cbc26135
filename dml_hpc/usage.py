"""What this process has taken of its machine: CPU time, pages waited for, bytes from storage, cores taken away."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import NamedTuple

_IO = Path("/proc/self/io")


class Usage(NamedTuple):
    """What the kernel has counted of this process and all its threads, since it began.

    ``cpu_s`` in user and system mode; ``major_faults``: pages that had to be waited for, of mapped files too;
    ``switches``: how often it was put off a core that it still wanted; ``disk_bytes`` fetched from storage (not from
    the page cache), read ahead or mapped included, None where the kernel does not say.
    """

    cpu_s: float
    major_faults: int
    switches: int
    disk_bytes: int | None


def usage() -> Usage:
    """Return what was taken until now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(used.ru_utime + used.ru_stime, used.ru_majflt, used.ru_nivcsw, _read_bytes())


def since(before: Usage) -> dict[str, float | None]:
    """Return what was taken since ``before``, by the names that a record has for it."""
    now = usage()
    known = now.disk_bytes is not None and before.disk_bytes is not None
    return {"cpu_s": round(now.cpu_s - before.cpu_s, 6), "major_faults": now.major_faults - before.major_faults,
            "switches": now.switches - before.switches,
            "disk_bytes": (now.disk_bytes or 0) - (before.disk_bytes or 0) if known else None}


def _read_bytes() -> int | None:
    try:
        for line in _IO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "read_bytes":
                return int(value)
    except (OSError, ValueError):
        pass
    return None
