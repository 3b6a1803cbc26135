"""What ranks add up when a sum is to be checked, and what the sum must then be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.elements import storage

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

PERIOD = 10_007
"""Addends repeat with this period: a prime, so that no segment in the wrong place looks right."""
LARGEST = 8
"""No addend is larger in magnitude."""
_EXACT = {"bfloat16": 1 << 8, "float16": 1 << 11}
"""Up to this magnitude every whole number is exact; the other types hold all below 2²⁴."""
_ROWS = 64
"""How many periods are compared at a time: large vectors need no second one of their size."""


class Addends:
    """The addends of ``rank`` out of ``ranks``, and their sum over the ranks, as one period each.

    ``exact``: whole numbers, so small that every partial sum is exact in ``dtype``, in whatever order they are added
    (with many ranks and 16 bits, some ranks add zero). Else normal deviates, for sums that lose something.
    """

    def __init__(self, rank: int, ranks: int, dtype: str, exact: bool = True):
        def period(one: int) -> np.ndarray:
            """Return (`PERIOD`,) float64."""
            if exact:
                return whole_numbers(one, ranks, dtype)
            return decode(encode(np.random.default_rng([PERIOD, one]).standard_normal(PERIOD), dtype), dtype)

        self.dtype = dtype
        self._own = encode(period(rank), dtype)
        self._sum = sum((period(one) for one in range(ranks)), np.zeros(PERIOD))
        self._expected = encode(self._sum, dtype)

    def write(self, buffer: np.ndarray) -> None:
        """Fill ``buffer`` (n,), of `storage` (``dtype``), with this rank's addend."""
        whole = len(buffer) // PERIOD * PERIOD
        buffer[:whole].reshape(-1, PERIOD)[:] = self._own
        buffer[whole:] = self._own[:len(buffer) - whole]

    def wrong(self, total: np.ndarray) -> int:
        """Return how many elements of ``total`` (n,) are not the sum, when it is exact."""
        return sum(int(np.count_nonzero(rows != self._expected[:rows.shape[1]])) for rows in _rows(total))

    def squares(self, total: np.ndarray) -> tuple[float, float]:
        """Return the squared lengths of ``total`` (n,) less the sum, and of the sum, in float64."""
        apart = length = 0.0
        for rows in _rows(total):
            exact = self._sum[:rows.shape[1]]
            apart += float(np.square(decode(rows, self.dtype) - exact).sum())
            length += float(np.square(exact).sum()) * len(rows)
        return apart, length


def whole_numbers(rank: int, ranks: int, dtype: str) -> np.ndarray:
    """Return the exact addends of ``rank``, (`PERIOD`,) float64: their magnitudes' sum over the ranks is exact too."""
    exact_to = _EXACT.get(dtype, 1 << 24)
    every = -(-ranks // exact_to)  # of so many ranks in a row, one adds something to an element
    largest = min(LARGEST, exact_to // -(-ranks // every))
    numbers = np.random.default_rng([PERIOD, rank]).integers(-largest, largest + 1, PERIOD)
    return np.where((np.arange(PERIOD) + rank) % every == 0, numbers, 0).astype(np.float64)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return float64 ``values`` as elements of ``dtype``, in its `storage`; bfloat16 rounds towards zero."""
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(storage(dtype))


def decode(elements: np.ndarray, dtype: str) -> np.ndarray:
    """Return elements of ``dtype``, in its `storage`, as float64."""
    if dtype == "bfloat16":
        return (elements.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return elements.astype(np.float64)


def differing(comm: Intracomm, total: np.ndarray) -> int:
    """Collective: return how many elements of this rank's ``total`` (n,) have other bits than rank 0's."""
    bits = total.view(f"u{total.itemsize}")
    count = 0
    for start in range(0, len(bits), _ROWS * PERIOD):
        part = bits[start:start + _ROWS * PERIOD]
        first = part.copy()
        comm.Bcast(first.view(np.uint8))
        count += int(np.count_nonzero(first != part))
    return count


def _rows(total: np.ndarray) -> list[np.ndarray]:
    """Return views of ``total`` that show all of it, of some periods each, the last of a part of one."""
    whole = len(total) // PERIOD
    rows = total[:whole * PERIOD].reshape(whole, PERIOD)
    return [*(rows[first:first + _ROWS] for first in range(0, whole, _ROWS)), total[None, whole * PERIOD:]]
