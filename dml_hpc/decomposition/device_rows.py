"""A rank's rows on a device: copied there once where they fit, else through two buffers in every pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.decomposition.chunks import Chunks
from dml_hpc.device import Array, Device, Event
from dml_hpc.kernels import computable
from dml_hpc.kernels.cuda.long_rows import long_entries
from dml_hpc.watch import progressed

STAGE_BYTES = 64 << 20
"""Of rows that are copied at once: long enough for the bus, short enough to be worked on while the next are read."""
_ALIGNMENT = 256
_MOST_OF_FREE = 0.75
"""Of the device's free memory, for rows: the rest is for products and sums."""


class Slab(NamedTuple):
    """Consecutive rows of X on the device from row ``first`` on, of whole chunks where they are dense.

    ``X`` is (count, columns), as stored (or float32, float64: what holds it), or `Csr` of device arrays.
    """

    first: int
    X: Array | Csr


class DeviceSlabs:
    """Yields a rank's rows as `Slab`, pass after pass; ``sharers`` ranks use the device.

    Collective, so that ranks which share a device have all seen how much of it is free before one takes any.
    """

    def __init__(self, chunks: Chunks, device: Device, sharers: int):
        self._chunks, self._device = chunks, device
        self._room = int(_MOST_OF_FREE * device.free_bytes()) // sharers
        chunks.comm.Barrier()
        self._turns = [_Turn(device), _Turn(device)]
        self._kept: list[Slab] | None = None
        self._squares = np.zeros(0)

    def reserve(self, n_bytes: int) -> bool:
        """Leave room for so many bytes beside the rows, if there is; say whether there is."""
        if n_bytes > self._room:
            return False
        self._room -= n_bytes
        return True

    @property
    def resident(self) -> bool:
        """Whether all rows are on the device and no pass reads any more."""
        return self._kept is not None

    def slabs(self) -> Iterator[Slab]:
        """Yield this rank's rows in order, each valid until the next: work on them may be queued until then. One pass.

        The squares of sparse entries, which need no device, are looked at on the way.
        """
        if self._kept is None:
            yield from self._sparse() if self._chunks.sparse else self._dense()
            return
        self._chunks.passes += 1
        for slab in self._kept:
            yield slab
            progressed()
        if self._chunks.sparse and self._chunks.passes <= self._chunks.looked_at:
            self._chunks.squares[:] = self._squares  # they are float64 whatever the products are

    def _dense(self) -> Iterator[Slab]:
        chunks = self._chunks
        first, last = chunks.rows
        width = chunks.columns[1] - chunks.columns[0]
        dtype = _held_dtype(np.dtype(chunks.dataset.manifest.dtype))
        row_bytes = max(1, width * dtype.itemsize)
        stage_rows = chunks.chunk_rows * max(1, STAGE_BYTES // (chunks.chunk_rows * row_bytes))
        stage_rows = min(stage_rows, max(last - first, 1))
        whole = None
        if (last - first) * row_bytes <= self._room:
            whole = self._device.empty((last - first, width), dtype)
            allocated = self._device.mark()  # what had this memory before may still be at work on it
        filled, start, turn = 0, first, 0
        for number, X in chunks.pieces():
            assert isinstance(X, np.ndarray)
            with chunks.clock.phase("read"):
                stage = self._turns[turn].stage(stage_rows * row_bytes).view(dtype).reshape(stage_rows, width)
                np.copyto(stage[filled:filled + len(X)], X, casting="unsafe")
            filled += len(X)
            if filled < stage_rows and number + len(X) < last:
                continue
            given = stage[:filled]
            if whole is None:
                target = self._turns[turn].target(stage_rows * row_bytes).view(dtype)[:given.size].reshape(given.shape)
                self._turns[turn].upload(target, given)
                yield Slab(start, target)
                self._turns[turn].used()
            else:
                target = whole[start - first:start - first + filled]
                self._turns[turn].upload(target, given, allocated)
                yield Slab(start, target)
            filled, start, turn = 0, start + filled, 1 - turn
        if whole is not None:
            self._keep([Slab(first, whole)] if last > first else [])

    def _sparse(self) -> Iterator[Slab]:
        chunks, turn, room = self._chunks, 0, self._room
        kept: list[Slab] | None = []
        for first, X in chunks.pieces():
            assert isinstance(X, Csr)
            chunks.count(first // chunks.chunk_rows, chunks.sparse_squares, X)
            packed = X.packed()
            parts = packed.data, packed.indices, packed.indptr
            starts = np.cumsum([0, *(-(-part.nbytes // _ALIGNMENT) * _ALIGNMENT for part in parts)]).tolist()
            room -= starts[-1]
            if kept is not None and room < 0:
                kept = None
            with chunks.clock.phase("read"):
                stage = self._turns[turn].stage(starts[-1])[:starts[-1]]
                for start, part in zip(starts, parts, strict=False):
                    stage[start:start + part.nbytes].view(part.dtype)[:] = part
            if kept is None:
                target, after = self._turns[turn].target(starts[-1])[:starts[-1]], None
            else:
                target = self._device.empty(starts[-1], "uint8")
                after = self._device.mark()
            self._turns[turn].upload(target, stage, after)
            data, indices, indptr = (target[start:start + part.nbytes].view(part.dtype)
                                     for start, part in zip(starts, parts, strict=False))
            slab = Slab(first, Csr(data, indices, indptr, packed.features, long_entries(packed.indptr)))
            if kept is not None:
                kept.append(slab)
            yield slab
            if kept is None:
                self._turns[turn].used()
            turn = 1 - turn
        if kept is not None:
            self._squares = chunks.squares.copy()
            self._keep(kept)

    def _keep(self, slabs: list[Slab]) -> None:
        self._kept = slabs
        for turn in self._turns:
            turn.close()


class _Turn:
    """One of two buffers: in page-locked memory, which is filled, and on the device, which is worked on."""

    def __init__(self, device: Device):
        self._device = device
        self._stage: np.ndarray | None = None
        self._target: Array | None = None
        self._copied: Event | None = None
        self._free: Event | None = None

    def stage(self, size: int) -> np.ndarray:
        """Return at least ``size`` bytes of the host, from which nothing is being copied any more."""
        if self._copied is not None:
            self._copied.wait()
            self._copied = None
        if self._stage is None or len(self._stage) < size:
            self._stage = self._device.pinned(size, "uint8")
        return self._stage

    def target(self, size: int) -> Array:
        """Return at least ``size`` bytes of the device."""
        if self._target is None or len(self._target) < size:
            self._target = self._device.empty(size, "uint8")
            self._free = self._device.mark()
        return self._target

    def upload(self, target: Array, source: np.ndarray, after: Event | None = None) -> None:
        """Queue a copy from the stage behind ``after`` (None: the last work on the target); work queued now sees it."""
        self._copied = self._device.upload(target, source, self._free if after is None else after)
        self._device.follow(self._copied)

    def used(self) -> None:
        """Say that all work on the target is queued."""
        self._free = self._device.mark()

    def close(self) -> None:
        """Let go of the memory, when nothing is copied from it any more."""
        if self._copied is not None:
            self._copied.wait()
        self._stage = self._target = self._copied = self._free = None


def _held_dtype(stored: np.dtype) -> np.dtype:
    """Return the type that rows have on the device: their own, or one that holds theirs."""
    return np.dtype(computable(stored, np.dtype(np.float64 if stored.itemsize >= 4 else np.float32)))
