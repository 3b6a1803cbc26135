"""The rows of a rank, step by step: from memory where they fit, else read block by block, a few blocks ahead."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import NamedTuple

import numpy as np

from dml_hpc.data.batches import Batches, Part
from dml_hpc.data.csr import Csr, index_dtype
from dml_hpc.data.dataset import BLOCK_BYTES, Dataset
from dml_hpc.data.shard import CsrShard, DenseShard, Shard
from dml_hpc.errors import UserError
from dml_hpc.kernels import computable
from dml_hpc.kernels.sampling import SLOTS, blocks_to_read, mark_use, rows_of_step, slot_rows

Targets = Callable[[np.ndarray], np.ndarray]
"""From labels to what an objective learns from; raises `UserError` for a label it cannot."""


class Rows(NamedTuple):
    """Some rows: those numbered ``rows`` (count,) int64 of ``X`` (·, features), with the targets ``y`` (·,)."""

    X: np.ndarray | Csr
    y: np.ndarray
    rows: np.ndarray


class Reader(ABC):
    """What a rank reads. ``how`` is "mapped", "memory" or "streamed"; ``waited_s`` the time spent waiting for rows."""

    how: str
    waited_s = 0.0

    def __init__(self, batches: Batches):
        self.batches = batches

    @abstractmethod
    def take(self, epoch: int, step: int) -> tuple[Iterable[Rows], int]:
        """Return this rank's rows of a step and how many all ranks take in it; valid until the next call.

        See `Batches.take`. Steps come one after the other; a step may be taken again.
        """

    @abstractmethod
    def everything(self) -> Iterable[Rows]:
        """Return all of this rank's rows, in storage order; each valid until the next."""

    def close(self) -> None:  # noqa: B027 -- most have nothing to let go of
        """Let go of what is read ahead."""

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_reader(dataset: Dataset, batches: Batches, targets: Targets, dtype: np.dtype,
                most_bytes: int | None) -> Reader:
    """Return the reader that suits the data: rows stay mapped, or are kept in memory, or are streamed.

    ``most_bytes`` is what the rows may take, None: as much as they need. Mapped pages count too, as they do for whoever
    limits a job's memory. X comes in a type that kernels can use with ``dtype``. Raises `UserError` for a shard that is
    not as it should be, or when even streaming needs more than ``most_bytes``.
    """
    needed = sum(stored_bytes(dataset, number, *_inside(dataset, batches, number), dtype) for number in batches.shards)
    if most_bytes is None or needed <= most_bytes:
        return Resident(dataset, batches, targets, dtype)
    return Streamed(dataset, batches, targets, dtype, most_bytes)


def stored_bytes(dataset: Dataset, number: int, start: int, stop: int, dtype: np.dtype) -> int:
    """Return how much memory rows ``start`` … ``stop − 1`` of a shard take when they are kept, targets included."""
    shard = dataset.shard(number)
    wide = np.dtype(computable(shard.dtype, dtype)).itemsize / shard.dtype.itemsize
    return int(shard.bytes_of(start, stop) * wide) + (stop - start) * dtype.itemsize


def _inside(dataset: Dataset, batches: Batches, number: int) -> tuple[int, int]:
    """Return which rows of a shard are this rank's, as numbers within the shard."""
    low, high = (int(offset) for offset in dataset.offsets[number:number + 2])
    return max(batches.range[0], low) - low, min(batches.range[1], high) - low


class Resident(Reader):
    """Rows at hand: mapped where the file allows it, else in memory.

    ``arrays`` holds, by shard, X and targets of this rank's rows, and the number within the shard of the first; with
    ``all_rows`` every rank has those of all shards.
    """

    def __init__(self, dataset: Dataset, batches: Batches, targets: Targets, dtype: np.dtype, all_rows: bool = False):
        super().__init__(batches)
        self.arrays: dict[int, tuple[np.ndarray | Csr, np.ndarray, int]] = {}
        mapped = True
        for number in range(len(dataset.paths)) if all_rows else batches.shards:
            shard = dataset.shard(number)
            low, high = (0, shard.rows) if all_rows else _inside(dataset, batches, number)
            kind = computable(shard.dtype, dtype)
            mapped = mapped and shard.mappable and shard.dtype == kind
            X: np.ndarray | Csr
            if isinstance(shard, CsrShard):
                X = shard.block(low, high).astype(kind, copy=False)
            elif shard.dtype == kind:
                X = shard.block(low, high)
            else:
                X = np.empty((high - low, shard.features), kind)
                shard.stored.read_into(low, high, X)
            self.arrays[number] = X, _named(targets, shard.y(low, high), dataset, number), low
        self.how = "mapped" if mapped else "memory"

    def take(self, epoch: int, step: int) -> tuple[Iterable[Rows], int]:
        """See `Reader.take`."""
        parts, rows = self.batches.take(epoch, step)
        return self._rows(parts), rows

    def everything(self) -> Iterable[Rows]:
        """See `Reader.everything`."""
        return self._rows(self.batches.everything())

    def _rows(self, parts: list[Part]) -> list[Rows]:
        found = []
        for part in parts:
            X, y, low = self.arrays[part.shard]
            if low:
                part.rows[:] -= low
            found.append(Rows(X, y, part.rows))
        return found


def _named(targets: Targets, y: np.ndarray, dataset: Dataset, number: int) -> np.ndarray:
    try:
        return targets(y)
    except UserError as error:
        raise UserError(f"{dataset.paths[number]}: {error}") from None


_PIECES = 8
"""How many pieces, at most, are in memory when rows are read from end to end: read ahead, in use, and widened."""


class Streamed(Reader):
    """A few blocks of each stripe in memory; a thread reads the next ones while these are used.

    Each of this rank's stripes has `SLOTS` blocks in one large array, so that a step's rows are rows of that array,
    wherever they come from. Memory: about `SLOTS` / `BLOCKS_A_STRIPE` of this rank's rows, or `SLOTS` blocks a
    stripe where blocks cannot be as small as that. A full batch needs no order, and is read from end to end.
    """

    how = "streamed"

    def __init__(self, dataset: Dataset, batches: Batches, targets: Targets, dtype: np.dtype, most_bytes: int):
        super().__init__(batches)
        self._dataset, self._targets = dataset, targets
        kinds = {computable(dataset.shard(number).dtype, dtype) for number in batches.shards}
        self._kind = np.dtype(kinds.pop() if len(kinds) == 1 else dtype)
        self._blocks = -(-batches.length // batches.block)[slice(*batches.mine)]
        share = int(np.max(-(-batches.length // batches.steps), initial=1)) + 1
        # Of a stripe, a part touches two blocks and, where it has its turn between them, the short one.
        self._parts = max(1, -(-share // batches.block))
        places = 0 if batches.steps == 1 else SLOTS * len(self._blocks)
        kind_of_slots = SparseSlots if dataset.kind == "csr" else DenseSlots
        self._slots = kind_of_slots(dataset, batches, places, self._kind, dtype)
        row_bytes = self._slots.row_bytes
        needed = self._slots.bytes + _PIECES * row_bytes
        if needed > most_bytes:
            raise UserError(f"--memory-limit leaves {most_bytes >> 20:,} MiB for rows, and {needed >> 20:,} MiB are "
                            "needed even when they are streamed; use more ranks or a larger limit")
        self._piece_bytes = min(BLOCK_BYTES, (most_bytes - self._slots.bytes) // _PIECES)
        self._rows = np.empty(min(batches.most_rows, places * batches.block), np.int64)
        stripes = len(self._blocks)
        self._order = np.empty((stripes, batches.block if batches.shuffle else 0), np.int32)
        self._known, self._epoch = np.zeros(stripes, np.int64), -1
        self._ready, self._done = 0, 0
        self._moved = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stop = False
        self._failure: BaseException | None = None

    def take(self, epoch: int, step: int) -> tuple[Iterable[Rows], int]:
        """See `Reader.take`."""
        rows = rows_of_step(self.batches.length, step, self.batches.steps)
        if self.batches.steps == 1:
            return self.everything(), rows
        number = epoch * self.batches.steps + step
        first = number * self._parts
        if self._thread is None or not self._done <= first <= self._done + self._parts:
            self._restart(first)
        if self._parts > 1:
            return self._each_part(epoch, step, first), rows
        return [self._part(epoch, step, 0, first)], rows

    def _each_part(self, epoch: int, step: int, first: int) -> Iterator[Rows]:
        if self._done > first:
            self._restart(first)
        for part in range(self._parts):
            yield self._part(epoch, step, part, first + part)

    def _part(self, epoch: int, step: int, part: int, number: int) -> Rows:
        """Return the rows of one part of a step, when they are there; what came before is done with."""
        started = time.perf_counter()
        with self._moved:
            self._done = number
            self._moved.notify_all()
            while self._ready <= number and self._failure is None:
                self._moved.wait()
            if self._failure is not None:
                raise self._failure
        self.waited_s += time.perf_counter() - started
        batches = self.batches
        if epoch != self._epoch:
            self._known[:], self._epoch = 0, epoch
        found = slot_rows(batches.length, batches.mine, step, batches.steps, part, self._parts, batches.block,
                          batches.key(epoch), batches.shuffle, self._order, self._known, epoch * self._blocks,
                          self._slots.stride, self._rows)
        return Rows(self._slots.X, self._slots.y, self._rows[:found])

    def everything(self) -> Iterable[Rows]:
        """See `Reader.everything`."""
        buffer = np.empty((0, self._dataset.features), self._kind)
        started = time.perf_counter()
        for piece in self._dataset.pieces(*self.batches.range, most_bytes=self._piece_bytes, mapped=False):
            self.waited_s += time.perf_counter() - started
            number, X = self._dataset.place(piece.first)[0], piece.X
            if isinstance(X, Csr):
                X = X.astype(self._kind, copy=False)
            elif X.dtype != self._kind:
                buffer = buffer if len(buffer) >= len(X) else np.empty(X.shape, self._kind)
                buffer[:len(X)] = X
                X = buffer[:len(X)]
            yield Rows(X, _named(self._targets, piece.y, self._dataset, number), np.arange(len(X)))
            started = time.perf_counter()

    def _restart(self, first: int) -> None:
        """Begin to read for part ``first`` of all parts of all steps."""
        self.close()
        self._stop, self._failure, self._ready, self._done = False, None, first, first
        self._thread = threading.Thread(target=self._read_ahead, args=(first,), name="dml-hpc-read", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See `Reader.close`."""
        if self._thread is not None:
            with self._moved:
                self._stop = True
                self._moved.notify_all()
            self._thread.join()
            self._thread = None

    def _read_ahead(self, first: int) -> None:
        """The thread: read what each part is the first to need, as soon as its place is free."""
        try:
            batches, stripes = self.batches, len(self._blocks)
            begun, last_use = np.zeros(stripes, np.int64), np.full((stripes, SLOTS), -1, np.int64)
            wanted = np.empty((SLOTS * stripes, 4), np.int64)
            for number in count(first):
                place, part = divmod(number, self._parts)
                epoch, step = divmod(place, batches.steps)
                if step == part == 0:
                    begun[:] = 0
                share = (batches.length, batches.mine, step, batches.steps, part, self._parts, batches.block,
                         batches.key(epoch), batches.shuffle)
                base = epoch * self._blocks
                found = blocks_to_read(*share, begun, base, wanted)
                for stripe, slot, start, size in wanted[:found].tolist():
                    if not self._may_use(int(last_use[stripe, slot])):
                        return
                    self._read(stripe, slot, start, size)
                mark_use(*share, base, last_use, number)
                with self._moved:
                    self._ready = number + 1
                    self._moved.notify_all()
                    if self._stop:
                        return
        except BaseException as error:
            with self._moved:
                self._failure = error
                self._moved.notify_all()

    def _may_use(self, last_use: int) -> bool:
        """Wait until part ``last_use`` is done with; return false when reading is to stop."""
        with self._moved:
            while self._done <= last_use and not self._stop:
                self._moved.wait()
            return not self._stop

    def _read(self, stripe: int, slot: int, start: int, size: int) -> None:
        batches = self.batches
        number = int(batches.shard[batches.mine[0] + stripe])
        first = int(batches.first[batches.mine[0] + stripe]) + start
        y = _named(self._targets, self._dataset.shard(number).y(first, first + size), self._dataset, number)
        self._slots.read(SLOTS * stripe + slot, self._dataset.shard(number), first, y)


class DenseSlots:
    """Places for blocks of dense rows: ``X`` (places · stride, features), ``y`` (places · stride,)."""

    def __init__(self, dataset: Dataset, batches: Batches, places: int, kind: np.dtype, dtype: np.dtype):
        self.stride = batches.block
        self.row_bytes = dataset.features * kind.itemsize + dtype.itemsize
        self.bytes = places * self.stride * self.row_bytes
        self.X, self.y = np.empty((places * self.stride, dataset.features), kind), np.empty(places * self.stride, dtype)

    def read(self, place: int, shard: Shard, first: int, y: np.ndarray) -> None:
        """Read the ``len(y)`` rows of a shard from ``first`` on into a place, whose targets are ``y``."""
        assert isinstance(shard, DenseShard)
        at = place * self.stride
        shard.stored.read_into(first, first + len(y), self.X[at:at + len(y)])
        self.y[at:at + len(y)] = y


class SparseSlots:
    """Places for blocks of sparse rows, each with room for the most entries that a block of this rank has.

    A place has one row more than a block, which is none: as rows end where the next one begins, it ends the last.
    """

    def __init__(self, dataset: Dataset, batches: Batches, places: int, kind: np.dtype, dtype: np.dtype):
        self.stride = batches.block + 1
        self._room = self._most_entries(dataset, batches) if places else 0
        entry_bytes = kind.itemsize + index_dtype(dataset.features).itemsize
        rows = places * self.stride
        self.row_bytes = entry_bytes * (dataset.manifest.nonzeros // max(dataset.rows, 1) + 1) + 8 + dtype.itemsize
        pointers = 8 * (batches.range[1] - batches.range[0])  # the shards' own, in memory or mapped
        self.bytes = places * self._room * entry_bytes + rows * (8 + dtype.itemsize) + pointers
        self.X = Csr(np.empty(places * self._room, kind), np.empty(places * self._room, index_dtype(dataset.features)),
                     np.zeros(rows + 1, np.int64), dataset.features)
        self.y = np.empty(rows, dtype)

    @staticmethod
    def _most_entries(dataset: Dataset, batches: Batches) -> int:
        most = 0
        for stripe in range(*batches.mine.tolist()):
            shard, first = dataset.shard(int(batches.shard[stripe])), int(batches.first[stripe])
            assert isinstance(shard, CsrShard)
            ends = np.append(np.arange(0, batches.length[stripe], batches.block), batches.length[stripe]) + first
            most = max(most, int(np.diff(shard.indptr[ends]).max(initial=0)))
        return most

    def read(self, place: int, shard: Shard, first: int, y: np.ndarray) -> None:
        """Read the ``len(y)`` rows of a shard from ``first`` on into a place, whose targets are ``y``."""
        assert isinstance(shard, CsrShard)
        rows = shard.block(first, first + len(y), mapped=False).packed()
        at, entries = place * self.stride, place * self._room
        self.X.data[entries:entries + rows.nonzeros] = rows.data
        self.X.indices[entries:entries + rows.nonzeros] = rows.indices
        np.add(rows.indptr, entries, out=self.X.indptr[at:at + len(y) + 1])
        self.y[at:at + len(y)] = y
