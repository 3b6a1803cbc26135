"""``powersgd``: the vector as a matrix, of which only the best few directions are sent.

Vogels, Karimireddy and Jaggi, *PowerSGD: practical low-rank gradient compression for distributed optimization*,
NeurIPS 2019, algorithm 1: one step of subspace iteration a call, begun where the last one ended.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.compression.compressed import Compressed, Opener
from dml_hpc.kernels import low_rank as kernels

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def shape(n: int) -> tuple[int, int]:
    """Return rows and columns of the matrix, as square as can be, that ``n`` elements are seen as."""
    rows = math.isqrt(max(n - 1, 0)) + 1
    return rows, -(-n // rows)


class PowerReducer(Compressed):
    """Sends P = MQ, then Q = MᵀP, of ``rank`` columns each; ``total`` is PQᵀ, and lies where ``buffer`` lies.

    M (rows, cols) is a rank's gradient + residual, row after row; P is made orthonormal between the two sums, so PPᵀM
    is what this rank has sent and M − PPᵀM what is left. (The paper takes from M the mean of what all ranks sent:
    the sum over the ranks is the same, but a rank's share of it grows without end where ranks differ.) All ranks
    compute ``total`` from the same P and Q in the same order, and get the same bits. Exact elements travel with P.
    """

    compression = "powersgd"

    def __init__(self, open_inner: Opener, comm: Intracomm, size: int, exact: int, weights_dtype: str | None,
                 rank: int):
        super().__init__(comm, size, exact, weights_dtype)
        rows, cols = shape(self._n)
        padded = np.zeros(rows * cols, np.float32)
        self.residual = padded[:self._n]
        self._matrix = padded.reshape(rows, cols)
        self._sum_p = self._adopt(open_inner(self.comm, rank * rows + exact, "float32"))
        self._sum_q = self._adopt(open_inner(self.comm, rank * cols, "float32"))
        self.name = f"powersgd {self._sum_p.name}"
        self._p = np.empty((rank, rows), np.float32)  # factors are held transposed
        self._q = np.zeros((rank, cols), np.float32)
        self._own_q = np.empty_like(self._q)
        kernels.orthonormalise(self._q)  # zeros give a random basis, the same one on every rank

    def _allreduce(self) -> None:
        n, p, own_q = self._n, self._p, self._own_q
        gradient, exact = self.buffer[:n], self.buffer[n:]
        self.residual += gradient
        addend = self._sum_p.buffer
        np.matmul(self._q, self._matrix.T, out=addend[:p.size].reshape(p.shape))
        addend[p.size:] = exact
        summed = self._sum(self._sum_p)
        p[:] = summed[:p.size].reshape(p.shape)
        exact[:] = summed[p.size:]
        kernels.orthonormalise(p)
        np.matmul(p, self._matrix, out=own_q)
        self._sum_q.buffer[:] = own_q.reshape(-1)
        self._q[:] = self._sum(self._sum_q).reshape(self._q.shape)
        kernels.expand(p, self._q, own_q, self.residual, self.buffer[:n])
        kernels.orthonormalise(self._q)  # for the next call: where it points counts, not how long it is
