"""Where a run's ranks were, and what the wire between them carries: what a record tells of the machine under a job."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dml_hpc.comm.topology import nodes_of
from dml_hpc.comm.wire import probe, worst
from dml_hpc.launch import launch
from dml_hpc.launchers import launcher_name
from dml_hpc.reports.allreduce import wires

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def whereabouts(comm: Intracomm, probing: bool) -> dict[str, Any]:
    """Collective: return `places`, and with ``probing`` also ``wire`` (None on one rank).

    For that, ranks play ping-pong with their neighbours, which takes about a second at most.
    """
    nodes = nodes_of(comm)
    told = places(comm, nodes)
    if probing:
        links = probe(comm, nodes)
        told["wire"] = wires(worst(links, True), worst(links, False), links)
    return told


def places(comm: Intracomm, nodes: Sequence[int]) -> dict[str, Any]:
    """Collective: return ``nodes`` (how many), ``hosts`` (of each rank) and ``launcher``, as a record holds them.

    The argument ``nodes`` (ranks,) tells the node of each rank.
    """
    return {"nodes": len(set(nodes)), "hosts": comm.allgather(platform.node()), "launcher": launcher_name(launch())}
