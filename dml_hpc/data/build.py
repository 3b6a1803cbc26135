"""Write a data set: any rows into shards, on any number of ranks, the same bytes on each number."""

from __future__ import annotations

import errno
import os
import shutil
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.console import Progress
from dml_hpc.data.csr import Csr
from dml_hpc.data.manifest import MOST_VALUES, Label, Manifest, ShardEntry
from dml_hpc.data.shard import check_weights
from dml_hpc.data.sources.source import RowSource, label_and_weight
from dml_hpc.data.statistics import MOST_COUNTED, Moments
from dml_hpc.data.writer import label_dtype, open_writer
from dml_hpc.errors import UserError
from dml_hpc.files import one_line
from dml_hpc.layout import split
from dml_hpc.mpi import Alone, agreed
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

BLOCK_BYTES = 2 << 20
"""Rows are read and written in blocks of this size, which stay in the processor's cache meanwhile."""


class _Written(NamedTuple):
    """What one shard came to: ``values`` are the distinct labels, None when there are too many."""

    entry: ShardEntry
    values: np.ndarray | None
    moments: Path


class _Hashing(NamedTuple):
    """What one shard came to, its entry still being made."""

    entry: Future[ShardEntry]
    values: np.ndarray | None
    moments: Path


def build(comm: Intracomm | Alone, folder: Path, parts: dict[str, RowSource], *, shards: int, dtype: str,
          compression: str | None = None, bar: Progress | None = None) -> dict[str, Manifest]:
    """Collective: write each part's rows into ``folder/NAME`` as ``shards`` shards and return their manifests.

    Of more than `MOST_COUNTED` features there are no statistics. NAME "" is ``folder`` itself, which exists; see
    `dml_hpc.mpi.shared_folder`. Each rank writes whole shards, shard s of S the rows of part s of S
    (`dml_hpc.layout.split`). All parts have the label values of all, as one may be trained on and another held out.
    Raises `AgreedError` for values that are not finite or too large for ``dtype``.
    """
    scratch = folder / "moments"
    written: dict[str, list[_Written]] = {name: [] for name in parts}
    with agreed(comm), one_line("the shards"):
        for source in parts.values():
            if source.features > MOST_COUNTED and source.kind == "dense":
                raise UserError(f"dense rows of {source.features:,} features are too long, {MOST_COUNTED:,} is the "
                                "most: store them sparse (--layout csr) or hash them (--hash-bits)")
        _check_room(folder, parts, dtype, compression)
        for name in parts if comm.rank == 0 else ():
            (folder / name).mkdir(exist_ok=True)
        if comm.rank == 0:
            scratch.mkdir()
    # A file is hashed while the next one is written.
    with agreed(comm), one_line("the shards"), ThreadPoolExecutor(1) as hasher:
        waiting: dict[str, list[_Hashing]] = {name: [] for name in parts}
        for order, (name, source) in enumerate(parts.items()):
            for number in range(*split(shards, comm.size, comm.rank)):
                moments = scratch / f"{order}-{number:05d}.npy"
                waiting[name].append(_write_shard(folder / name / f"part-{number:05d}.h5", source, number, shards,
                                                  dtype, compression, moments, hasher, bar))
        for name, hashing in waiting.items():
            written[name] = [_Written(shard.entry.result(), shard.values, shard.moments) for shard in hashing]
    gathered = comm.gather(written)
    manifests = None
    with agreed(comm), one_line("the manifest"):
        if comm.rank == 0:
            assert gathered is not None
            manifests = _manifests(folder, parts, gathered, dtype, compression)
            for path in scratch.iterdir():
                path.unlink()
            scratch.rmdir()
    return comm.bcast(manifests)


def _check_room(folder: Path, parts: dict[str, RowSource], dtype: str, compression: str | None) -> None:
    """Raise `OSError` when the disk has no room for all the rows, where it is known how much they take."""
    # Before any is written: HDF5 may crash when it closes a file on a disk that is full.
    disk = shutil.disk_usage(folder)
    needed = sum(source.rows * source.features * np.dtype(dtype).itemsize
                 for source in parts.values() if source.kind == "dense" and compression is None)
    if disk.total and disk.free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_shard(path: Path, source: RowSource, number: int, shards: int, dtype: str, compression: str | None,
                 kept: Path, hasher: Executor, bar: Progress | None) -> _Hashing:
    start, stop = split(source.rows, shards, number)
    moments = Moments(source.features) if _counted(source) else None
    values: np.ndarray | None = np.empty(0)
    with open_writer(path, source.kind, stop - start, source.features, dtype, compression,
                     source.about.weighted) as writer:
        first = last = start
        while last < stop:
            first, last = last, min(stop, last + _rows_a_block(source, dtype, writer.nonzeros, last - start))
            X, labels = source.read(first, last)
            y, weight = label_and_weight(labels)
            y = _stored_labels(y, first, dtype)
            X = _stored(source, X, first, dtype)
            if moments is not None:
                moments.add(X)
            writer.append(X, y, _stored_weights(weight, first, dtype))
            if values is not None:
                values = np.union1d(values, y.astype(np.float64))
                values = values if len(values) <= MOST_VALUES else None
            progressed()
            if bar is not None:
                bar.advance(last - first)
        writer.close()
    if moments is not None:
        moments.save(kept)
    return _Hashing(hasher.submit(writer.entry), values, kept)


def _counted(source: RowSource) -> bool:
    """Say whether there are figures of each feature."""
    return source.features <= MOST_COUNTED


def _rows_a_block(source: RowSource, dtype: str, nonzeros: int, done: int) -> int:
    if source.kind == "dense":
        return max(1, BLOCK_BYTES // (source.features * np.dtype(dtype).itemsize))
    # How long sparse rows are shows only as they come.
    return max(1, BLOCK_BYTES * done // (16 * (nonzeros + done))) if done else 256


def _stored(source: RowSource, X: np.ndarray | Csr, first: int, dtype: str) -> np.ndarray | Csr:
    """Return X as it will be stored; raises `UserError` for a value that cannot be."""
    values = X.packed().data if isinstance(X, Csr) else X
    with np.errstate(over="ignore", invalid="ignore"):
        stored = values.astype(dtype, copy=False)
        total = stored.sum(dtype=np.float64)
    # A sum is finite when all are; only then is it worth finding which is not.
    if not np.isfinite(total) and not np.isfinite(stored).all():
        _refuse(source, X, stored, first, dtype)
    if isinstance(X, Csr):
        packed = X.packed()
        return Csr(stored, packed.indices, packed.indptr, X.features)
    return stored


def _refuse(source: RowSource, X: np.ndarray | Csr, stored: np.ndarray, first: int, dtype: str) -> None:
    place = np.argwhere(~np.isfinite(stored))[0]
    if isinstance(X, Csr):
        packed = X.packed()
        row, column = int(np.searchsorted(packed.indptr, place[0], side="right")) - 1, int(packed.indices[place[0]])
        value = packed.data[place[0]]
    else:
        row, column = (int(number) for number in place)
        value = X[row, column]
    names = source.about.feature_names
    which = f"column '{names[column]}'" if names else f"column {column}"
    if np.isfinite(value):
        raise UserError(f"{which} holds {value:g}, too large for {dtype}; choose a wider --dtype or leave it out")
    raise UserError(f"row {first + row:,}, {which} holds {value}; mend it or leave it out")


def _stored_labels(y: np.ndarray, first: int, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = y.astype(label_dtype(dtype), copy=False)
    bad = np.flatnonzero(~np.isfinite(stored))
    if len(bad):
        value = y[bad[0]]
        if np.isfinite(value):
            raise UserError(f"the label holds {value:g}, too large for {dtype}; choose a wider --dtype")
        raise UserError(f"the label of row {first + int(bad[0]):,} is {value}; mend it or leave that row out")
    return stored


def _stored_weights(weight: np.ndarray | None, first: int, dtype: str) -> np.ndarray | None:
    if weight is None:
        return None
    check_weights(weight, first)
    with np.errstate(over="ignore"):
        stored = weight.astype(label_dtype(dtype), copy=False)
    if not np.isfinite(stored).all():
        raise UserError(f"a weight is {weight.max():g}, too large for {dtype}; choose a wider --dtype or scale them "
                        "down")
    return stored


def _manifests(folder: Path, parts: dict[str, RowSource], gathered: list[dict[str, list[_Written]]], dtype: str,
               compression: str | None) -> dict[str, Manifest]:
    everything = [shard for ranks in gathered for shards in ranks.values() for shard in shards]
    known = [value for source in parts.values() for value in source.about.label_values or ()]
    values: np.ndarray | None = np.unique(np.array(known, label_dtype(dtype)).astype(np.float64))
    for shard in everything:
        values = None if values is None or shard.values is None else np.union1d(values, shard.values)
    listed = None if values is None or len(values) > MOST_VALUES else values.tolist()
    manifests = {}
    for name, source in parts.items():
        about, shards = source.about, [shard for rank in gathered for shard in rank[name]]
        statistics = None
        if _counted(source):
            moments = Moments(source.features)
            for shard in shards:
                moments.merge_saved(shard.moments)
            statistics = moments.statistics(source.rows, about.numeric, about.missing)
        if statistics is not None and not np.isfinite(statistics.deviation).all():
            column = int(np.flatnonzero(~np.isfinite(statistics.deviation))[0])
            which = f"'{about.feature_names[column]}'" if about.feature_names else str(column)
            raise UserError(f"column {which} holds {statistics.maximum[column]:g}, too large for its deviation to be a "
                            "number; scale it down or leave it out")
        manifests[name] = Manifest(
            kind=source.kind, dtype=dtype, rows=source.rows, features=source.features,
            nonzeros=sum(shard.entry.nonzeros for shard in shards), feature_names=about.feature_names,
            statistics=statistics, columns=about.columns,
            label=Label(about.label, listed, about.label_names, about.label_missing),
            shards=[shard.entry for shard in shards], source=about.source, hash_bits=about.hash_bits,
            compression=compression, weighted=about.weighted)
        manifests[name].write(folder / name)
    return manifests
