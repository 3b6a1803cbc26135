"""The GPUs that ``--device cuda`` takes: opened, counted, and told to the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dml_hpc.console import Console
from dml_hpc.data.on_device import DeviceRows
from dml_hpc.device import Device, open_device
from dml_hpc.mpi import agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

ROWS_SHARE = 0.8
"""Of a GPU's free memory that the rows of its ranks may take: the rest is for what they compute."""


def open_gpu(comm: Intracomm, console: Console, name: str) -> tuple[Device | None, int]:
    """Collective: open this rank's device (None for "cpu"); second, how many ranks share it.

    Raises `AgreedError` on all ranks where one of them has no GPU.
    """
    from dml_hpc.comm.topology import node_of

    if name == "cpu":
        return None, 1
    node = node_of(comm)
    try:
        with agreed(comm):
            device = open_device(name, node.rank)
        assert device is not None
        identities = node.allgather(device.identity)  # numbers are each process's own
    finally:
        node.Free()
    sharing = identities.count(device.identity)
    console.say(f"device   {device.description}" + (f", shared by {sharing} ranks" if sharing > 1 else ""))
    return device, sharing


def open_rows(comm: Intracomm, console: Console, name: str, kept_as: str | None = None) -> DeviceRows | None:
    """Collective: return what moves rows to this rank's device, None for "cpu"; see `open_gpu` and `DeviceRows`."""
    device, sharing = open_gpu(comm, console, name)
    if device is None:
        return None
    free_bytes = device.free_bytes()
    comm.Barrier()  # all have looked before anyone takes some
    return DeviceRows(device, int(ROWS_SHARE * free_bytes) // sharing, kept_as)
