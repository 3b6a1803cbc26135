"""A data set, opened: its manifest, and any range of its rows as arrays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from dml_hpc.data.csr import Csr, index_dtype
from dml_hpc.data.foreign import described
from dml_hpc.data.leaving_out import LeftOut, cannot_be_opened
from dml_hpc.data.manifest import FILE, Manifest, check_head, read_manifest
from dml_hpc.data.promised import open_promised
from dml_hpc.data.retrying import ADVICE, Pause, retried
from dml_hpc.data.shard import WEIGHT, CsrShard, Keys, RatingsShard, Shard, open_ratings
from dml_hpc.data.statistics import MOST_COUNTED
from dml_hpc.data.writer import CHUNK_BYTES
from dml_hpc.errors import UserError
from dml_hpc.kernels import computable
from dml_hpc.layout import split, weighted_bounds
from dml_hpc.mpi import Alone, on_root

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

Made = TypeVar("Made")

MOST_OPEN = 32
"""Shards open at a time: a process may open only so many files, and each takes memory."""
BLOCK_BYTES = 4 << 20
MOST_ITEM_BYTES = 8


class Piece(NamedTuple):
    """Rows of one shard: ``X`` (count, features) and ``y`` (count,); ``first`` is the global number of their first.

    ``weight`` (count,) is what each counts, None where rows have no weights.
    """

    X: np.ndarray | Csr
    y: np.ndarray
    first: int
    weight: np.ndarray | None = None


class Row(NamedTuple):
    """One row and where it is: ``row`` is its number within the file ``path``.

    ``X`` is (features,) float64, or where rows are sparse one row of float64 entries. ``weight`` None: it has none.
    """

    path: Path
    row: int
    X: np.ndarray | Csr
    y: float
    weight: float | None


class Dataset:
    """The rows of HDF5 files, numbered 0 … rows − 1 in the order of the files.

    Every rank opens the same files; a shard is opened when a row of it is first asked for. ``path`` is what a person
    calls the data set, ``paths`` are its files. ``keys`` name the arrays of files that were never imported.
    """

    def __init__(self, path: Path, manifest: Manifest, paths: Sequence[Path], keys: Keys | None = None,
                 left_out: Sequence[LeftOut] = ()):
        self.path = path
        self.manifest = manifest
        self.paths = list(paths)
        self.rows = manifest.rows
        self.features = manifest.features
        self.kind = manifest.kind
        shard_rows = [shard.rows for shard in manifest.shards]
        self.offsets = np.concatenate([[0], np.cumsum(shard_rows, dtype=np.int64)]).astype(np.int64)
        """(shards + 1,) int64: shard s holds rows ``offsets[s]`` … ``offsets[s + 1] − 1``."""
        self._keys = keys or Keys(weight=WEIGHT if manifest.weighted else None)
        self._opened: dict[int, Shard] = {}
        self._known: set[int] = set()
        """The shards that have been open: one of them that is missing may come back."""
        self.left_out = list(left_out)
        """Shards that were left out: none of their rows count."""
        self.skips_bad_shards = False
        """Whether a shard that turns unreadable is to be left out rather than end the run."""
        self.lost: dict[int, str] = {}
        """The shards that this rank has given up since, or another has, and what was wrong with them."""
        self.forgone: set[int] = set()
        """Those of them that all ranks have agreed to leave out (`dml_hpc.data.leaving_out.leave_out_lost`)."""
        self._lock = threading.Lock()  # a thread that reads ahead opens shards too

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, (self.path, self.manifest, self.paths, self._keys, self.left_out)

    def only(self, numbers: Sequence[int]) -> Dataset:
        """Return the data set of some of the shards, newly opened; the statistics stay those of all."""
        shards = [self.manifest.shards[number] for number in numbers]
        manifest = replace(self.manifest, shards=shards, rows=sum(shard.rows for shard in shards),
                           nonzeros=sum(shard.nonzeros for shard in shards))
        return Dataset(self.path, manifest, [self.paths[number] for number in numbers], self._keys, self.left_out)

    def shard(self, index: int) -> Shard:
        """Return one shard, open; raises as `read` does."""
        return self.read(index, lambda shard: shard)

    def read(self, index: int, take: Callable[[Shard], Made], pause: Pause | None = None) -> Made:
        """Return what ``take`` reads from a shard, which is opened anew and read again when the system fails to.

        Raises `UserError` for a shard that is not what the manifest promises, `LostShardError` for one that stays
        unreadable; see `retried`, and there for ``pause``.
        """
        def taken() -> Made:
            with self._lock:
                shard = self._shard(index)
            return take(shard)

        mend = f"mend {self.paths[index].name}" + ("" if self.skips_bad_shards else f", or note that {ADVICE}")
        return retried(taken, lambda: self._forget(index), mend, index in self._known, pause)

    def labels(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the labels of a shard and what its rows count (None: 1 each), newly read; raises as `read` does."""
        return self.read(index, lambda shard: (shard.y(), shard.weight()))

    def _forget(self, index: int) -> None:
        """Have a shard opened anew when it is next asked for."""
        with self._lock:
            self._opened.pop(index, None)  # another thread may be reading it: who lets go of it last closes it

    def _shard(self, index: int) -> Shard:
        if index in self._opened:
            self._opened[index] = self._opened.pop(index)  # the one used last goes last
            return self._opened[index]
        if len(self._opened) >= MOST_OPEN:
            self._opened.pop(next(iter(self._opened)))
        shard = open_promised(self.paths[index], self.manifest.shards[index], self.manifest, self._keys)
        self._opened[index] = shard
        self._known.add(index)
        return shard

    def ratings(self, index: int) -> RatingsShard:
        """Return one shard of ratings, newly opened; raises `UserError` when it is not what the manifest promises."""
        path, entry = self.paths[index], self.manifest.shards[index]
        if entry.head_bytes:
            check_head(path, entry)
        shard = open_ratings(path)
        if shard.rows != entry.rows:
            shard.close()
            raise UserError(f"{path} holds {shard.rows:,} ratings, its manifest says {entry.rows:,}")
        return shard

    @property
    def used_rows(self) -> int:
        """How many rows count: those of shards that all ranks leave out do not."""
        return self.rows - sum(self.manifest.shards[number].rows for number in self.forgone)

    @property
    def is_imported(self) -> bool:
        """Whether it has a manifest of its own, written when it was made."""
        return self.manifest.is_imported

    @property
    def weighted(self) -> bool:
        """Whether rows have weights."""
        return self._keys.weight is not None

    @property
    def countable(self) -> bool:
        """Whether its features are few enough for statistics of each; more are taken as they are."""
        return self.features <= MOST_COUNTED

    def computable(self, wanted: np.dtype) -> np.dtype:
        """Return the dtype in which kernels get its rows: the stored one, or ``wanted`` where it must be widened."""
        return np.dtype(computable(np.dtype(self.manifest.dtype), wanted, self.kind == "csr"))

    @property
    def chunk_rows(self) -> int | None:
        """How many rows a chunk of X has, None: X is not stored in chunks. The same on every rank."""
        if not self.is_imported:
            return self.manifest.source["chunk_rows"]
        if self.manifest.compression is None or self.kind != "dense":
            return None
        return max(1, CHUNK_BYTES // (self.features * np.dtype(self.manifest.dtype).itemsize))

    def place(self, row: int) -> tuple[int, int]:
        """Return the shard that holds a row, and the row's number in it."""
        number = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return number, row - int(self.offsets[number])

    def row(self, number: int) -> Row:
        """Return the row of a global number, newly read, and where it is: to tell a person about it."""
        index, place = self.place(number)
        X, y, weight = self.read(index, lambda shard: (
            shard.block(place, place + 1), shard.y(place, place + 1), shard.weight(place, place + 1)))
        return Row(self.paths[index], place, X.astype("float64") if isinstance(X, Csr) else X[0].astype(np.float64),
                   float(y[0]), None if weight is None else float(weight[0]))

    def ranges(self, start: int, stop: int, most_rows: int | None = None,
               aligned: bool = False) -> list[tuple[int, int]]:
        """Cut rows ``start`` … ``stop − 1`` at the shards' ends and into at most ``most_rows`` rows each.

        With ``aligned`` they are cut at multiples of ``most_rows``, wherever shards end.
        """
        found = []
        for low, high in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True):
            low, high = max(start, low), min(stop, high)
            step = max(1, most_rows or high - low)
            origin = low - low % step if aligned else low
            found += [(max(first, low), min(first + step, high)) for first in range(origin, high, step) if low < high]
        return found

    def pieces(self, start: int, stop: int, most_rows: int | None = None, mapped: bool = True,
               most_bytes: int = BLOCK_BYTES, aligned: bool = False) -> Iterator[Piece]:
        """Yield rows ``start`` … ``stop − 1`` in order, cut as `ranges` says; the next is read while one is used.

        A piece is a view where the shard is mapped; else it lies in one of a few buffers, and is valid until the next
        is asked for, and so are all without ``mapped``, where the pages of a mapped file would be too much memory.
        ``most_rows`` None makes pieces of at most ``most_bytes`` (or one row), or of all of a shard's rows where it is
        mapped.
        """
        from dml_hpc.data.prefetch import DEPTH, ahead

        if mapped and self.mappable(start, stop):
            return (self._view(*cut) for cut in self.ranges(start, stop, most_rows, aligned))
        wanted = (self._cuts(start, stop, most_bytes) if most_rows is None else
                  iter(self.ranges(start, stop, most_rows, aligned)))
        longest = most_rows or max(1, most_bytes // self.row_bytes())
        ring: list[np.ndarray] = []
        ended = threading.Event()

        def read(cut: tuple[int, int]) -> Piece:
            number, begin = self.place(cut[0])
            end = begin + cut[1] - cut[0]
            if self.kind == "dense" and len(ring) <= DEPTH + 1:
                ring.append(np.empty(longest * self.features * MOST_ITEM_BYTES, np.uint8))
            elif self.kind == "dense":
                ring.append(ring.pop(0))

            def take(shard: Shard) -> Piece:
                if isinstance(shard, CsrShard):
                    return Piece(shard.block(begin, end, mapped), shard.y(begin, end), cut[0],
                                 shard.weight(begin, end))
                X = ring[-1].view(shard.dtype)[:(end - begin) * self.features].reshape(end - begin, self.features)
                shard.stored.read_into(begin, end, X)
                return Piece(X, shard.y(begin, end), cut[0], shard.weight(begin, end))

            return self.read(number, take, ended.wait)

        return ahead(read, wanted, ended=ended)

    def mappable(self, start: int, stop: int) -> bool:
        """Say whether rows ``start`` … ``stop − 1`` can be used where their files are mapped."""
        if self.is_imported:
            return self.manifest.compression is None
        numbers = [number for number, low in enumerate(self.offsets[:-1].tolist())
                   if low < stop and self.offsets[number + 1] > start]
        return len(numbers) <= MOST_OPEN and all(self.shard(number).mappable for number in numbers)

    def _view(self, first: int, last: int) -> Piece:
        number, start = self.place(first)
        stop = start + last - first
        return self.read(number, lambda shard: Piece(shard.block(start, stop), shard.y(start, stop), first,
                                                     shard.weight(start, stop)))

    def _cuts(self, start: int, stop: int, most_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of rows of one shard each that take at most ``most_bytes``, or one row."""
        for first, last in self.ranges(start, stop):
            number, begin = self.place(first)
            end = begin + last - first
            while begin < end:
                until = self.shard(number).within(begin, end, most_bytes)
                yield first, first + until - begin
                first, begin = first + until - begin, until

    def row_bytes(self) -> int:
        """Return how many bytes X has a row, on average."""
        width = self.features if self.kind == "dense" else 2 * self.manifest.nonzeros // max(self.rows, 1) + 1
        return width * np.dtype(self.manifest.dtype).itemsize

    def block_rows(self) -> int:
        """Return how many rows make about `BLOCK_BYTES`."""
        return max(1, BLOCK_BYTES // self.row_bytes())

    def partition(self, parts: int, shares: Sequence[float] | None = None) -> list[int]:
        """Return ``parts + 1`` rows at which to cut for ``parts`` equal shares of the work, or for ``shares`` (parts,).

        Dense rows are all the same work; of sparse ones the entries are counted. The same on every rank.
        """
        if self.kind != "csr":
            if shares is not None:
                return weighted_bounds(self.rows, shares)
            return [split(self.rows, parts, i)[0] for i in range(parts)] + [self.rows]
        before = range(parts + 1) if shares is None else [0.0, *accumulate(shares)]
        entries = np.concatenate([[0], np.cumsum([shard.nonzeros for shard in self.manifest.shards], dtype=np.int64)])
        cuts = [0]
        for i in range(1, parts):
            wanted = entries[-1] * before[i] / before[-1]
            number = min(int(np.searchsorted(entries, wanted, side="right")) - 1, len(self.paths) - 1)
            inside = (wanted - entries[number]) / max(int(entries[number + 1] - entries[number]), 1)
            row = self.shard(number).balanced(inside) if entries[-1] else split(self.rows, parts, i)[0]
            cuts.append(max(cuts[-1], int(self.offsets[number]) + row if entries[-1] else row))
        return [*cuts, self.rows]


def open_dataset(paths: Path | Sequence[Path], keys: Keys | None = None, comm: Intracomm | Alone | None = None,
                 labels: bool = True, ratings: bool = False, skip_bad_shards: bool = False) -> Dataset:
    """Open a data set folder, some of its shards, or HDF5 files that were never imported (``keys`` name their arrays).

    Without ``labels`` files that were never imported need none, and all are 0, and weights are not read. Only with
    ``ratings`` may these be ratings, whose shards `Dataset.ratings` opens. With ``skip_bad_shards`` files that were
    never imported may be missing or damaged: see `without_bad_shards`, which does the rest. Collective over ``comm``:
    rank 0 alone looks at the files, and every rank gets what it found. Raises `UserError` (`AgreedError` with ``comm``)
    for what is no data set.
    """
    several = [paths] if isinstance(paths, Path) else list(paths)
    if comm is None:
        return _open(several, keys, labels, ratings, skip_bad_shards)
    return on_root(comm, lambda: _open(several, keys, labels, ratings, skip_bad_shards))


def _open(paths: list[Path], keys: Keys | None, labels: bool, ratings: bool, skip_bad_shards: bool) -> Dataset:
    if not paths:
        raise UserError("there is no data to open; name a data set folder or HDF5 files")
    if len(paths) == 1 and (paths[0].is_dir() or not paths[0].is_file()):
        manifest = read_manifest(paths[0])
        if keys is not None:
            raise UserError(f"{paths[0]} is a data set with a manifest; --x-key, --y-key and --weight-key are for "
                            "files without one")
        if manifest.kind == "ratings" and not ratings:
            raise UserError(f"{paths[0]} holds ratings, rows of features are wanted here; `dml-hpc mf` factorises "
                            "ratings")
        return Dataset(paths[0], manifest, [paths[0] / shard.file for shard in manifest.shards])
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder; name one data set folder, or files alone")
    if keys is None and (some := _some_of_a_dataset(paths)) is not None:
        return some
    keys = keys or Keys()
    keys = keys if labels else keys._replace(y=None, weight=None)
    left_out = cannot_be_opened(paths, keys) if skip_bad_shards else []
    good = [path for path in paths if str(path) not in {one.file for one in left_out}]
    return Dataset(paths[0] if len(paths) == 1 else paths[0].parent, described(good, keys), good, keys, left_out)


def _some_of_a_dataset(paths: list[Path]) -> Dataset | None:
    """Return the data set of shards that lie in one data set folder, with what its manifest says of them."""
    folder = paths[0].parent
    if any(path.parent != folder for path in paths) or not (folder / FILE).is_file():
        return None
    manifest = read_manifest(folder)
    entries = {shard.file: shard for shard in manifest.shards}
    if any(path.name not in entries for path in paths):
        return None
    if manifest.kind == "ratings":
        raise UserError(f"{folder} holds ratings, of which some shards are of no use; name the folder")
    numbers = [manifest.shards.index(entries[path.name]) for path in paths]
    return Dataset(folder, manifest, [folder / shard.file for shard in manifest.shards]).only(numbers)


def no_rows(dataset: Dataset, dtype: np.dtype) -> np.ndarray | Csr:
    """Return an X of no rows, of the kind that the data set has, with entries of ``dtype``."""
    if dataset.kind == "csr":
        indices = np.empty(0, index_dtype(dataset.features))
        return Csr(np.empty(0, dtype), indices, np.zeros(1, np.int64), dataset.features)
    return np.empty((0, dataset.features), dtype)
