"""The memory that MPICH's ranks of a node share is named after their job: a name must not outlive them.

MPICH removes the name when it is finalized, which a rank that is killed does not come to. A job that Slurm starts again
keeps its number: on a node that it has been on, its ranks would take what is left there for their own, and MPI_Init
fails ("failed to unpack address"), or never returns. (src/mpid/ch4/shm/posix/posix_init.c of MPICH 5.0.)
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

SHARED = Path("/dev/shm")
_NAMES = "mpich_shm_*"
YOUNG_S = 2.0
"""A rank maps the memory microseconds after it has made it: what nobody has mapped by then is nobody's."""


def drop_names() -> None:
    """Take the names off the segments that this process has mapped: once MPI has started, no rank looks for them.

    The memory stays until the last process that has mapped it ends, however it does.
    """
    for path in _mapped(Path("/proc/self/maps")):
        with suppress(OSError):  # another rank has
            path.unlink()


def drop_left(folder: Path = SHARED) -> None:
    """Remove the segments of this user that no process has mapped: a start of this job that was killed has left them.

    To be called before MPI starts. One rank does it at a time, so that none removes what another has made meanwhile.
    """
    if not any(folder.glob(_NAMES)):
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        old = {path for path in folder.glob(_NAMES) if _is_old(path)}
        if old:
            for maps in Path("/proc").glob("[0-9]*/maps"):
                old -= _mapped(maps)
        for path in old:
            with suppress(OSError):  # another user's
                path.unlink()
    finally:
        os.close(held)


def _is_old(path: Path) -> bool:
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > YOUNG_S
    return False


def _mapped(maps: Path) -> set[Path]:
    """Return the segments that a process has mapped and that still have their names."""
    found = set()
    with suppress(OSError), open(maps, errors="replace") as lines:
        for line in lines:
            if "/mpich_shm_" in line and not line.endswith(" (deleted)\n"):
                found.add(Path(line[line.index("/"):].rstrip("\n")))
    return found
