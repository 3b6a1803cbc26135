"""Ratings, opened: any block of them, and what their users and items are called."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from dml_hpc.data.dataset import Dataset, open_dataset
from dml_hpc.data.ratings.blocks import Block, Grid, grid_of, grid_shape
from dml_hpc.data.ratings.cutting import ITEMS, USERS, numbering
from dml_hpc.data.ratings.ids import FILE as IDS
from dml_hpc.data.ratings.ids import Ids, read_ids
from dml_hpc.data.ratings.order import pair_order, stored_order, stripes_of
from dml_hpc.data.stored import StoredArray
from dml_hpc.errors import UserError
from dml_hpc.files import file_sha256, first_line
from dml_hpc.layout import split
from dml_hpc.mpi import Alone, agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

MOST_OPEN = 32
"""Shards mapped at a time."""


class Ratings(Protocol):
    """Ratings in a `Grid` of blocks, and the ids of users and items by their numbers."""

    grid: Grid
    weighted: bool
    timed: bool

    def block(self, u: int, i: int) -> Block:
        """Return the ratings of user stripe ``u`` for item stripe ``i``; raises `UserError` on this rank alone."""
        ...

    def times(self, u: int, i: int) -> np.ndarray | None:
        """Return when these were given (n,) int64, None where ratings have no times."""
        ...

    @property
    def users(self) -> Ids:
        """What users are called."""
        ...

    @property
    def items(self) -> Ids:
        """What items are called."""
        ...


class _Named:
    """What both kinds of ratings have: ids by number and numbers by id."""

    users: Ids
    items: Ids

    def user_ids(self, numbers: np.ndarray | None = None) -> np.ndarray:
        """Return the ids, int64 or str, of numbers (n,); without these of all users."""
        return self.users.values if numbers is None else self.users.values[numbers]

    def item_ids(self, numbers: np.ndarray | None = None) -> np.ndarray:
        """Return the ids, int64 or str, of numbers (n,); without these of all items."""
        return self.items.values if numbers is None else self.items.values[numbers]

    def user_numbers(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Return the numbers (n,) int64 of ids, −1 for those that no user has."""
        return self.users.numbers(ids)

    def item_numbers(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Return the numbers (n,) int64 of ids, −1 for those that no item has."""
        return self.items.numbers(ids)


class _Shard(NamedTuple):
    """The arrays of one file, and where each of its blocks begins: (stripes × I + 1,) int64."""

    arrays: dict[str, StoredArray]
    mapped: dict[str, np.ndarray]
    starts: np.ndarray
    first_stripe: int


class StoredRatings(_Named):
    """Ratings in HDF5 shards: each block lies in one piece, and is mapped where it is not compressed.

    ``dataset`` are the files, by which one data set is told from another. A shard is opened when it is first asked
    for. Not to be used by several threads at once.
    """

    def __init__(self, dataset: Dataset):
        entry = dataset.manifest.grid
        assert entry is not None
        self.dataset = dataset
        self.grid = grid_of(entry)
        self.path = dataset.path
        self.paths = dataset.paths
        self.weighted = dataset.manifest.weighted
        self.timed: bool = entry["timed"]
        self._ids: tuple[Ids, Ids] | None = None
        self._shards: dict[int, _Shard] = {}
        self._checked = np.zeros(self.grid.shape, bool)
        shards = len(dataset.paths)
        self._shard_of = np.repeat(np.arange(shards), np.diff([split(self.grid.shape[0], shards, number)[0]
                                                               for number in range(shards + 1)]))

    def block(self, u: int, i: int) -> Block:
        """Return the ratings of user stripe ``u`` for item stripe ``i``, mapped or newly read.

        Numbers are checked when a block is first read, so that no kernel is led outside its arrays. Raises
        `UserError`, on this rank alone, for a shard that is missing, damaged or not what the manifest promises.
        """
        found = Block(self._part("user", u, i), self._part("item", u, i), self._part("rating", u, i),
                      self._part("weight", u, i) if self.weighted else None)
        if not self._checked[u, i] and len(found.users):
            widths = (np.diff(self.grid.user_bounds)[u], np.diff(self.grid.item_bounds)[i])
            for numbers, width in zip(found[:2], widths, strict=True):
                if numbers.min() < 0 or numbers.max() >= width:
                    raise UserError(f"{self.paths[self._shard_of[u]]}: block ({u}, {i}) has a user or item outside its "
                                    "stripe; import the ratings again (`dml-hpc data verify` says more)")
        self._checked[u, i] = True
        return found

    def times(self, u: int, i: int) -> np.ndarray | None:
        """Return when the ratings of a block were given (n,) int64, None where they have no times."""
        return self._part("time", u, i) if self.timed else None

    def _part(self, name: str, u: int, i: int) -> np.ndarray:
        number = int(self._shard_of[u])
        shard = self._shards.get(number) or self._open(number)
        place = (u - shard.first_stripe) * self.grid.shape[1] + i
        start, stop = int(shard.starts[place]), int(shard.starts[place + 1])
        whole = shard.mapped.get(name)
        return shard.arrays[name].read(start, stop) if whole is None else whole[start:stop]

    def _open(self, number: int) -> _Shard:
        opened = self.dataset.ratings(number)
        first, last = split(self.grid.shape[0], len(self.paths), number)
        starts = np.concatenate([[0], np.cumsum(self.grid.counts[first:last].reshape(-1))])
        arrays = {"user": opened.user, "item": opened.item, "rating": opened.labels}
        wanted = {"user": "int32", "item": "int32", "rating": "float32"}
        for name, there, kind in (("weight", self.weighted, "float32"), ("time", self.timed, "int64")):
            if there:
                arrays[name], wanted[name] = opened.extra(name), kind
        for name, array in arrays.items():
            if array.shape != (starts[-1],) or array.dtype != wanted[name]:
                raise UserError(f"{opened.path}: {name} holds {array.shape[0]:,} of {array.dtype}, its manifest says "
                                f"{int(starts[-1]):,} of {wanted[name]}; import the ratings again")
        mapped = {name: array.mapped() for name, array in arrays.items() if array.mappable}
        if not any(array.needs_file for array in arrays.values()):
            opened.close()
        while len(self._shards) >= MOST_OPEN:
            self._shards.pop(next(iter(self._shards)))
        self._shards[number] = _Shard(arrays, mapped, starts, first)
        return self._shards[number]

    @property
    def users(self) -> Ids:  # type: ignore[override]
        """What users are called, read when first asked for."""
        return self._both()[0]

    @property
    def items(self) -> Ids:  # type: ignore[override]
        """What items are called, read when first asked for."""
        return self._both()[1]

    def _both(self) -> tuple[Ids, Ids]:
        if self._ids is None:
            self._check_ids()
            self._ids = read_ids(self.path, self.grid.users, self.grid.items)
        return self._ids

    def _check_ids(self) -> None:
        # Before HDF5 sees it, which a damaged file may crash.
        path, entry = self.path / IDS, self.dataset.manifest.grid
        assert entry is not None
        try:
            if file_sha256(path) != entry["ids_sha256"]:
                raise UserError(f"{path} has changed since it was written; copy it anew or import the data again")
        except OSError as error:
            raise UserError(f"{path} cannot be read: {first_line(error)}; copy it anew or import the data "
                            "again") from None


class MemoryRatings(_Named):
    """Ratings in memory, numbered and cut as an import would; what users and items are called are their numbers here.

    ``users``, ``items`` (n,) are whole numbers from 0, ``ratings`` (n,), ``weights`` (n,) or None, ``times`` (n,) or
    None; no pair twice. ``n_users`` and ``n_items`` may be more than have ratings.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, ratings: np.ndarray, weights: np.ndarray | None = None,
                 times: np.ndarray | None = None, shape: tuple[int, int] | None = None, n_users: int | None = None,
                 n_items: int | None = None, seed: int = 0):
        counts = [np.bincount(numbers, minlength=least or 0) for numbers, least in ((users, n_users), (items, n_items))]
        stripes = grid_shape(len(counts[0]), len(counts[1]), shape)
        user_numbers, user_bounds = numbering(counts[0], stripes[0], seed, USERS)
        item_numbers, item_bounds = numbering(counts[1], stripes[1], seed, ITEMS)
        u, i = user_numbers[users], item_numbers[items]
        stripe = stripes_of(u, user_bounds)
        orders = []
        for number, (low, high) in enumerate(pairwise(user_bounds.tolist())):
            mine = np.flatnonzero(stripe == number)
            for by in (pair_order, stored_order):
                mine = mine[by(u[mine] - low, i[mine], high - low, item_bounds)]
            orders.append(mine)
        order = np.concatenate(orders)
        u, i, own = u[order], i[order], stripe[order]
        other = stripes_of(i, item_bounds)
        blocks = np.bincount(own.astype(np.int64) * stripes[1] + other, minlength=stripes[0] * stripes[1])
        self._starts = np.concatenate([[0], np.cumsum(blocks)])
        given = np.asarray(ratings, np.float32)[order]
        self.grid = Grid(user_bounds, item_bounds, blocks.reshape(stripes).astype(np.int64),
                         *((float(given.mean(dtype=np.float64)), float(given.min()), float(given.max()))
                           if len(given) else ()))
        self._all = Block((u - user_bounds[own]).astype(np.int32), (i - item_bounds[other]).astype(np.int32), given,
                          None if weights is None else np.asarray(weights, np.float32)[order])
        self._times = None if times is None else np.asarray(times, np.int64)[order]
        self.weighted, self.timed = weights is not None, times is not None
        self.users, self.items = Ids(np.argsort(user_numbers)), Ids(np.argsort(item_numbers))

    def block(self, u: int, i: int) -> Block:
        """Return the ratings of user stripe ``u`` for item stripe ``i``."""
        own = self._own(u, i)
        return Block(*(None if part is None else part[own] for part in self._all))  # type: ignore[arg-type]

    def times(self, u: int, i: int) -> np.ndarray | None:
        """Return when the ratings of a block were given (n,) int64, None where they have no times."""
        return None if self._times is None else self._times[self._own(u, i)]

    def _own(self, u: int, i: int) -> slice:
        place = u * self.grid.shape[1] + i
        return slice(int(self._starts[place]), int(self._starts[place + 1]))


def open_ratings(comm: Intracomm | Alone, path: Path) -> StoredRatings:
    """Collective: open a data set folder of ratings; rank 0 reads its manifest, and every rank gets it.

    Raises `AgreedError` for what is no data set, or one of something else than ratings.
    """
    dataset = open_dataset(path, None, comm, ratings=True)
    with agreed(comm):
        if dataset.kind != "ratings":
            raise UserError(f"{path} holds rows of features, not ratings; `dml-hpc data import --user COLUMN --item "
                            "COLUMN --rating COLUMN` makes these")
    return StoredRatings(dataset)
