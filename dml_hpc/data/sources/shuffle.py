"""Rows in random order, of data sets larger than memory: an external shuffle."""

from __future__ import annotations

import math
import os
import sys
from bisect import bisect_left
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.data.csr import Csr, concatenated
from dml_hpc.data.sources.source import RowSource
from dml_hpc.layout import split
from dml_hpc.mpi import agreed, on_root
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.console import Progress
    from dml_hpc.mpi import Alone

BUCKET_BYTES = 256 << 20
BLOCKS_A_BUCKET = 4
"""Blocks are smaller than buckets, so that a block and its sorted copy need less memory than a bucket."""
FIRST_ROWS = 16
"""How many rows are read to learn how long rows are."""


class _Block(NamedTuple):
    """Rows of the source, sorted by destination, in the file of ``rank`` from byte ``offset`` on.

    There lie, one after the other: destinations (rows,) int64, y (rows,) or (rows, 2) float64, for CSR indptr (rows +
    1,) int64 from 0, the entries' values, for CSR their columns, and zeros up to a multiple of eight bytes.
    """

    rank: int
    offset: int
    rows: int
    entries: int


class _Types(NamedTuple):
    """How rows are stored: the type of values, of columns (None: dense), and how many values a dense row has.

    ``y`` is the shape of what `RowSource.read` gives as y for one row: (), or (2,) with a weight.
    """

    data: np.dtype
    indices: np.dtype | None
    width: int
    y: tuple[int, ...]

    @property
    def y_bytes(self) -> int:
        """Return how much y takes for one row."""
        return 8 * math.prod(self.y)


class _Rows(NamedTuple):
    """Some rows of a block, as they lie in it, but ``indptr`` from 0; dense rows have no ``indptr`` and ``indices``."""

    destinations: np.ndarray
    y: np.ndarray
    indptr: np.ndarray
    data: np.ndarray
    indices: np.ndarray


class ShuffledRows:
    """Another source's rows in random order, a `RowSource` over the files that `shuffled` wrote.

    It loads a bucket of consecutive rows at a time and keeps it, so that reading in order loads each bucket once.
    """

    def __init__(self, source: RowSource, scratch: Path, blocks: list[_Block], types: _Types, bucket_bytes: int):
        self.kind = source.kind
        self.rows = source.rows
        self.features = source.features
        self.about = source.about
        self._scratch = scratch
        self._blocks = blocks
        self._types = types
        per_entry = types.data.itemsize + (types.indices.itemsize if types.indices else 0)
        stored_bytes = (16 + types.y_bytes) * self.rows + per_entry * sum(block.entries for block in blocks)
        self._bucket_rows = max(1, bucket_bytes * self.rows // stored_bytes)
        self._loaded: tuple[int, np.ndarray | Csr, np.ndarray] | None = None

    def read(self, start: int, stop: int) -> tuple[np.ndarray | Csr, np.ndarray]:
        """Return rows ``start`` … ``stop`` − 1, in the types of the source; memory: a bucket and what is asked for."""
        parts = []
        for number in range(start // self._bucket_rows, max(start, stop - 1) // self._bucket_rows + 1):
            first = number * self._bucket_rows
            X, y = self._bucket(number)
            rows = slice(max(start - first, 0), stop - first)
            parts.append((X[rows], y[rows]))
        if len(parts) == 1:
            return parts[0]
        Xs, ys = zip(*parts, strict=True)
        return concatenated(list(Xs)) if self._types.indices else np.concatenate(Xs), np.concatenate(ys)

    def _bucket(self, number: int) -> tuple[np.ndarray | Csr, np.ndarray]:
        if self._loaded is None or self._loaded[0] != number:
            self._loaded = None  # its memory is free for the next one
            first = number * self._bucket_rows
            load = self._load_csr if self._types.indices else self._load_dense
            self._loaded = (number, *load(first, min(first + self._bucket_rows, self.rows)))
        return self._loaded[1:]

    def _load_dense(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        X = np.empty((max(0, last - first), self._types.width), self._types.data)
        y = np.empty((len(X), *self._types.y))
        for rows in self._found(first, last):
            places = rows.destinations - first
            X[places] = rows.data.reshape(len(places), self._types.width)
            y[places] = rows.y
        return X, y

    def _load_csr(self, first: int, last: int) -> tuple[Csr, np.ndarray]:
        from dml_hpc.kernels.rows import place_rows

        assert self._types.indices is not None
        y = np.empty((max(0, last - first), *self._types.y))
        indptr = np.zeros(len(y) + 1, np.int64)
        for rows in self._found(first, last, entries=False):
            places = rows.destinations - first
            indptr[places + 1] = np.diff(rows.indptr)
            y[places] = rows.y
        np.cumsum(indptr, out=indptr)
        data, indices = np.empty(indptr[-1], self._types.data), np.empty(indptr[-1], self._types.indices)
        for rows in self._found(first, last):
            place_rows(rows.destinations - first, rows.indptr, rows.indices, _bits(rows.data), indptr, indices,
                       _bits(data))
        return Csr(data, indices, indptr, self.features), y

    def _found(self, first: int, last: int, entries: bool = True) -> Iterator[_Rows]:
        """Yield, block by block, the rows that go to ``first`` … ``last`` − 1; one file is open at a time."""
        for rank, blocks in groupby(self._blocks, lambda block: block.rank):
            # Read, not mapped: pages that a mapping once touched would count as this process's memory.
            with _file(self._scratch, rank).open("rb", buffering=0) as file:
                for block in blocks:
                    def destination(row: int, block: _Block = block, number: int = file.fileno()) -> int:
                        return int.from_bytes(os.pread(number, 8, block.offset + 8 * row), sys.byteorder)

                    start = bisect_left(range(block.rows), first, key=destination)
                    stop = bisect_left(range(block.rows), last, lo=start, key=destination)
                    if start < stop:
                        yield _read(file, block, start, stop, self._types, entries)


def shuffled(comm: Intracomm | Alone, source: RowSource, seed: int, scratch: Path, bar: Progress | None = None,
             bucket_bytes: int = BUCKET_BYTES) -> RowSource:
    """Collective: return ``source``'s rows in a random order that depends on ``seed`` (not negative) alone.

    Row i becomes row π(i), where π is `dml_hpc.kernels.sampling.permute` with a key made from ``seed``. Every rank
    reads its share of the source, block after block, sorts each by destination and appends it to a file of its own in
    the folder ``scratch``, which must stay until the last read. Each rank needs memory for about ``bucket_bytes`` in
    either phase, unless a single row is larger. ``bar`` advances by the rows this rank has written. What the
    source raises on one rank is raised on all.
    """
    types = on_root(comm, lambda: _types(source))
    first, last = split(source.rows, comm.size, comm.rank)
    key = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    blocks: list[_Block] = []
    with agreed(comm):
        scratch.mkdir(parents=True, exist_ok=True)
        with _file(scratch, comm.rank).open("wb") as file:
            at, count = first, FIRST_ROWS
            while at < last:
                stop = min(last, at + count)
                block = _write(file, comm.rank, source, at, stop, key, types)
                blocks.append(block)
                progressed()
                row_bytes = max(1, (file.tell() - block.offset) // block.rows)
                # Rows may get longer: growing slowly keeps a block near its size.
                count = max(1, min(4 * count, bucket_bytes // BLOCKS_A_BUCKET // row_bytes))
                at = stop
                if bar is not None:
                    bar.advance(block.rows)
    every = [block for part in comm.allgather(blocks) for block in part]
    return ShuffledRows(source, scratch, every, types, bucket_bytes) if source.rows else source


def _types(source: RowSource) -> _Types:
    X, y = source.read(0, min(1, source.rows))
    if isinstance(X, Csr):
        return _Types(X.dtype, X.indices.dtype, 0, y.shape[1:])
    return _Types(X.dtype, None, X.shape[1], y.shape[1:])


def _file(scratch: Path, rank: int) -> Path:
    return scratch / f"shuffled-{rank:05d}.rows"


def _write(file: IO[bytes], rank: int, source: RowSource, start: int, stop: int, key: np.uint64,
           types: _Types) -> _Block:
    """Append rows ``start`` … ``stop`` − 1 of the source as a block."""
    from dml_hpc.kernels.dealing import destinations

    X, y = source.read(start, stop)
    places = np.empty(stop - start, np.int64)
    destinations(start, source.rows, key, places)
    order = np.argsort(places)
    parts = [places[order], y[order].astype(np.float64, copy=False)]
    if isinstance(X, Csr):
        rows = _ordered(X, order, types)
        entries = rows.nonzeros
        parts += [rows.indptr, rows.data, rows.indices]
    else:
        entries = X.size
        parts.append(np.ascontiguousarray(X[order], types.data))
    block = _Block(rank, file.tell(), stop - start, entries)
    for part in parts:
        file.write(part.reshape(-1).view(np.uint8).data)
    file.write(bytes(-file.tell() % 8))
    return block


def _ordered(X: Csr, order: np.ndarray, types: _Types) -> Csr:
    """Return ``X.take(order)``, without the memory that it needs for every entry's place."""
    from dml_hpc.kernels.rows import place_rows

    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    indptr = np.zeros(len(order) + 1, np.int64)
    np.cumsum(np.diff(X.indptr)[order], out=indptr[1:])
    data, indices = np.empty(indptr[-1], types.data), np.empty(indptr[-1], types.indices)
    place_rows(places, X.indptr, X.indices, _bits(X.data.astype(types.data, copy=False)), indptr, indices, _bits(data))
    return Csr(data, indices, indptr, X.features)


def _bits(values: np.ndarray) -> np.ndarray:
    """Return numbers as whole ones of their size: they are only moved, and kernels know no float16."""
    return values.view(f"u{values.itemsize}")


def _read(file: IO[bytes], block: _Block, start: int, stop: int, types: _Types, entries: bool) -> _Rows:
    """Return rows ``start`` … ``stop`` − 1 of a block, with or without their entries."""
    def part(at: int, begin: int, end: int, dtype: np.dtype | type) -> np.ndarray:
        file.seek(at + begin * np.dtype(dtype).itemsize)
        return np.fromfile(file, dtype, end - begin)

    y_at = block.offset + 8 * block.rows
    indptr_at = y_at + types.y_bytes * block.rows
    data_at = indptr_at + (8 * (block.rows + 1) if types.indices else 0)
    indices_at = data_at + block.entries * types.data.itemsize
    indptr, indices = np.empty(0, np.int64), np.empty(0, np.int32)
    first, last = start * types.width, stop * types.width
    if types.indices:
        indptr = part(indptr_at, start, stop + 1, np.int64)
        first, last = indptr[[0, -1]].tolist() if entries else (0, 0)
        indices = part(indices_at, first, last, types.indices)
    numbers = math.prod(types.y)
    y = part(y_at, numbers * start, numbers * stop, np.float64).reshape(stop - start, *types.y)
    return _Rows(part(block.offset, start, stop, np.int64), y, indptr - first,
                 part(data_at, first, last, types.data), indices)
