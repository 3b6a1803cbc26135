"""What every reducer is: the owner of a buffer that becomes the sum of all ranks' buffers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.watch import waiting

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Reducer(ABC):
    """Sums one vector over the ranks of a communicator.

    ``buffer`` has shape (size,) and the dtype asked for. Before `allreduce` each rank's buffer holds its own
    addend, afterwards the same sum, to the bit, on every rank. Nothing is allocated or copied per call beyond
    what the algorithm sends. ``bytes_sent`` counts what this rank has sent so far (for the ``mpi`` reducer it is
    None: the library does not say).
    """

    name: str

    def __init__(self, comm: Intracomm, size: int, dtype: str):
        self.comm = comm.Dup()  # our messages can never meet the caller's
        self.size = size
        self.buffer = self._allocate(size, np.dtype(dtype))
        self.bytes_sent: int | None = 0

    def _allocate(self, size: int, dtype: np.dtype) -> np.ndarray:
        return np.zeros(size, dtype)

    def allreduce(self) -> None:
        """Collective: replace every rank's buffer by the sum of all of them."""
        with waiting(f"the {self.name} all-reduce"):
            self._sum()

    @abstractmethod
    def _sum(self) -> None:
        """Do it."""

    def close(self) -> None:
        """Collective: give the communicator back. The buffer stays readable."""
        self.comm.Free()

    def __enter__(self) -> Reducer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        # Freeing is collective: after a failure on this rank alone it would wait for ranks that never come.
        if kind is None:
            self.close()
