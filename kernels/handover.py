"""Numbers handed from one process to another in memory that they share: queues of one writer and one reader."""

from __future__ import annotations

from numba import njit

from dml_hpc.kernels.atomic import load_acquire, store_release
from dml_hpc.kernels.node import LINE


@njit(cache=True, nogil=True)
def put(queue, count, number):
    """Append ``number``, not below 0, to ``queue`` (LINE + places,) int64, zeros at first, as number ``count`` of all.

    The reader has taken so many that there is a place. What was written before, it sees when it has taken this one.
    """
    queue[LINE + count % (len(queue) - LINE)] = number
    store_release(queue, 0, count + 1)


@njit(cache=True, nogil=True)
def take(queue, count):
    """Return number ``count`` (from 0) of all that come through ``queue``, −1: it has not been put there yet."""
    if load_acquire(queue, 0) <= count:
        return -1
    return queue[LINE + count % (len(queue) - LINE)]
