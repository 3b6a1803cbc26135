"""Other people's all-reduces, to be measured beside our own: the MPI library's itself, and torch's gloo.

They look like reducers as far as a benchmark looks. (Horovod's is a reducer that can also be trained with: `horovod`.)
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.comm.elements import storage
from dml_hpc.comm.mpi_library import MOST_ELEMENTS

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm
    from typing_extensions import Self

GLOO_TIMEOUT_S = 3600
"""gloo gives up after this; before that, the guard's deadline ends the job."""


class _Open(ABC):
    """Closed at the end of a ``with`` block, if that ended well: closing is collective."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()


class RawLibrary(_Open):
    """`MPI_Allreduce` from one plain array into another, called through mpi4py on a communicator nobody watches."""

    name = "MPI_Allreduce"
    DTYPES = ("float32", "float64", "int64")
    """MPI has no 16-bit floats."""

    def __init__(self, comm: Intracomm, size: int, dtype: str):
        from mpi4py import MPI

        self.buffer = np.zeros(size, storage(dtype))
        self.total = np.zeros(size, storage(dtype))
        self._comm = MPI.Intracomm(comm.Dup())  # the plain class, not the watched one
        self._parts = [(self.buffer[start:start + MOST_ELEMENTS], self.total[start:start + MOST_ELEMENTS], MPI.SUM)
                       for start in range(0, size, MOST_ELEMENTS)]

    def allreduce(self) -> None:
        """Collective: make ``total`` the sum of every rank's ``buffer``."""
        for part in self._parts:
            self._comm.Allreduce(*part)

    def close(self) -> None:
        """Collective: give the communicator back."""
        self._comm.Free()


class GlooGroup(_Open):
    """Collective: all ranks of ``comm``, which share a node, as a torch process group; closed by `close`."""

    def __init__(self, comm: Intracomm):
        from datetime import timedelta

        import torch.distributed as distributed

        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host's own name need not resolve
        self._comm = comm
        self._distributed: Any = distributed
        # Rank 0's thread, where the others ask for each other's addresses; the system chooses its port.
        leads = comm.rank == 0
        store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if leads else None
        port = comm.bcast(store.port if store is not None else None)
        if store is None:
            store = distributed.TCPStore("127.0.0.1", port, is_master=False)
        distributed.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size,
                                       timeout=timedelta(seconds=GLOO_TIMEOUT_S))

    def close(self) -> None:
        """Collective: end the group."""
        self._comm.Barrier()
        self._distributed.destroy_process_group()
        self._comm.Barrier()  # rank 0 holds the store until all have left


class Gloo(_Open):
    """torch.distributed's all-reduce over gloo, in place; it needs an open `GlooGroup`."""

    name = "gloo"
    DTYPES = ("float32", "float64", "int64", "float16", "bfloat16")

    def __init__(self, comm: Intracomm, size: int, dtype: str):
        import torch
        import torch.distributed as distributed

        self.buffer = self.total = np.zeros(size, storage(dtype))
        self._tensor = torch.from_numpy(self.buffer).view(getattr(torch, dtype))
        self._allreduce = distributed.all_reduce

    def allreduce(self) -> None:
        """Collective: make ``total`` the sum of every rank's ``buffer``."""
        self._allreduce(self._tensor)

    def close(self) -> None:
        """Nothing of its own to give back."""


def gloo_absent(comm: Intracomm, nodes: int) -> str | None:
    """Collective: say why gloo cannot be measured, or None when it can: the same on every rank."""
    if nodes > 1:
        return "gloo (measured on one node only)"
    if not all(comm.allgather(find_spec("torch") is not None)):
        return "gloo (pip install torch --index-url https://download.pytorch.org/whl/cpu)"
    return None


def horovod_absent(comm: Intracomm) -> str | None:
    """Collective: say why Horovod cannot be measured, or None when it may: the same on every rank."""
    if not all(comm.allgather(find_spec("horovod") is not None)):
        return "Horovod (scripts/install_horovod.sh builds it)"
    return None
