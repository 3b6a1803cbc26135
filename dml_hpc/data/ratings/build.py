"""Write ratings, stripe by stripe of users, into shards: the same bytes on any number of ranks."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dml_hpc.console import Progress
from dml_hpc.data.manifest import MOST_VALUES, Label, Manifest, ShardEntry
from dml_hpc.data.ratings.blocks import Grid
from dml_hpc.data.ratings.ids import FILE, write_ids
from dml_hpc.data.ratings.stripes import Stripe
from dml_hpc.data.ratings.writer import StripesWriter
from dml_hpc.errors import UserError
from dml_hpc.files import file_sha256, one_line
from dml_hpc.layout import split
from dml_hpc.mpi import Alone, agreed
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Cut(NamedTuple):
    """How ratings are cut, (U + 1,) and (I + 1,) int64, and what users and items are called, by their numbers."""

    user_bounds: np.ndarray
    item_bounds: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray


class Form(NamedTuple):
    """How ratings are stored, and what a manifest says of them besides; ``label`` is what they are called."""

    label: str
    weighted: bool
    timed: bool
    shards: int
    compression: str | None
    source: dict[str, Any]


class Parts(NamedTuple):
    """What is written: each stripe whole, or where ``held`` says which of its ratings are held out, in two parts."""

    stripe: Callable[[int], Stripe]
    held: Callable[[int, Stripe], np.ndarray] | None = None

    @property
    def names(self) -> list[str]:
        """The folders of the parts, "" for the whole."""
        return [""] if self.held is None else ["train", "test"]


class _Figures:
    """What the stripes of a shard hold together, and of each stripe how many ratings its blocks have."""

    def __init__(self) -> None:
        self.counts: list[np.ndarray] = []
        self.sums: list[float] = []
        self.lowest, self.highest = math.inf, -math.inf
        self.values: np.ndarray | None = np.empty(0)

    def add(self, stripe: Stripe) -> None:
        self.counts.append(stripe.counts)
        if not len(stripe.ratings):
            return
        self.sums.append(float(stripe.ratings.sum(dtype=np.float64)))
        self.lowest = min(self.lowest, float(stripe.ratings.min()))
        self.highest = max(self.highest, float(stripe.ratings.max()))
        if self.values is not None:
            found = np.unique(stripe.ratings[:MOST_VALUES * 100])
            if len(found) <= MOST_VALUES:  # else there are too many to list, whatever the others are
                found = np.unique(stripe.ratings)
            self.values = np.union1d(self.values, found.astype(np.float64))
            self.values = self.values if len(self.values) <= MOST_VALUES else None


class _Written(NamedTuple):
    entry: ShardEntry
    figures: _Figures


def write_ratings(comm: Intracomm | Alone, folder: Path, parts: Parts, cut: Cut, form: Form,
                  bar: Progress | None = None) -> tuple[dict[str, Manifest], int]:
    """Collective: write stripes of users as shards into ``folder``, or its folders ``train`` and ``test``.

    Each rank writes whole shards, which hold whole stripes (`dml_hpc.layout.split`); both parts have the same numbers,
    grid and ids. Returns the manifests by part, and how many ratings the stripes dropped. Raises `AgreedError`.
    """
    stripes = len(cut.user_bounds) - 1
    shards = min(form.shards, stripes)
    with agreed(comm), one_line("the shards"):
        for name in parts.names if comm.rank == 0 else ():
            (folder / name).mkdir(exist_ok=True)
            write_ids(folder / name, cut.user_ids, cut.item_ids)
    written: dict[str, list[_Written]] = {name: [] for name in parts.names}
    dropped = 0
    # A file is hashed while the next one is written.
    with agreed(comm), one_line("the shards"), ThreadPoolExecutor(1) as hasher:
        waiting: dict[str, list[tuple[Future[ShardEntry], _Figures]]] = {name: [] for name in parts.names}
        for number in range(*split(shards, comm.size, comm.rank)):
            with ExitStack() as stack:
                writers = {name: stack.enter_context(StripesWriter(folder / name / f"part-{number:05d}.h5",
                                                                   form.compression)) for name in parts.names}
                figures = {name: _Figures() for name in parts.names}
                for u in range(*split(stripes, shards, number)):
                    dropped += _add(u, parts, writers, figures, bar)
                for name, writer in writers.items():
                    writer.close()
                    waiting[name].append((hasher.submit(writer.entry), figures[name]))
        for name, entries in waiting.items():
            written[name] = [_Written(entry.result(), found) for entry, found in entries]
    gathered = comm.gather((written, dropped))
    outcome = None
    with agreed(comm), one_line("the manifest"):
        if comm.rank == 0:
            assert gathered is not None
            manifests = {name: _manifest(folder / name, [shard for rank, _ in gathered for shard in rank[name]], cut,
                                         form) for name in parts.names}
            empty = [name for name, manifest in manifests.items() if not manifest.rows and name]
            if empty:
                raise UserError(f"no rating is left to {empty[0]}; hold out another share")
            values = [manifest.label.values for manifest in manifests.values()]
            known = None if None in values else sorted({value for some in values for value in some or ()})
            for name, manifest in manifests.items():
                manifest.label.values = known if known is not None and len(known) <= MOST_VALUES else None
                manifest.source["part"] = name or "all"
                manifest.write(folder / name)
            outcome = manifests, sum(more for _, more in gathered)
    return comm.bcast(outcome)


def _add(u: int, parts: Parts, writers: dict[str, StripesWriter], figures: dict[str, _Figures],
         bar: Progress | None) -> int:
    stripe = parts.stripe(u)
    pieces = {"": stripe}
    if parts.held is not None:
        held = parts.held(u, stripe)
        pieces = {"train": stripe.only(~held), "test": stripe.only(held)}
    for name, piece in pieces.items():
        writers[name].add({"user": piece.users, "item": piece.items, "rating": piece.ratings, "weight": piece.weights,
                           "time": piece.times})
        figures[name].add(piece)
    progressed()
    if bar is not None:
        bar.advance(len(stripe.users))
    return stripe.dropped


def _manifest(folder: Path, shards: list[_Written], cut: Cut, form: Form) -> Manifest:
    figures = [shard.figures for shard in shards]
    counts = np.array([counts for one in figures for counts in one.counts], np.int64)
    rows = int(counts.sum())
    values: np.ndarray | None = np.empty(0)
    for one in figures:
        values = None if values is None or one.values is None else np.union1d(values, one.values)
    grid = Grid(cut.user_bounds, cut.item_bounds, counts,
                *((math.fsum(part for one in figures for part in one.sums) / rows,
                   min(one.lowest for one in figures), max(one.highest for one in figures)) if rows else ()))
    entry = {**grid.described(), "timed": form.timed, "ids_sha256": file_sha256(folder / FILE)}
    listed = None if values is None or len(values) > MOST_VALUES else values.tolist()
    return Manifest(
        kind="ratings", dtype="float32", rows=rows, features=grid.items, nonzeros=rows, feature_names=None,
        statistics=None, columns=[], label=Label(form.label, listed), shards=[shard.entry for shard in shards],
        source=dict(form.source), compression=form.compression, users=grid.users, weighted=form.weighted, grid=entry)


def check_room(folder: Path, ratings: int, form: Form) -> None:
    """Raise `OSError` when the disk has no room for so many ratings, plain."""
    disk = shutil.disk_usage(folder)
    if disk.total and form.compression is None and \
            disk.free < ratings * (12 + 4 * form.weighted + 8 * form.timed):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
