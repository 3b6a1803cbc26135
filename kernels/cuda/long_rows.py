"""Launches ``kernels/long_rows.cu``: lists the parts of sparse rows that are too long for one block.

Whether a matrix has such rows is known where it is copied to the device: `long_entries` asks the host's row pointers.
Where there are none, nothing is launched, and nothing differs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dml_hpc.device import Array, Device

VERY_LONG = 8192
"""Entries: rows of more are cut into parts. Also in ``long_rows.cuh``."""
_MOST_THREADS = 256
_BLOCKS_A_PROCESSOR = 8


@dataclass(frozen=True)
class Parts:
    """The parts of the long rows among those that are taken; arrays of the device.

    ``where`` (count,) int64 is meant at places of long rows only: which of the parts is the row's first, −1 where there
    is no room for it. ``parts`` (room, 2) int64 are the row of each, and which of the row's parts it is; the first
    ``used`` (1,) uint64 of them are there.
    """

    where: Array
    parts: Array
    used: Array
    room: int


def long_entries(indptr: np.ndarray) -> int:
    """Return how many entries lie in rows of more than `VERY_LONG` of them; ``indptr`` (rows + 1,) is the host's."""
    lengths = np.diff(indptr)
    return int(lengths[lengths > VERY_LONG].sum())


def find(device: Device, indptr: Array, rows: Array | None, count: int, part: int, entries: int) -> Parts | None:
    """Return the parts, of ``part`` entries, of the long rows of a batch of ``count`` rows; None: there are none.

    ``entries`` is how many entries all of the matrix's long rows have, at most. There is room for each of these rows
    once: one that ``rows`` name again may find none.
    """
    if entries <= VERY_LONG or not count:
        return None
    room = -(-entries // part) + entries // VERY_LONG
    found = Parts(device.empty(count, "int64"), device.empty((room, 2), "int64"), device.zeros(1, "uint64"), room)
    threads = min(device.block_threads, _MOST_THREADS)
    blocks = min(-(-count // threads), _BLOCKS_A_PROCESSOR * device.processors)
    device.launch("long_rows.cu", "find_parts", blocks, threads, indptr, rows, count, part, room, found.used,
                  found.where, found.parts)
    return found
