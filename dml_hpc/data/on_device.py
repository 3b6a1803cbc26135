"""The rows of a rank in a device's memory: all of them, where they fit, else a piece of them after the other.

Pieces are packed into page-locked memory and copied from there while the device works on the piece before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.data.reading import Arrays, Rows
from dml_hpc.device import Array, Device, Event
from dml_hpc.errors import UserError
from dml_hpc.kernels.cuda import sums
from dml_hpc.kernels.cuda.long_rows import long_entries
from dml_hpc.kernels.network import are_consecutive

PIECE_BYTES = 32 << 20
"""Of rows that are copied at once: long enough for the bus to be at its best."""
_ALIGNMENT = 256
"""Bytes, where arrays begin within a piece: so do a device's own allocations."""
_STORED = {"float16": np.float16, "bfloat16": np.uint16}
"""NumPy has no bfloat16: its bits are held."""
_ALL: Any = None
"""What ``rows`` of a part are that has all rows of its X."""


class DeviceRows:
    """Moves the parts that readers yield to ``device``: `keep` what readers have at hand, and it moves once.

    What is kept takes ``most_bytes`` of the device's memory at most; dense float32 rows are kept ``kept_as`` "float16"
    or "bfloat16", where that is given.
    """

    def __init__(self, device: Device, most_bytes: int, kept_as: str | None = None):
        self.device, self._room, self._pieces, self.kept_as = device, most_bytes, _Pieces(device), kept_as
        self._kept: dict[int, tuple[Arrays, Arrays]] = {}  # hosts' arrays too: while they live, no other has their id

    def keep(self, at_hand: Iterable[Arrays] | None) -> bool:
        """Copy what a reader has at hand, unless it is there or does not fit; say whether it is there now.

        Raises `UserError` for rows that cannot be ``kept_as`` was asked for.
        """
        if at_hand is None:
            return False
        at_hand = list(at_hand)
        for arrays in at_hand if self.kept_as is not None else ():
            if isinstance(arrays.X, Csr) or str(arrays.X.dtype) not in ("float32", self.kept_as):
                raise UserError(f"--rows-as {self.kept_as} is for dense float32 rows, and these are "
                                f"{arrays.X.dtype}; leave it out")
        new = {id(arrays.X): arrays for arrays in at_hand if id(arrays.X) not in self._kept}
        needed = sum(_bytes(arrays, self.kept_as) for arrays in new.values())
        if needed > self._room:
            return False
        self._room -= needed
        for key, arrays in new.items():
            self._kept[key] = arrays, self._copy(arrays)
        if self._pieces.overflowed:
            raise UserError("--rows-as float16 holds numbers up to 65,504, and some of these are larger; give "
                            "--rows-as bfloat16, or leave it out")
        return True

    def let_go(self, at_hand: Iterable[Arrays] | None) -> None:
        """Keep no longer what a reader has at hand, as it is to be closed."""
        for arrays in at_hand or ():
            if self._kept.pop(id(arrays.X), None) is not None:
                self._room += _bytes(arrays, self.kept_as)

    def kept(self, X: np.ndarray | Csr) -> Arrays | None:
        """Return what is kept on the device of the arrays that have ``X``, None where nothing is."""
        found = self._kept.get(id(X))
        return None if found is None else found[1]

    def of(self, parts: Iterable[Rows]) -> Iterator[Rows]:
        """Yield the rows of ``parts`` on the device, each valid until the next; ``rows`` may be None: all of X."""
        for part in parts:
            if not len(part.rows):
                continue
            kept = self.kept(part.X)
            if kept is None:
                yield from self._pieces.of(part)
            else:
                yield self._part(kept, part.rows)

    def _copy(self, arrays: Arrays) -> Arrays:
        copied, X = self._pieces.copied, arrays.X
        there: Array
        if isinstance(X, Csr):
            packed = X.packed()
            there = Csr(copied(packed.data), copied(packed.indices), copied(packed.indptr), packed.features,
                        long_entries(packed.indptr))
        else:
            there = copied(X, self.kept_as if X.dtype == np.float32 else None)
        return Arrays(there, copied(arrays.y), None if arrays.weight is None else copied(arrays.weight))

    def _part(self, kept: Arrays, rows: np.ndarray) -> Rows:
        X, y, weight = kept
        if not are_consecutive(rows):
            return Rows(X, y, self.device.put(rows), weight)
        own = slice(int(rows[0]), int(rows[-1]) + 1)
        return Rows(X[own], y[own], _ALL, None if weight is None else weight[own])


class _Pieces:
    """Two places for pieces of rows, each in page-locked memory and on the device.

    While the device works on one, the other is filled and copied. What a piece holds lies there in one stretch, so that
    one copy moves it.
    """

    def __init__(self, device: Device):
        self.device = device
        self._pinned: list[np.ndarray] = [np.empty(0, np.uint8)] * 2
        self._places: list[Array] = [None, None]
        self._copied: list[Event | None] = [None, None]
        self._used: list[Event | None] = [None, None]
        self._turn = 0
        self._infinite: Array | None = None

    @property
    def overflowed(self) -> bool:
        """Whether an element has become infinite on its way to 16 bits, or was."""
        return self._infinite is not None and bool(self.device.get(self._infinite))

    def of(self, part: Rows) -> Iterator[Rows]:
        """Yield the rows of a part as pieces on the device, each valid until the next."""
        for rows in _cut(part):
            X, y, weight = self._moved(_packed(part, rows), part)
            yield Rows(X, y, _ALL, weight)
            self._used[self._turn] = self.device.mark()
            self._turn = 1 - self._turn

    def copied(self, array: np.ndarray, kept_as: str | None = None) -> Array:
        """Return a copy of a whole array on the device, or its float32 elements ``kept_as`` 16-bit floats.

        The array may be larger than a piece.
        """
        device, step = self.device, max(1, PIECE_BYTES // array.itemsize)
        target = device.empty(array.shape, array.dtype if kept_as is None else _STORED[kept_as])
        flat, out, wide = array.reshape(-1), target.reshape(-1), [target[:0].reshape(-1)] * 2
        if kept_as is not None:
            wide = [device.empty(min(step, len(flat)), array.dtype) for _ in wide]
        free = [device.mark()] * 2  # memory that is given out may still be in use by work queued before
        for start in range(0, len(flat), step):
            own, turn = flat[start:start + step], self._turn
            pinned = self._room(own.nbytes)[:own.nbytes].view(own.dtype)
            pinned[:] = own
            place = out[start:start + len(own)]
            copy = place if kept_as is None else wide[turn][:len(own)]
            self._copied[turn] = event = device.upload(copy, pinned, free[turn])
            device.follow(event)
            if kept_as is not None:
                sums.add_up(device, copy, place)
                if kept_as == "float16":
                    infinite = device.xp.isinf(place).any()
                    self._infinite = infinite if self._infinite is None else self._infinite | infinite
                free[turn] = device.mark()
            self._turn = 1 - turn
        return target

    def _room(self, needed: int) -> np.ndarray:
        """Return page-locked memory of so many bytes at least whose last copy has been made."""
        turn = self._turn
        event = self._copied[turn]
        if event is not None:
            event.wait()
            self._copied[turn] = None
        if len(self._pinned[turn]) < needed:
            self._pinned[turn] = self.device.pinned(max(needed, min(PIECE_BYTES, 2 * needed)), np.uint8)
        return self._pinned[turn]

    def _moved(self, arrays: list[tuple[np.ndarray, np.ndarray | slice | None]],
               part: Rows) -> tuple[Array, Array, Array | None]:
        """Copy arrays, or rows of them, to the device; return X, y and weight there."""
        turn = self._turn
        sizes = [_count(array, rows) * array.dtype.itemsize * int(np.prod(array.shape[1:])) for array, rows in arrays]
        starts = [0, *np.cumsum([-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]).tolist()]
        pinned = self._room(starts[-1])
        if self._places[turn] is None or len(self._places[turn]) < starts[-1]:
            self._places[turn], self._used[turn] = self.device.empty(len(pinned), np.uint8), self.device.mark()
        place, found = self._places[turn], []
        for (array, rows), start, size in zip(arrays, starts, sizes, strict=False):
            shape = (_count(array, rows), *array.shape[1:])
            target = pinned[start:start + size].view(array.dtype).reshape(shape)
            if isinstance(rows, np.ndarray):
                np.take(array, rows, axis=0, out=target, mode="clip")  # checked modes copy twice
            else:
                target[...] = array if rows is None else array[rows]
            found.append(place[start:start + size].view(array.dtype).reshape(shape))
        event = self.device.upload(place[:starts[-1]], pinned[:starts[-1]], after=self._used[turn])
        self._copied[turn] = event
        self.device.follow(event)
        if isinstance(part.X, Csr):
            data, indices, indptr, y, *weight = found
            X = Csr(data, indices, indptr, part.X.features, long_entries(arrays[2][0]))
            return X, y, weight[0] if weight else None
        X, y, *weight = found
        return X, y, weight[0] if weight else None


def _count(array: np.ndarray, rows: np.ndarray | slice | None) -> int:
    if rows is None:
        return len(array)
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _packed(part: Rows, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray | slice | None]]:
    """Return what a piece of ``rows`` of a part holds: arrays, and which of their rows (None: all)."""
    own: np.ndarray | slice = slice(int(rows[0]), int(rows[-1]) + 1) if are_consecutive(rows) else rows
    labels = [(part.y, own)] + ([] if part.weight is None else [(part.weight, own)])
    if isinstance(part.X, Csr):
        X = part.X[own].packed() if isinstance(own, slice) else part.X.take(rows)
        return [(X.data, None), (X.indices, None), (X.indptr, None), *labels]
    return [(part.X, own), *labels]


def _cut(part: Rows) -> Iterator[np.ndarray]:
    """Yield the rows of a part, as many at a time as make up a piece, and one at least."""
    if isinstance(part.X, Csr):
        indptr = part.X.indptr
        entry_bytes = part.X.data.itemsize + part.X.indices.itemsize
        ends = np.cumsum((indptr[part.rows + 1] - indptr[part.rows]) * entry_bytes + 24)
        cuts = [0]
        while cuts[-1] < len(ends):
            done = ends[cuts[-1] - 1] if cuts[-1] else 0
            cuts.append(max(cuts[-1] + 1, int(np.searchsorted(ends, done + PIECE_BYTES, side="right"))))
    else:
        step = max(1, PIECE_BYTES // max(1, part.X.shape[1] * part.X.dtype.itemsize + 16))
        cuts = [*range(0, len(part.rows), step), len(part.rows)]
    for start, stop in pairwise(cuts):
        yield part.rows[start:stop]


def _bytes(arrays: Arrays, kept_as: str | None) -> int:
    """Return how much memory copies of arrays take."""
    X, y, weight = arrays
    if isinstance(X, Csr):
        own = X.nonzeros * (X.data.itemsize + X.indices.itemsize) + 8 * len(X.indptr)
    else:
        own = X.nbytes // 2 if kept_as is not None and X.dtype == np.float32 else X.nbytes
    return own + y.nbytes + (0 if weight is None else weight.nbytes)
