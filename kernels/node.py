"""Ranks of one node, meeting in shared memory: a barrier of flags, and sums that read the neighbours' buffers."""

from __future__ import annotations

from numba import njit

from dml_hpc.kernels.atomic import load_acquire, relax, store_release, yield_core

LINE = 8
"""Flags of int64 in a cache line: each rank's flag has a line of its own, which only it writes."""
_BLOCK_BYTES = 8192


@njit(cache=True, nogil=True)
def meet(flags, rank, count, spins, patience):
    """Say in ``flags`` (ranks · LINE,) int64 that ``rank`` is at its ``count``-th meeting; return whether all are.

    Polls ``spins`` times, then ``patience`` times more with the core offered to others in between, and returns False
    when a rank is still missing: the caller looks after signals and calls again. What a rank wrote before a meeting,
    all ranks see after it.
    """
    store_release(flags, rank * LINE, count)
    polls = 0
    for other in range(len(flags) // LINE):
        while load_acquire(flags, other * LINE) < count:
            if polls >= spins + patience:
                return False
            if polls < spins:
                relax()
            else:
                yield_core()
            polls += 1
    return True


@njit(cache=True, nogil=True)
def _add(out, a):
    for j in range(len(out)):
        out[j] += a[j]


@njit(cache=True, nogil=True)
def _add_two(out, a, b):
    for j in range(len(out)):
        out[j] += a[j] + b[j]


@njit(cache=True, nogil=True)
def add_rows(inputs, rank, start, out):
    """Add the other ranks' elements from ``start`` on to ``out`` (count,), which holds this rank's own.

    ``inputs`` is (ranks, elements), row r the vector of rank r; row ``rank`` is left out. Rows are added in turn from
    ``rank + 1`` on, so that neighbours do not all read the same memory at the same time. A block stays in the
    first-level cache from its first load to its last store.
    """
    ranks = inputs.shape[0]
    if ranks == 2:  # nothing to keep in cache between rows
        _add(out, inputs[1 - rank][start:start + len(out)])
        return
    step = _BLOCK_BYTES // inputs.itemsize
    for low in range(0, len(out), step):
        total = out[low:low + step]
        first, last = start + low, start + low + len(total)
        turn = 1
        while turn + 1 < ranks:
            _add_two(total, inputs[(rank + turn) % ranks][first:last], inputs[(rank + turn + 1) % ranks][first:last])
            turn += 2
        if turn < ranks:
            _add(total, inputs[(rank + turn) % ranks][first:last])


@njit(cache=True, nogil=True)
def node_allreduce(flags, rank, count, inputs, buffer, start, stop, spins, patience):
    """`meet`, add the neighbours' elements ``start`` … ``stop − 1`` to those of this rank's ``buffer``, `meet`.

    ``flags`` is (2 or more, ranks · LINE), one row a meeting. Returns False when a rank is missing; call again then,
    with the same arguments: what is done is not done twice.
    """
    if load_acquire(flags[1], rank * LINE) < count:
        if not meet(flags[0], rank, count, spins, patience):
            return False
        add_rows(inputs, rank, start, buffer[start:stop])
    return meet(flags[1], rank, count, spins, patience)
