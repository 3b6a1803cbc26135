"""``float16`` and ``bfloat16``: half the bytes; an inner reducer of that type sums the rounded addends.

What rounding the addends loses comes with the next call; but each addition on the way rounds once more (by at most
2⁻¹¹ of the partial sum in float16, 2⁻⁸ in bfloat16), and that error nobody keeps.

Elements that must be exact travel in the same message, in places that each rank has for itself, every byte as a number
of its own: numbers below 256 are exact in both types, and so is a sum in which all other addends are zero.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.compression.compressed import Compressed, Opener
from dml_hpc.kernels import compression as kernels
from dml_hpc.kernels import half

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

LARGEST_SCALE = 100
"""As a power of two: neither it nor its inverse times a float16 leaves float32's range."""


class HalfReducer(Compressed):
    """What both types share; ``total`` is ``buffer``. ``notes`` are floats that ranks tell one another beside."""

    TYPE: str
    NOTES = 0

    def __init__(self, open_inner: Opener, comm: Intracomm, size: int, exact: int, weights_dtype: str | None):
        super().__init__(comm, size, exact, weights_dtype)
        self._floats = exact + self.NOTES
        place = 4 * self._floats
        self._wire = self._adopt(open_inner(self.comm, self._n + self.comm.size * place, self.TYPE))
        self._place = slice(self._n + self.comm.rank * place, self._n + (self.comm.rank + 1) * place)
        self.name = f"{self.TYPE} {self._wire.name}"
        self.compression = self.TYPE

    def _allreduce(self) -> None:
        n, wire = self._n, self._wire.buffer
        notes = self._encode(self.buffer[:n], wire[:n])
        floats = np.array([*self.buffer[n:], *notes], np.float32)
        wire[n:] = 0
        self._round(floats.view(np.uint8).astype(np.float32), wire[self._place])
        summed = self._sum(self._wire)
        self._decode(summed[:n], self.buffer[:n])
        values = np.empty(len(summed) - n, np.float32)
        self._widen(summed[n:], values)
        floats = values.astype(np.uint8).view(np.float32).reshape(self.comm.size, self._floats)  # a row a rank
        exact = self.size - n
        self.buffer[n:] = floats[:, :exact].sum(axis=0, dtype=np.float64)
        self._hear(floats[:, exact:])

    @abstractmethod
    def _encode(self, gradient: np.ndarray, wire: np.ndarray) -> list[float]:
        """Write gradient + residual to ``wire``, leave the rest, and return what the other ranks are to be told."""

    @abstractmethod
    def _decode(self, summed: np.ndarray, total: np.ndarray) -> None: ...

    @abstractmethod
    def _round(self, values: np.ndarray, out: np.ndarray) -> None: ...

    @abstractmethod
    def _widen(self, halves: np.ndarray, out: np.ndarray) -> None: ...

    def _hear(self, notes: np.ndarray) -> None:
        """Take the ``notes`` (ranks, notes) of all ranks."""


class BFloat16Reducer(HalfReducer):
    """The upper half of a float32: its range, with 8 bits of precision."""

    TYPE = "bfloat16"

    def _encode(self, gradient: np.ndarray, wire: np.ndarray) -> list[float]:
        kernels.encode_bfloat16(gradient, self.residual, wire)
        return []

    def _decode(self, summed: np.ndarray, total: np.ndarray) -> None:
        half.widen_bfloat16(summed, total)

    def _round(self, values: np.ndarray, out: np.ndarray) -> None:
        half.round_bfloat16(values, out)

    def _widen(self, halves: np.ndarray, out: np.ndarray) -> None:
        half.widen_bfloat16(halves, out)


class Float16Reducer(HalfReducer):
    """11 bits of precision in a range of 2⁻¹⁴ … 2¹⁵, into which a common scale, a power of two, brings the addends.

    Every rank tells the others its largest element, and the next call is scaled so that the largest of all is at most
    a quarter of the limit 2¹⁵/p. No rank sends more than that limit: what is cut off stays in the residual, and no sum
    of finite numbers overflows (with up to 1,400 ranks, whatever the roundings on the way). The ranks agree on the
    first scale in a message of its own.
    """

    TYPE = "float16"
    NOTES = 1

    def __init__(self, open_inner: Opener, comm: Intracomm, size: int, exact: int, weights_dtype: str | None):
        super().__init__(open_inner, comm, size, exact, weights_dtype)
        # As a power of two. Float16 reaches to 2¹⁶: the other half is for roundings.
        self._limit = 15 - (self.comm.size - 1).bit_length()
        self._scale: float | None = None

    def _encode(self, gradient: np.ndarray, wire: np.ndarray) -> list[float]:
        if self._scale is None:
            self._scale = 1.0
            peak = max(gradient.max(initial=0), -gradient.min(initial=0))
            self._hear(np.array(self.comm.allgather(peak)))
        limit = 2.0 ** self._limit / self._scale
        return [kernels.encode_float16(gradient, self.residual, wire.view(np.uint16), np.float32(self._scale),
                                       np.float32(limit))]

    def _decode(self, summed: np.ndarray, total: np.ndarray) -> None:
        assert self._scale is not None
        half.widen_float16(summed, total, 1 / self._scale)

    def _round(self, values: np.ndarray, out: np.ndarray) -> None:
        half.round_float16(values, out)

    def _widen(self, halves: np.ndarray, out: np.ndarray) -> None:
        half.widen_float16(halves, out)

    def _hear(self, notes: np.ndarray) -> None:
        peak = notes.max(initial=0, where=np.isfinite(notes))
        if peak > 0:
            exponent = self._limit - 2 - math.frexp(peak)[1]
            self._scale = 2.0 ** max(-LARGEST_SCALE, min(LARGEST_SCALE, exponent))
