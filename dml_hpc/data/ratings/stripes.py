"""Ratings on their way: dealt to their stripes of users in a scratch folder, then sorted, stripe by stripe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.console import Progress
from dml_hpc.data.ratings.order import pair_order, stored_order, stripes_of
from dml_hpc.data.ratings.source import RatingSource, Rows
from dml_hpc.errors import UserError
from dml_hpc.mpi import Alone, agreed
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

DUPLICATES = ("last", "mean", "refuse")


class Stripe(NamedTuple):
    """The ratings of a stripe of users in stored order, each pair once.

    ``users`` (n,) int32 are relative to the stripe, ``items`` (n,) int32 to their item stripes; ``counts`` (I,) int64
    are the ratings for each of these. ``dropped`` says how many ratings were of a pair that there is already.
    """

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    weights: np.ndarray | None
    times: np.ndarray | None
    counts: np.ndarray
    dropped: int = 0

    def only(self, chosen: np.ndarray) -> Stripe:
        """Return the ratings for which ``chosen`` (n,) is true."""
        owner = np.repeat(np.arange(len(self.counts)), self.counts)
        counts = np.bincount(owner[chosen], minlength=len(self.counts)).astype(np.int64)
        weights, times = (None if part is None else part[chosen] for part in (self.weights, self.times))
        return Stripe(self.users[chosen], self.items[chosen], self.ratings[chosen], weights, times, counts)


class Numbers(NamedTuple):
    """The new number of each user and item, by place among the ids, and where the stripes begin; all int64."""

    users: np.ndarray
    items: np.ndarray
    user_bounds: np.ndarray
    item_bounds: np.ndarray


class _Segment(NamedTuple):
    """Ratings of a piece in a stripe's file: ``rows`` of them from byte ``offset``, column after column."""

    piece: int
    part: int
    rank: int
    offset: int
    rows: int


class Spread:
    """Ratings in a file a stripe and rank; any rank may ask for a stripe. Made by `spread`."""

    def __init__(self, folder: Path, numbers: Numbers, segments: list[list[_Segment]], dtypes: list[str | None],
                 duplicates: str):
        self._folder = folder
        self._numbers = numbers
        self._segments = segments
        self._dtypes = dtypes
        self._duplicates = duplicates

    def stripe(self, u: int) -> Stripe:
        """Return a stripe, sorted, of each pair what is to be kept; its files are deleted, as it is wanted once.

        Raises `UserError` for a pair that comes twice where that is refused.
        """
        users, items, ratings, weights, times = self._load(u)
        assert users is not None and items is not None and ratings is not None
        bounds, item_bounds = self._numbers.user_bounds, self._numbers.item_bounds
        n, n_users = len(users), int(bounds[u + 1] - bounds[u])
        order = pair_order(users, items, n_users, item_bounds)
        arrays = self._without_duplicates(u, [None if part is None else part[order]
                                              for part in (users, items, ratings, weights, times)])
        assert arrays[0] is not None and arrays[1] is not None
        order = stored_order(arrays[0], arrays[1], n_users, item_bounds)
        users, items, ratings, weights, times = (None if part is None else part[order] for part in arrays)
        assert users is not None and items is not None and ratings is not None
        stripe = stripes_of(items, item_bounds)
        counts = np.bincount(stripe, minlength=len(item_bounds) - 1).astype(np.int64)
        relative = (items - item_bounds[stripe]).astype(np.int32)
        return Stripe(users, relative, ratings, weights, times, counts, n - len(users))

    def _load(self, u: int) -> list[np.ndarray | None]:
        segments = sorted(self._segments[u])
        rows = sum(segment.rows for segment in segments)
        out = [None if dtype is None else np.empty(rows, dtype) for dtype in self._dtypes]
        start = 0
        for segment in segments:
            place = segment.offset
            with _file(self._folder, u, segment.rank).open("rb", buffering=0) as file:
                file.seek(place)
                for column in out:
                    if column is not None:
                        view = column[start:start + segment.rows].view(np.uint8).data
                        while len(view):
                            count = file.readinto(view)
                            if not count:
                                raise UserError(f"{self._folder} is cut short: is its disk full?")
                            view = view[count:]
            start += segment.rows
        for rank in {segment.rank for segment in segments}:
            _file(self._folder, u, rank).unlink()
        return out

    def _without_duplicates(self, u: int, arrays: list[np.ndarray | None]) -> list[np.ndarray | None]:
        users, items, ratings, weights, times = arrays
        assert users is not None and items is not None and ratings is not None
        new = np.ones(len(users), bool)
        new[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
        if new.all():
            return arrays
        starts = np.flatnonzero(new)
        if self._duplicates == "refuse":
            raise DuplicateError(int(self._numbers.user_bounds[u]) + int(users[np.argmin(new)]),
                                 int(items[np.argmin(new)]), len(users) - len(starts))
        if self._duplicates == "mean":
            sizes = np.diff(np.append(starts, len(users)))
            means = [None if part is None else
                     (np.add.reduceat(part, starts, dtype=np.float64) / sizes).astype(np.float32)
                     for part in (ratings, weights)]
            return [users[starts], items[starts], *means,
                    None if times is None else np.maximum.reduceat(times, starts)]
        from dml_hpc.kernels.rating_blocks import mark_last

        kept = np.empty(len(users), bool)
        mark_last(starts, np.empty(0, np.int64) if times is None else times, kept)
        return [None if part is None else part[kept] for part in arrays]


class DuplicateError(UserError):
    """A pair comes twice, where that is refused: (number of the user, of the item, how many ratings too many)."""

    def __init__(self, user: int, item: int, more: int):
        super().__init__(f"user {user} has rated item {item} twice")
        self.user, self.item, self.more = user, item, more


def spread(comm: Intracomm | Alone, source: RatingSource, numbers: Numbers, folder: Path, duplicates: str,
           bar: Progress | None = None) -> Spread:
    """Collective: deal the ratings of ``source`` to their stripes of users, in files in ``folder``.

    ``duplicates`` says what counts of ratings of one pair: the "last", by time where there is one, else in order; the
    "mean"; or "refuse". The stripes do not depend on the number of ranks. Raises `AgreedError`.
    """
    dtypes = ["int32", "int32", "float32", "float32" if source.weighted else None, "int64" if source.timed else None]
    stripes = len(numbers.user_bounds) - 1
    own: list[list[_Segment]] = [[] for _ in range(stripes)]
    with agreed(comm):
        stripe_of = stripes_of(np.arange(int(numbers.user_bounds[-1])), numbers.user_bounds)[numbers.users]
        relative = (numbers.users - numbers.user_bounds[stripe_of]).astype(np.int32)
        items = numbers.items.astype(np.int32)
        sizes = np.zeros(stripes, np.int64)
        for piece in range(comm.rank, source.pieces, comm.size):
            for part, rows in enumerate(source.read(piece)):
                _deal(rows, (stripe_of, relative, items), folder, comm.rank, piece, part, own, sizes)
                progressed()
                if bar is not None:
                    bar.advance(len(rows.users))
    segments = [[segment for one in every for segment in one]
                for every in zip(*comm.allgather(own), strict=True)]
    return Spread(folder, numbers, segments, dtypes, duplicates)


def _deal(rows: Rows, tables: tuple[np.ndarray, np.ndarray, np.ndarray], folder: Path, rank: int, piece: int, part: int,
          own: list[list[_Segment]], sizes: np.ndarray) -> None:
    from dml_hpc.kernels.rating_blocks import next_order

    stripe_of, relative, items = tables
    stripe = stripe_of[rows.users]
    order = np.empty(len(stripe), np.int64)
    next_order(stripe, len(sizes), np.arange(len(stripe)), order)
    columns = [part for part in (relative[rows.users], items[rows.items], rows.ratings, rows.weights, rows.times)
               if part is not None]
    columns = [np.ascontiguousarray(column[order]) for column in columns]
    ends = np.cumsum(np.bincount(stripe, minlength=len(sizes)))
    start = 0
    for u, end in enumerate(ends.tolist()):
        if end > start:
            own[u].append(_Segment(piece, part, rank, int(sizes[u]), end - start))
            with _file(folder, u, rank).open("ab", buffering=0) as file:
                for column in columns:
                    written = column[start:end].view(np.uint8).data
                    while len(written):
                        written = written[file.write(written):]
                    sizes[u] += column[start:end].nbytes
        start = end


def _file(folder: Path, u: int, rank: int) -> Path:
    return folder / f"stripe-{u:06d}-{rank:05d}"
