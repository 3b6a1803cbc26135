"""Reducers of vectors on GPUs: one file a way to bring them together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dml_hpc.device import Device

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.comm.reducer import Reducer

CANDIDATES = ("nccl", "hierarchical", "ring", "tree", "mpi")
"""What ``auto`` measures on GPUs."""


def open_on_device(name: str, comm: Intracomm, size: int, dtype: str, device: Device, fan_in: int,
                   weights: str | None, tuning: Path | None) -> Reducer:
    """Collective: return the reducer called ``name`` of vectors on each rank's ``device``: see `comm.open_reducer`.

    Where a vector goes through the host's memory, because the MPI library does not take it from a device, the
    reducer's ``choice`` says so.
    """
    if name == "auto":
        from dml_hpc.comm.auto import open_auto

        return open_auto(comm, size, dtype, weights is not None, tuning,
                         lambda one: open_on_device(one, comm, size, dtype, device, fan_in, weights, None),
                         CANDIDATES, device.description)
    if name == "hierarchical":
        from dml_hpc.comm.on_device.hierarchical import open_hierarchical

        return open_hierarchical(comm, size, dtype, device, weights)
    if name == "nccl":
        from dml_hpc.comm.on_device.nccl import NcclReducer

        return NcclReducer(comm, size, dtype, device, weights)
    from dml_hpc.comm.on_device.staged import open_staged

    why = "the library's own sums are the host's"
    if name in ("ring", "tree"):
        from dml_hpc.comm.on_device.aware import why_staged

        refusal = why_staged(comm, device)
        if refusal is None:
            from dml_hpc.comm import open_plain
            from dml_hpc.comm.on_device.places import OnDevice

            return open_plain(name, comm, size, dtype, fan_in, weights, OnDevice(device))
        why = refusal
    return open_staged(name, comm, size, dtype, device, fan_in, weights, why)
