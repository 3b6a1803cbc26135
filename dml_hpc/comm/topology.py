"""Which ranks share a node, and in which order they sit there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

NODES = Path("/sys/devices/system/node")
"""Where Linux lists NUMA domains and their cores."""


def node_of(comm: Intracomm) -> Intracomm:
    """Collective: return the communicator of the ranks of ``comm`` on this rank's node, ordered by NUMA domain.

    Neighbours in it share a memory controller wherever the launcher's binding allows.
    """
    from mpi4py import MPI

    return comm.Split_type(  # type: ignore[return-value]
        MPI.COMM_TYPE_SHARED, numa_domain() * comm.size + comm.rank)


def numa_domain() -> int:
    """Return the number of the NUMA domain this process is bound to; 0 when it may run in several, or none is known."""
    own = os.sched_getaffinity(0)
    for folder in sorted(NODES.glob("node[0-9]*")):
        try:
            cores = _cores((folder / "cpulist").read_text())
        except OSError:
            continue
        if own <= cores:
            return int(folder.name.removeprefix("node"))
    return 0


def _cores(text: str) -> set[int]:
    """Return the cores of a list such as ``0-3,8``."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cores.update(range(int(first), int(last or first) + 1))
    return cores


def nodes_of(comm: Intracomm) -> list[int]:
    """Collective: return the node of each rank, as the lowest rank on it."""
    node = node_of(comm)
    lowest = min(node.allgather(comm.rank))
    node.Free()
    return comm.allgather(lowest)
