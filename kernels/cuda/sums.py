"""Launches ``kernels/sums.cu``: sums of several ranks' vectors, and slices brought together.

Elements are float32, float64, int64, float16, or bfloat16 held as uint16. A device needs no order among ranks: sums are
taken in the order of the addends, 16-bit floats in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dml_hpc.device import Array, Device, cpp_name

THREADS = 256
"""In a block, at most: what the kernels are built for."""
_BLOCKS_A_PROCESSOR = 32
"""At most: several times as many as can run at a time, so that none is left to run alone in the end."""
_PACK_BYTES = 16


class LazySum:
    """The sum of ``arrays`` of one device, in their order, which is yet to be taken: by `add_up`, or by an update.

    They are (count,) each, of one dtype, and may belong to other ranks. A part of it is taken by a slice (with a step
    of 1), which copies nothing.
    """

    def __init__(self, device: Device, arrays: Sequence[Array]):
        self.table = device.put(np.array([address(array) for array in arrays], np.int64))
        self.dtype: np.dtype = arrays[0].dtype
        self.arrays, self.start, self._count = tuple(arrays), 0, len(arrays[0])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> LazySum:
        start, stop, _ = part.indices(self._count)
        some = object.__new__(LazySum)
        some.table, some.dtype, some.arrays = self.table, self.dtype, self.arrays
        some.start, some._count = self.start + start, max(stop - start, 0)
        return some


def address(array: Array) -> int:
    """Return where an array's first element lies in its device's memory."""
    interface = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    return interface["data"][0]


def blocks(device: Device, count: int, itemsize: int) -> int:
    """Return how many blocks of `threads` go through ``count`` elements, a pack of them a thread and turn."""
    packs = -(-count * itemsize // _PACK_BYTES)
    return min(-(-packs // threads(device)), _BLOCKS_A_PROCESSOR * device.processors)


def threads(device: Device) -> int:
    """Return how many threads a block has."""
    return min(device.block_threads, THREADS)


def addends_of(summed: Array | LazySum) -> tuple:
    """Return what kernels are told of what they sum: the only vector, the table, how many, from which element."""
    if isinstance(summed, LazySum):
        return None, summed.table, len(summed.arrays), summed.start
    return summed, None, 1, 0


def stored_name(dtype: np.dtype) -> str:
    """Return the C++ name of elements of arrays of ``dtype``, of which uint16 holds bfloat16."""
    return cpp_name("bfloat16" if dtype == np.uint16 else dtype)


def add_up(device: Device, addends: Array | LazySum, out: Array) -> None:
    """Write the sum of ``addends`` (count,), in the dtype of ``out`` (count,), there; it may be one of the addends."""
    kernel = f"add_up<{stored_name(addends.dtype)},{stored_name(out.dtype)}>"
    device.launch("sums.cu", kernel, blocks(device, len(out), max(addends.dtype.itemsize, out.dtype.itemsize)),
                  threads(device), *addends_of(addends), out, len(out))


def average(device: Device, addends: Array | LazySum, divisor: float, out: Array) -> None:
    """Write the sum of ``addends`` (count,) by ``divisor`` to ``out`` (count,), which may be one of the addends.

    They have one dtype, float32 or float64. The bits are those of NumPy's division by a float64.
    """
    device.launch("sums.cu", f"average<{cpp_name(out.dtype)}>", blocks(device, len(out), out.dtype.itemsize),
                  threads(device), *addends_of(addends), float(divisor), out, len(out))


def add(device: Device, a: Array, b: Array, out: Array) -> None:
    """out = a + b, (count,) of one dtype each; ``out`` may be ``a`` or ``b``."""
    device.launch("sums.cu", f"add<{stored_name(out.dtype)}>", blocks(device, len(out), out.dtype.itemsize),
                  threads(device), a, b, out, len(out))


def gather(device: Device, vectors: LazySum, cuts: Array, own: int, out: Array) -> None:
    """Copy elements cuts[v] … cuts[v + 1] − 1 of vector v to their places in ``out`` (count,), except of ``own``.

    ``cuts`` (vectors + 1,) int64 on the device. An ``own`` of −1 is none.
    """
    number = len(vectors.arrays)
    if number == 1 and own == 0:
        return
    words = out.view(f"u{out.dtype.itemsize}")  # whatever they mean
    many = blocks(device, -(-len(out) // number), words.dtype.itemsize)
    device.launch("sums.cu", f"gather<{cpp_name(words.dtype)}>", (many, number if many else 0), threads(device),
                  vectors.table, cuts, own, words)
