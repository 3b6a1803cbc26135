"""Import: files of any kind become a data set, on any number of ranks."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dml_hpc.console import Console
from dml_hpc.data.build import build
from dml_hpc.data.csr import Csr, sparse
from dml_hpc.data.manifest import Manifest, read_manifest
from dml_hpc.data.replaceable import check_replaceable
from dml_hpc.data.sources.arrays import ArrayRows
from dml_hpc.data.sources.cuts import PIECE_BYTES
from dml_hpc.data.sources.holdout import Held
from dml_hpc.data.sources.matching import matching
from dml_hpc.data.sources.matrices import is_matrix, open_matrix
from dml_hpc.data.sources.shuffle import shuffled
from dml_hpc.data.sources.source import About, RowSource
from dml_hpc.data.sources.tables import is_table, open_table
from dml_hpc.data.sources.tabular import MOST_DENSE_BITS, Columns, Plan, Prepared, planned, planned_like, prepare
from dml_hpc.errors import UserError
from dml_hpc.mpi import Alone, agreed, on_root, shared_folder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class MatrixKeys(NamedTuple):
    """What only files of matrices have: names of X, y and weights in them, and how many features there are at least."""

    x_key: str | None = None
    y_key: str | None = None
    weight_key: str | None = None
    features: int | None = None


class Form(NamedTuple):
    """How a data set is stored: see `dml_hpc.data.build.build`; ``layout`` is "dense", "csr" or "auto"."""

    shards: int = 1
    dtype: str = "float32"
    layout: str = "auto"
    compression: str | None = None


ALL, USUAL, PLAIN = Columns(), MatrixKeys(), Form()


class _Settled(NamedTuple):
    """What rank 0 finds before any row is read: the files, for tables the plan, and the data set to be like."""

    paths: list[Path]
    plan: Plan | None
    like: Manifest | None


def import_data(comm: Intracomm | Alone, sources: Sequence[Path | str], output: Path, *, label: str | None = None,
                weight: str | None = None, columns: Columns = ALL, keys: MatrixKeys = USUAL, like: Path | None = None,
                holdout: float = 0.0, seed: int = 0, shuffle: bool = False, form: Form = PLAIN,
                piece_bytes: int = PIECE_BYTES, console: Console | None = None) -> dict[str, Any]:
    """Collective: import the rows of ``sources``, paths or patterns of paths, into ``output``, a new data set.

    Tables (see `open_table`): features are the columns ``columns.categorical`` (one-hot), ``numeric`` and ``text``
    (hashed word by word); when none is given, every column but ``label``, ``weight`` and ``drop``, text as categorical,
    numbers and booleans as numeric. They keep the table's order. With ``columns.hash_bits`` features are hashed
    (`Encoder`). Rows without a label are dropped. A label of words or booleans becomes 0, 1, … in sorted order. A
    missing number becomes the mean of the training rows. ``weight`` is a column of numbers, what each row counts. Other
    files: see `open_matrix`.

    With ``like``, another data set, columns, categories, hashing, label words and fill values come from its manifest,
    so that a model trained on it fits. With ``holdout`` above 0 that share of the rows (`held_out`) goes to
    ``output/test``, the others to ``output/train``, each a data set. With ``shuffle`` rows are stored in random order.

    ``output`` appears when it is complete; a data set that stood there is replaced. It is the same, byte for byte, on
    any number of ranks. Memory does not grow with the rows. Returns ``rows``, ``rows_read``, ``rows_without_label``,
    ``features``, ``nonzeros``, ``kind``, ``weighted``, ``statistics`` (whether there are any), ``shards``, ``output``,
    ``train_rows``, ``test_rows`` (None without ``holdout``), ``missing_values``, ``unseen_categories`` and ``work_s``.
    Raises `AgreedError` for every input that does not fit.
    """
    started = time.perf_counter()
    console = console or Console(progress=False)
    settled: _Settled = on_root(comm, lambda: _settle(sources, output, label, weight, columns, keys, like, holdout,
                                                      seed, form))
    with shared_folder(comm, output) as folder:
        scratch = folder / "scratch"
        on_root(comm, scratch.mkdir)
        prepared = _prepared(comm, settled, scratch, label, weight, columns, keys, holdout, seed, form, piece_bytes,
                             console)
        parts = _parts(comm, prepared, settled.paths, holdout, seed, shuffle, scratch)
        bar = console.bar(sum(part.rows for part in parts.values()) // comm.size, "writing")
        manifests = build(comm, folder, parts, shards=form.shards, dtype=form.dtype, compression=form.compression,
                          bar=bar)
        bar.close()
        found = {"rows_read": prepared.rows_read, "missing_values": prepared.missing_values,
                 "unseen_categories": prepared.unseen_categories}
        del prepared, parts  # which hold files in scratch
        comm.Barrier()
        on_root(comm, lambda: shutil.rmtree(scratch))
    rows = sum(manifest.rows for manifest in manifests.values())
    first = next(iter(manifests.values()))
    return {
        "rows": rows, **found, "rows_without_label": found["rows_read"] - rows, "features": first.features,
        "nonzeros": sum(manifest.nonzeros for manifest in manifests.values()), "kind": first.kind,
        "weighted": first.weighted, "statistics": first.statistics is not None, "shards": form.shards,
        "output": str(output), "train_rows": manifests["train"].rows if holdout else None,
        "test_rows": manifests["test"].rows if holdout else None, "work_s": round(time.perf_counter() - started, 6)}


def _settle(sources: Sequence[Path | str], output: Path, label: str | None, weight: str | None, columns: Columns,
            keys: MatrixKeys, like: Path | None, holdout: float, seed: int, form: Form) -> _Settled:
    if not 0 <= holdout < 1 or seed < 0 or form.shards < 1 or form.dtype not in ("float16", "float32", "float64"):
        raise UserError(f"--holdout is a share from 0 to below 1, --seed at least 0, --shards at least 1, --dtype "
                        f"float16, float32 or float64; got {holdout}, {seed}, {form.shards}, {form.dtype}")
    paths = matching(sources)
    check_replaceable(output, paths)
    if like is not None and columns != ALL:
        raise UserError(f"--like takes the columns from {like}: leave out --categorical, --numeric, --text, --drop and "
                        "--hash-bits")
    manifest = read_manifest(like) if like is not None else None
    bits = manifest.hash_bits if manifest is not None else columns.hash_bits
    if form.layout == "dense" and bits is not None and bits > MOST_DENSE_BITS:
        raise UserError(f"--layout dense: rows of 2^{bits} numbers are too long; leave it out, or --hash-bits at most "
                        f"{MOST_DENSE_BITS}")
    tables = [path for path in paths if is_table(path)]
    others = [path for path in paths if not is_table(path)]
    for path in others:
        if not is_matrix(path):
            raise UserError(f"{path} is neither .csv, .csv.gz, .csv.zip, .parquet, LIBSVM, .npy, .npz nor .h5, by its "
                            "name or first line")
    if tables and others:
        raise UserError(f"{tables[0]} is a table, {others[0]} is none; import them one after the other")
    if others:
        if columns != Columns(hash_bits=columns.hash_bits):
            raise UserError(f"{others[0]} has no named columns; leave out --categorical, --numeric, --text and --drop")
        return _Settled(paths, None, manifest)
    if label is None:
        raise UserError("--label is needed: the name of the column to predict")
    if keys != USUAL:
        raise UserError("--x-key, --y-key, --weight-key and --features are for files of matrices, not for tables; "
                        "leave them out")
    table = open_table(paths)
    plan = planned(table, label, weight, columns) if like is None or manifest is None else \
        planned_like(table, label, weight, like, manifest)
    return _Settled(paths, plan, manifest)


def _prepared(comm: Intracomm | Alone, settled: _Settled, scratch: Path, label: str | None, weight: str | None,
              columns: Columns, keys: MatrixKeys, holdout: float, seed: int, form: Form, piece_bytes: int,
              console: Console) -> Prepared:
    """Collective: return the rows in the form they are to be stored in."""
    plan, like = settled.plan, settled.like
    layout = like.kind if like is not None and form.layout == "auto" else form.layout
    if plan is not None:
        bar = console.bar(plan.table.bytes // comm.size, "reading")
        kind = layout if layout != "auto" else "dense" if plan.hash_bits is None else "csr"
        prepared = prepare(comm, plan, scratch, holdout=holdout, seed=seed, dtype=form.dtype, kind=kind,
                           piece_bytes=piece_bytes, bar=bar)
        bar.close()
        return prepared
    bar = console.bar(sum(path.stat().st_size for path in settled.paths) // comm.size, "reading")
    rows = open_matrix(comm, settled.paths, scratch, label=label, x_key=keys.x_key, y_key=keys.y_key,
                       weight=weight, weight_key=keys.weight_key,
                       features=keys.features if like is None else like.features, dtype=form.dtype, bar=bar,
                       hash_bits=columns.hash_bits if like is None else like.hash_bits,
                       zero_based=None if like is None else like.source.get("zero_based"), holdout=holdout, seed=seed,
                       fill=None if like is None or like.statistics is None else like.statistics.mean)
    bar.close()
    with agreed(comm):
        if like is not None and rows.features != like.features:
            raise UserError(f"{settled.paths[0]} has {rows.features:,} features, the data set to be like has "
                            f"{like.features:,}; they cannot be the same")
    found = rows
    if layout not in ("auto", rows.kind):
        rows = Converted(rows, layout)
    missing = rows.about.missing
    abouts = [rows.about, rows.about]
    if holdout and isinstance(found, ArrayRows) and found.missing_of_parts is not None:
        abouts = [dataclasses.replace(rows.about, missing=part) for part in found.missing_of_parts]
    return Prepared(rows, abouts, rows.rows, 0 if missing is None else int(missing.sum()), 0)


def _parts(comm: Intracomm | Alone, prepared: Prepared, paths: Sequence[Path], holdout: float, seed: int,
           shuffle: bool, scratch: Path) -> dict[str, RowSource]:
    """Collective: return the rows of each part of the data set, by the part's name."""
    parts: dict[str, RowSource] = {"": prepared.rows}
    if holdout:
        parts = {"train": Held(prepared.rows, holdout, seed, False), "test": Held(prepared.rows, holdout, seed, True)}
        with agreed(comm):
            if not parts["train"].rows:
                raise UserError(f"--holdout {holdout} leaves no row to train on; hold out less")
    for (name, part), about in zip(list(parts.items()), prepared.about, strict=False):
        if shuffle:
            place = scratch / f"shuffle-{name}"
            on_root(comm, place.mkdir)
            part = shuffled(comm, part, seed, place)
        part.about = _with_source(about, paths, holdout, seed, shuffle, name)
        parts[name] = part
    return parts


def _with_source(about: About, paths: Sequence[Path], holdout: float, seed: int, shuffle: bool, name: str) -> About:
    source = {"files": [str(path) for path in paths], **about.source, "holdout": holdout, "seed": seed,
              "shuffled": shuffle, "part": name or "all"}
    return dataclasses.replace(about, source=source)


class Converted:
    """Another source's rows, dense ones as sparse or sparse ones as dense: a `RowSource`."""

    def __init__(self, source: RowSource, kind: str):
        self.kind = kind
        self.rows = source.rows
        self.features = source.features
        self.about = source.about
        self._source = source

    def read(self, start: int, stop: int) -> tuple[np.ndarray | Csr, np.ndarray]:
        """Return rows ``start`` … ``stop`` − 1; see `RowSource`."""
        X, y = self._source.read(start, stop)
        if self.kind == "dense":
            return X.dense() if isinstance(X, Csr) else X, y
        return X if isinstance(X, Csr) else sparse(X), y
