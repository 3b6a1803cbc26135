"""Ratings of CSV and Parquet files: parsed once into a scratch folder, their ids gathered, then read from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dml_hpc.console import Progress
from dml_hpc.data.ratings.columns import Wanted, coded, told
from dml_hpc.data.ratings.source import Known, Rows
from dml_hpc.data.sources.cuts import cut
from dml_hpc.data.sources.parse import parsed
from dml_hpc.data.sources.tables import Table, TextError, load_pyarrow
from dml_hpc.errors import UserError
from dml_hpc.mpi import Alone, agreed
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

COMPACT_IDS = 1 << 20
"""So many ids, some of them the same, are gathered before they are counted together."""


class Tally:
    """How often ids come: lists of different ids with their counts, counted together when they are many."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, np.ndarray]] = []
        self._held = 0

    def add(self, ids: Any, counts: np.ndarray) -> None:
        """Count in ``ids``, a pyarrow array, each ``counts`` (n,) times."""
        self._waiting.append((ids, counts))
        self._held += len(ids)
        if self._held > COMPACT_IDS and self._held > 2 * len(self._waiting[0][0]):
            self._waiting = [self.total()]
            self._held = len(self._waiting[0][0])

    def total(self) -> tuple[Any, np.ndarray]:
        """Return the different ids and how often each comes; None for the ids where there are none."""
        pa = load_pyarrow()
        if not self._waiting:
            return None, np.zeros(0, np.int64)
        coded = pa.concat_arrays([ids for ids, _ in self._waiting]).dictionary_encode()
        counts = np.zeros(len(coded.dictionary), np.int64)
        np.add.at(counts, coded.indices.to_numpy(), np.concatenate([counts for _, counts in self._waiting]))
        return coded.dictionary, counts


class _Part(NamedTuple):
    """One file of the scratch folder: rows of ``piece``, the ``part``-th of it."""

    piece: int
    part: int
    path: Path


class TableRatings:
    """The ratings of tables, in a scratch folder: a `RatingSource`. Made by `spooled`."""

    def __init__(self, parts: list[_Part], want: Wanted, users: tuple[Any, np.ndarray], items: tuple[Any, np.ndarray]):
        self._parts = parts
        self._sorted = {"user": users[0], "item": items[0]}
        self.pieces = len(parts)
        self.users = Known(_plain(users[0]), users[1])
        self.items = Known(_plain(items[0]), items[1])
        self.weighted, self.timed = want.roles.weight is not None, want.roles.time is not None

    def read(self, piece: int) -> Iterator[Rows]:
        """See `RatingSource`; what is read is deleted, as it is wanted once."""
        path = self._parts[piece].path
        batch = _open(path)
        users, items = (self._places(batch.column(role), role) for role in ("user", "item"))
        found = {name: batch.column(name).to_numpy() for name in batch.schema.names if name not in ("user", "item")}
        yield Rows(users, items, found["rating"], found.get("weight"), found.get("time"))
        path.unlink()

    def _places(self, column: Any, role: str) -> np.ndarray:
        known = self._sorted[role]
        pa = load_pyarrow()
        if pa.types.is_string(known.type):
            places = pa.compute.index_in(column.dictionary, value_set=known).to_numpy()
        else:
            places = np.searchsorted(known.to_numpy(), column.dictionary.to_numpy())
        return places.astype(np.int64)[column.indices.to_numpy()]


def _plain(ids: Any) -> np.ndarray:
    return ids.to_numpy(zero_copy_only=False)


def _open(path: Path) -> Any:
    pa = load_pyarrow()
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def spooled(comm: Intracomm | Alone, table: Table, want: Wanted, folder: Path, piece_bytes: int,
            bar: Progress | None = None) -> TableRatings:
    """Collective: parse a table's ratings once into files in ``folder`` and gather their ids, sorted, on every rank.

    Neither the files nor the ids depend on the number of ranks. Raises `AgreedError` for ratings that are missing, not
    finite or out of range (see `coded`), and for a table without any.
    """
    pieces = cut(comm, table.sources, piece_bytes)
    parts: list[_Part] = []
    tallies = {"user": Tally(), "item": Tally()}
    with agreed(comm):
        try:
            for number in range(comm.rank, len(pieces), comm.size):
                piece = pieces[number]
                for part, rows in enumerate(parsed(table.sources[piece.source], piece, want)):
                    if rows.table.num_rows:
                        batch = coded(table.sources[piece.source], piece, rows, want)
                        parts.append(_Part(number, part, folder / f"{number:06d}-{part:05d}.arrow"))
                        _write(parts[-1].path, batch)
                        for role, tally in tallies.items():
                            column = batch.column(role)
                            tally.add(column.dictionary, np.bincount(column.indices.to_numpy(),
                                                                     minlength=len(column.dictionary)))
                    progressed()
                    if bar is not None:
                        bar.advance(rows.bytes)
        except TextError as error:
            raise told(error, want) from None
    gathered = comm.allgather((parts, {role: tally.total() for role, tally in tallies.items()}))
    together = {}
    with agreed(comm):
        if not any(some for some, _ in gathered):
            raise UserError(f"{table.name} holds no rating; name another file")
        for role in tallies:
            whole = Tally()
            for _, counted in gathered:
                if counted[role][0] is not None:
                    whole.add(*counted[role])
            together[role] = _sorted(*whole.total())
    return TableRatings(sorted(part for some, _ in gathered for part in some), want, together["user"],
                        together["item"])


def _sorted(ids: Any, counts: np.ndarray) -> tuple[Any, np.ndarray]:
    order = load_pyarrow().compute.array_sort_indices(ids)
    return ids.take(order), counts[order.to_numpy()]


def _write(path: Path, batch: Any) -> None:
    pa = load_pyarrow()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
