"""``topk``: each rank sends its largest elements only, as (place, value) pairs of 4 bytes; the rest waits.

Aji and Heafield, *Sparse communication for distributed gradient descent*, EMNLP 2017; Lin, Han, Mao, Wang and Dally,
*Deep gradient compression*, ICLR 2018.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.circle import Circle
from dml_hpc.comm.compression.compressed import Compressed
from dml_hpc.kernels import compression as kernels

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

SAMPLE = 1 << 14
"""Elements among which the threshold is sought."""
TINY = np.finfo(np.float32).tiny
GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples modulo 1 are spread evenly, however many there are."""


class TopKReducer(Compressed):
    """Adds up, in the order of the ranks, what each of them has selected: k = ⌈ratio · n⌉ elements at most.

    Messages are gathered, not summed. They go round a ring, whatever sums elsewhere: that costs every rank, and every
    node, the least any gathering can, (p − 1)·4·k bytes and a few for the heads. So it pays while p·ratio is small.

    A rank's threshold is the k-th largest of all elements, as estimated from some of them, other ones at each call.
    Where more elements pass it than fit, those of one block after another are sent, from another block on at each call.
    """

    name = compression = "topk"

    def __init__(self, comm: Intracomm, size: int, exact: int, weights_dtype: str | None, ratio: float):
        super().__init__(comm, size, exact, weights_dtype)
        self.total = np.zeros(size, np.float32)
        self._k = min(self._n, math.ceil(ratio * self._n))
        blocks = -(-self._n // kernels.BLOCK)
        # A row a rank: the head, the exact elements, the entries.
        self._messages = np.zeros((self.comm.size, 1 + blocks + exact + self._k), np.uint32)
        words = self._messages.reshape(-1)
        self._circle = Circle(self.comm, [words], words, np.add)
        self._head, self._exact = slice(1 + blocks), slice(1 + blocks, 1 + blocks + exact)
        self._entries = slice(1 + blocks + exact, None)
        self._calls = 0

    def _free(self) -> None:
        self._circle.free()

    def _allreduce(self) -> None:
        n = self._n
        for message in self._messages:
            kernels.clear_entries(message[self._head], message[self._entries], self.total[:n])
        self._select(self._messages[self.comm.rank])
        self._sent(self._circle.allgather())
        for message in self._messages:
            kernels.add_entries(message[self._head], message[self._entries], self.total[:n])
        self.total[n:] = self._messages[:, self._exact].view(np.float32).sum(axis=0, dtype=np.float64)

    def _select(self, message: np.ndarray) -> None:
        """Write what this rank sends."""
        gradient = self.buffer[:self._n]
        phase = self._calls * GOLDEN % 1
        self._calls += 1
        head = message[self._head]
        head[0] = int(phase * (len(head) - 1))
        message[self._exact] = self.buffer[self._n:].view(np.uint32)
        kernels.select(gradient, self.residual, self._threshold(gradient, phase), head, message[self._entries])

    def _threshold(self, gradient: np.ndarray, phase: float) -> np.float32:
        """Return the magnitude that about k elements of gradient + residual reach; zeros are never among them."""
        if self._k == self._n:
            return TINY
        stride = self._n // SAMPLE | 1  # odd, or it might meet one column of a matrix only
        first = int(phase * stride)
        sample = np.abs(gradient[first::stride] + self.residual[first::stride])
        np.fmin(sample, np.inf, out=sample)  # NaN, as large as can be
        place = len(sample) - max(1, round(len(sample) * self._k / self._n))
        return max(np.partition(sample, place)[place], TINY)
