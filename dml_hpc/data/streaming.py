"""Rows that do not fit in memory: a few blocks of each stripe there, the next ones read while these are used."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count

import numpy as np

from dml_hpc.data.batches import Batches
from dml_hpc.data.csr import Csr
from dml_hpc.data.dataset import BLOCK_BYTES, Dataset, Piece
from dml_hpc.data.leaving_out import lose
from dml_hpc.data.reading import Prepare, Reader, Rows, gives_weights, global_rows, prepared
from dml_hpc.data.slots import DenseSlots, SparseSlots
from dml_hpc.errors import JobError, UserError
from dml_hpc.kernels import computable
from dml_hpc.kernels.sampling import SLOTS, blocks_to_read, mark_use, slot_rows

_PIECES = 8
"""How many pieces, at most, are in memory when rows are read from end to end: read ahead, in use, and widened."""


class Streamed(Reader):
    """A few blocks of each stripe in memory; a thread reads the next ones while these are used.

    Each of this rank's stripes has `SLOTS` blocks in one large array, so that a step's rows are rows of that array,
    wherever they come from. Memory: about `SLOTS` / `BLOCKS_A_STRIPE` of this rank's rows, or `SLOTS` blocks a
    stripe where blocks cannot be as small as that. A full batch needs no order, and is read from end to end.
    """

    how = "streamed"

    def __init__(self, dataset: Dataset, batches: Batches, prepare: Prepare, dtype: np.dtype, most_bytes: int):
        super().__init__(dataset, batches.steps, batches.range)
        self.count, self.work_share = batches.count, batches.share
        self.batches, self._prepare = batches, prepare
        sparse = dataset.kind == "csr"
        kinds = {computable(dataset.shard(number).dtype, dtype, sparse) for number in batches.shards
                 if number not in dataset.lost}
        self._kind = np.dtype(kinds.pop() if len(kinds) == 1 else dtype)
        self._blocks = -(-batches.length // batches.block)[slice(*batches.mine)]
        share = int(np.max(-(-batches.length // batches.steps), initial=1)) + 1
        # Of a stripe, a part touches two blocks and, where it has its turn between them, the short one.
        self._parts = max(1, -(-share // batches.block))
        places = 0 if batches.steps == 1 else SLOTS * len(self._blocks)
        self._slots = (SparseSlots if sparse else DenseSlots)(dataset, batches, places, self._kind, dtype,
                                                              gives_weights(dataset, prepare))
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
        self._void = np.zeros(places, bool)
        """(places,): those that hold none of the rows that they are for, as their shard is lost."""

    def take(self, epoch: int, step: int) -> tuple[Iterable[Rows], int]:
        """See `Reader.take`."""
        rows = self.batches.rows(step, self.dataset.forgone)
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
        rows = self._rows[:found]
        if self.dataset.lost:
            forgone = np.isin(batches.shard[slice(*batches.mine)], list(self.dataset.forgone))
            rows = rows[~(self._void | np.repeat(forgone, SLOTS))[rows // self._slots.stride]]
        return Rows(self._slots.X, self._slots.y, rows, self._slots.weight)

    def everything(self) -> Iterable[Rows]:
        """See `Reader.everything`."""
        buffer = np.empty((0, self.dataset.features), self._kind)
        started = time.perf_counter()
        for piece in self._pieces():
            self.waited_s += time.perf_counter() - started
            X = piece.X
            if isinstance(X, Csr):
                X = X.astype(self._kind, copy=False)
            elif X.dtype != self._kind:
                buffer = buffer if len(buffer) >= len(X) else np.empty(X.shape, self._kind)
                buffer[:len(X)] = X
                X = buffer[:len(X)]
            y, weight = prepared(self.dataset, self.dataset.place(piece.first)[0], self._prepare, piece.y,
                                 piece.weight)
            yield Rows(X, y, np.arange(len(X)), weight)
            started = time.perf_counter()

    def _pieces(self) -> Iterator[Piece]:
        if not self.dataset.skips_bad_shards:
            yield from self.dataset.pieces(*self.batches.range, most_bytes=self._piece_bytes, mapped=False)
            return
        for first, last in self.dataset.ranges(*self.batches.range):
            number = self.dataset.place(first)[0]
            try:
                if number not in self.dataset.lost:
                    yield from self.dataset.pieces(first, last, most_bytes=self._piece_bytes, mapped=False)
            except (UserError, JobError) as error:
                self._lose(number, error)

    def rows_of(self, epoch: int, step: int) -> np.ndarray:
        """See `Reader.rows_of`; the order may differ from that of `take`."""
        return global_rows(self.dataset, self.batches, epoch, step)

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

    def _pause(self, seconds: float) -> bool:
        with self._moved:
            return self._moved.wait_for(lambda: self._stop, seconds)

    def _lose(self, number: int, error: Exception) -> None:
        """Leave a shard out from now on; raises ``error`` unless that is wanted."""
        with self._moved:
            if self._stop and self._thread is threading.current_thread():
                raise error  # it was not tried to the end
            lose(self.dataset, number, error)

    def _read(self, stripe: int, slot: int, start: int, size: int) -> None:
        batches, place = self.batches, SLOTS * stripe + slot
        number = int(batches.shard[batches.mine[0] + stripe])
        first = int(batches.first[batches.mine[0] + stripe]) + start
        self._void[place] = number in self.dataset.lost
        if self._void[place]:
            return
        read = partial(self.dataset.read, number, pause=self._pause)
        try:
            labels = read(lambda shard: (shard.y(first, first + size), shard.weight(first, first + size)))
            read(lambda shard: self._slots.read(place, shard, first, size))
        except (UserError, JobError) as error:
            self._void[place] = True
            self._lose(number, error)
            return
        self._slots.label(place, *prepared(self.dataset, number, self._prepare, *labels))
