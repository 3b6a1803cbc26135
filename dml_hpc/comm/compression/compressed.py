"""What the compressed reducers share: error feedback, and a sum that every rank has all of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.reducer import Reducer, Update

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

Opener = Callable[..., Reducer]
"""``opener(comm, size, dtype, weights=None)``, collective, opens the reducer that sums what is sent."""


class Compressed(Reducer):
    """Sums what is left of float32 vectors after compression; every rank owns the whole sum and updates all weights.

    What a call does not send stays in ``residual`` (size − exact,) float32 and is added to the next call's addend:
    Karimireddy, Rebjock, Stich and Jaggi, *Error feedback fixes SignSGD and other gradient compression schemes*,
    ICML 2019. Nothing is lost thus, only late. The residual is this rank's own, and lost where
    a run goes on from a checkpoint.
    """

    def __init__(self, comm: Intracomm, size: int, exact: int, weights_dtype: str | None):
        super().__init__(comm, size, "float32", weights_dtype)
        self.owned = (0, size)
        self._n = size - exact  # elements that are compressed
        self.residual = np.zeros(self._n, np.float32)
        self._inner: list[Reducer] = []

    def _adopt(self, inner: Reducer) -> Reducer:
        """Make ``inner``'s messages and its end this reducer's."""
        self._inner.append(inner)
        self.choice = self.choice or inner.choice
        if inner.bytes_sent is None:
            self.bytes_sent = None
        return inner

    def _sum(self, inner: Reducer) -> np.ndarray:
        """Collective: all-reduce an adopted reducer's buffer; return its total."""
        before = inner.bytes_sent or 0
        inner.allreduce()
        if self.bytes_sent is not None and inner.bytes_sent is not None:  # else one of several does not count
            self._sent(inner.bytes_sent - before)
        return inner.total

    @abstractmethod
    def _allreduce(self) -> None: ...

    def _reduce_scatter(self) -> None:
        self._allreduce()

    def _allgather(self) -> None:
        """Every rank has all of it."""

    def _reduce_update(self, update: Update) -> None:
        self._allreduce()
        update(self.total, 0, self.size)

    def close(self) -> None:
        """See `Reducer.close`."""
        super().close()
        for inner in self._inner:
            inner.close()
