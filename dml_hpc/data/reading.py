"""The rows of a rank, step by step: from memory where they fit, else read block by block, a few blocks ahead."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from dml_hpc.data.batches import Batches, Part
from dml_hpc.data.csr import Csr
from dml_hpc.data.dataset import Dataset, no_rows
from dml_hpc.data.leaving_out import lose
from dml_hpc.data.shard import CsrShard, Shard
from dml_hpc.errors import JobError, UserError
from dml_hpc.kernels import computable

Prepare = Callable[[np.ndarray, "np.ndarray | None"], "tuple[np.ndarray, np.ndarray | None]"]
"""From labels and weights (None: rows have none) to what an objective learns from and what each row counts.

Whether weights come of it (None: each counts 1) does not depend on the labels. Raises `UserError` for a label that
cannot be learnt from.
"""


class Rows(NamedTuple):
    """Some rows: those numbered ``rows`` (count,) int64 of ``X`` (·, features), with the targets ``y`` (·,).

    ``weight`` (·,) is what each counts, None: 1 each.
    """

    X: np.ndarray | Csr
    y: np.ndarray
    rows: np.ndarray
    weight: np.ndarray | None = None


class Arrays(NamedTuple):
    """What `Rows` are rows of."""

    X: np.ndarray | Csr
    y: np.ndarray
    weight: np.ndarray | None


class Reader(ABC):
    """What a rank reads, in ``steps`` steps an epoch, the same number on every rank.

    ``count`` is the number of rows that this rank takes in an epoch, unless some are left out; ``how`` is "mapped",
    "memory" or "streamed"; ``waited_s`` the time spent waiting for rows; ``part`` (start, stop) the rows that are
    `everything` of this rank.
    """

    how: str
    count: int
    waited_s = 0.0
    recurs = False
    """Whether every epoch has the same steps, each the same rows of the same arrays."""
    may_lose = False
    """Whether any rank's reader may lose shards while it reads; the same on every rank. See `settle_losses`."""
    work_share = 0.0
    """This rank's part of all work, where ranks have contiguous parts of it (`Batches.share`)."""
    most_rows = 0
    """No step has more rows of this rank, where they are at hand."""

    def __init__(self, dataset: Dataset, steps: int, part: tuple[int, int]):
        self.dataset, self.steps, self.part = dataset, steps, part
        self._left_out = 0, 0

    @property
    def left_out_rows(self) -> int:
        """How many of this rank's ``part`` are not read, as their shards turned unreadable (`Dataset.lost`)."""
        lost = self.dataset.lost
        if len(lost) != self._left_out[0]:
            self._left_out = len(lost), lost_rows(self.dataset, lost, *self.part)
        return self._left_out[1]

    @property
    def used(self) -> int:
        """How many rows this rank takes in an epoch: ``count`` without those that are left out."""
        return self.count - self.left_out_rows

    @abstractmethod
    def take(self, epoch: int, step: int) -> tuple[Iterable[Rows], int]:
        """Return this rank's rows of a step and how many rows the step has; valid until the next call.

        Steps come one after the other; a step may be taken again. Rows of shards that all ranks leave out
        (`Dataset.forgone`) are none of them; of those that this rank alone has lost, what it has read may be.
        """

    @abstractmethod
    def everything(self) -> Iterable[Rows]:
        """Return this rank's part of all rows, in storage order; each valid until the next."""

    @abstractmethod
    def rows_of(self, epoch: int, step: int) -> np.ndarray:
        """Return the global numbers (count,) int64 of the rows that `take` gives; `Dataset.row` reads each.

        What `take` returned is valid no longer.
        """

    def at_hand(self) -> list[Arrays] | None:
        """Return what all parts are rows of, which stays where it is; None: rows are read step by step."""
        return None

    def close(self) -> None:  # noqa: B027 -- most have nothing to let go of
        """Let go of what is read ahead."""

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_reader(dataset: Dataset, batches: Batches, prepare: Prepare, dtype: np.dtype,
                most_bytes: int | None) -> Reader:
    """Return the reader that suits the data: rows stay mapped, or are kept in memory, or are streamed.

    ``most_bytes`` is what the rows may take, None: as much as they need. Mapped pages count too, as they do for whoever
    limits a job's memory. X comes in a type that kernels can use with ``dtype``. Raises `UserError` for a shard that is
    not as it should be, or when even streaming needs more than ``most_bytes``.
    """
    from dml_hpc.data.streaming import Streamed

    weighted = gives_weights(dataset, prepare)
    needed = 0
    for number in batches.shards:
        try:
            if number not in dataset.lost:
                needed += stored_bytes(dataset, number, *inside(dataset, batches, number), dtype, weighted)
        except (UserError, JobError) as error:
            lose(dataset, number, error)
    if most_bytes is None or needed <= most_bytes:
        return Resident(dataset, batches, prepare, dtype)
    return Streamed(dataset, batches, prepare, dtype, most_bytes)


def stored_bytes(dataset: Dataset, number: int, start: int, stop: int, dtype: np.dtype,
                 weighted: bool = False) -> int:
    """Return how much memory rows ``start`` … ``stop − 1`` of a shard take when they are kept, targets included."""
    shard = dataset.shard(number)
    wide = np.dtype(computable(shard.dtype, dtype, shard.kind == "csr")).itemsize / shard.dtype.itemsize
    return int(shard.bytes_of(start, stop) * wide) + (stop - start) * dtype.itemsize * (1 + weighted)


def gives_weights(dataset: Dataset, prepare: Prepare) -> bool:
    """Say whether what ``prepare`` makes of the rows has weights."""
    return prepare(np.empty(0), np.empty(0) if dataset.weighted else None)[1] is not None


def prepared(dataset: Dataset, number: int, prepare: Prepare, y: np.ndarray,
             weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what ``prepare`` makes of labels and weights of a shard; a `UserError` names its file."""
    try:
        return prepare(y, weight)
    except UserError as error:
        raise UserError(f"{dataset.paths[number]}: {error}") from None


def inside(dataset: Dataset, batches: Batches, number: int) -> tuple[int, int]:
    """Return which rows of a shard are this rank's, as numbers within the shard."""
    low, high = (int(offset) for offset in dataset.offsets[number:number + 2])
    return max(batches.range[0], low) - low, min(batches.range[1], high) - low


class Loaded:
    """Rows at hand: mapped where the file allows it, else in memory.

    ``ranges`` says which rows of which shards, by the shard's number; every reader over them shares them. X comes in a
    type that kernels can use with ``dtype``.
    """

    def __init__(self, dataset: Dataset, ranges: Mapping[int, tuple[int, int]], prepare: Prepare, dtype: np.dtype):
        self.dataset = dataset
        self._shards: dict[int, tuple[np.ndarray | Csr, np.ndarray, np.ndarray | None, int]] = {}
        self._mapped = True
        for number, (low, high) in ranges.items():
            none = np.empty(0)
            X, y, weight = no_rows(dataset, dataset.computable(dtype)), none, none if dataset.weighted else None
            try:
                if number not in dataset.lost:
                    X, y, weight = dataset.read(number, partial(self._read, low=low, high=high, dtype=dtype))
            except (UserError, JobError) as error:
                lose(dataset, number, error)
            self._shards[number] = X, *prepared(dataset, number, prepare, y, weight), low
        self.how = "mapped" if self._mapped else "memory"

    def _read(self, shard: Shard, low: int, high: int,
              dtype: np.dtype) -> tuple[np.ndarray | Csr, np.ndarray, np.ndarray | None]:
        kind = computable(shard.dtype, dtype, shard.kind == "csr")
        self._mapped = self._mapped and shard.mappable and shard.dtype == kind
        X: np.ndarray | Csr
        if isinstance(shard, CsrShard):
            X = shard.block(low, high).astype(kind, copy=False)
        elif shard.dtype == kind:
            X = shard.block(low, high)
        else:
            X = np.empty((high - low, shard.features), kind)
            shard.stored.read_into(low, high, X)
        return X, shard.y(low, high), shard.weight(low, high)

    def rows(self, shard: int, rows: np.ndarray) -> Rows:
        """Return rows of a shard by their numbers in it (count,) int64, which are changed in place.

        Of a shard that was left out these are none.
        """
        X, y, weight, low = self._shards[shard]
        if not len(X) or shard in self.dataset.forgone:
            rows = rows[:0]
        if low:
            rows -= low
        return Rows(X, y, rows, weight)

    def arrays(self) -> list[Arrays]:
        """Return what the rows lie in, shard by shard."""
        return [Arrays(X, y, weight) for X, y, weight, _ in self._shards.values()]


class Resident(Reader):
    """The rows of `Batches`, at hand."""

    def __init__(self, dataset: Dataset, batches: Batches, prepare: Prepare, dtype: np.dtype):
        super().__init__(dataset, batches.steps, batches.range)
        self.batches, self.count, self.work_share = batches, batches.count, batches.share
        self.recurs, self.most_rows = not batches.shuffle, batches.most_rows
        self._loaded = Loaded(dataset, {number: inside(dataset, batches, number) for number in batches.shards},
                              prepare, dtype)
        self.how = self._loaded.how

    def take(self, epoch: int, step: int) -> tuple[Iterable[Rows], int]:
        """See `Reader.take`: the rows are those of `Batches.take`, the count is that of all ranks together."""
        parts, rows = self.batches.take(epoch, step)
        forgone = self.dataset.forgone
        return self._rows(parts), self.batches.rows(step, forgone) if forgone else rows

    def everything(self) -> Iterable[Rows]:
        """See `Reader.everything`."""
        return self._rows(self.batches.everything())

    def rows_of(self, epoch: int, step: int) -> np.ndarray:
        """See `Reader.rows_of`."""
        return global_rows(self.dataset, self.batches, epoch, step)

    def at_hand(self) -> list[Arrays] | None:
        """See `Reader.at_hand`."""
        return self._loaded.arrays()

    def _rows(self, parts: list[Part]) -> list[Rows]:
        found = [self._loaded.rows(part.shard, part.rows) for part in parts]
        return [part for part in found if len(part.rows)] if self.left_out_rows else found


def lost_rows(dataset: Dataset, lost: Container[int], start: int, stop: int) -> int:
    """Return how many of rows ``start`` … ``stop − 1`` are in the shards ``lost``."""
    return sum(last - first for first, last in dataset.ranges(start, stop) if dataset.place(first)[0] in lost)


def global_rows(dataset: Dataset, batches: Batches, epoch: int, step: int) -> np.ndarray:
    """Return the global numbers (count,) int64 of this rank's rows of a step, of shards that are not lost."""
    parts, _ = batches.take(epoch, step)
    return np.concatenate([np.empty(0, np.int64), *(part.rows + dataset.offsets[part.shard] for part in parts
                                                    if part.shard not in dataset.lost)])
