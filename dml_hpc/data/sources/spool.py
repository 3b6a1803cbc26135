"""The spool: parsed rows as Arrow files in a scratch folder, by column, to be mapped into memory when they are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dml_hpc.console import Progress
from dml_hpc.data.sources.columns import as_numbers, as_tokens, as_words
from dml_hpc.data.sources.cuts import Piece, cut
from dml_hpc.data.sources.parse import Parsed, Wanted, parsed, rows_before
from dml_hpc.data.sources.tables import Source, TextError, load_pyarrow
from dml_hpc.errors import UserError
from dml_hpc.mpi import Alone, agreed
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Spooled(NamedTuple):
    """One file of the spool: ``rows`` rows with a label of the ``read`` that were parsed, part ``part`` of a piece."""

    piece: Piece
    part: int
    path: Path
    rows: int
    read: int


def spool(comm: Intracomm | Alone, sources: Sequence[Source], wanted: Wanted, dtype: str, folder: Path,
          piece_bytes: int, bar: Progress | None = None) -> list[Spooled]:
    """Collective: parse every source once into files in ``folder``; return them in the order of their rows.

    Rows without a label are left out. A column of numbers is float64 with NaN where a value is missing (float32 where
    ``dtype`` has no more digits; a numeric label and a weight are always float64), one of words dictionary-coded, one
    of text lists of such. Neither the files nor their contents depend on the number of ranks. Raises `AgreedError` for
    what cannot be read, text among numbers, numbers that are infinite or too large for ``dtype``, and weights that are
    missing or negative.
    """
    pieces = cut(comm, sources, piece_bytes)
    written: list[Spooled] = []
    with agreed(comm):
        try:
            written += _written(sources, pieces[comm.rank::comm.size], wanted, dtype, folder, bar)
        except TextError as error:
            raise error.told(dict(wanted.kinds)) from None
    return sorted(entry for entries in comm.allgather(written) for entry in entries)


def _written(sources: Sequence[Source], pieces: Sequence[Piece], wanted: Wanted, dtype: str, folder: Path,
             bar: Progress | None) -> Iterator[Spooled]:
    """Write the rows of pieces, each while the next are parsed: parsing waits for the cores, writing for the disk."""
    waiting: Future[Spooled] | None = None
    with ThreadPoolExecutor(1) as writer:
        for piece in pieces:
            source = sources[piece.source]
            for part, rows in enumerate(parsed(source, piece, wanted)):
                if waiting is not None:
                    yield waiting.result()
                waiting = writer.submit(_write, source, piece, part, rows, wanted, dtype, folder)
                progressed()
                if bar is not None:
                    bar.advance(rows.bytes)
        if waiting is not None:
            yield waiting.result()


def _write(source: Source, piece: Piece, part: int, rows: Parsed, wanted: Wanted, dtype: str,
           folder: Path) -> Spooled:
    pa = load_pyarrow()
    path = folder / f"{piece.source:05d}-{piece.start:015d}-{part:05d}.arrow"
    table = rows.table
    read = table.num_rows
    plain: dict[str, Any] = {}
    if wanted.label in wanted.numbers:
        label = as_numbers(table.column(wanted.label), wanted.label, source.path, rows.before or 0)
        present = pa.compute.invert(pa.compute.is_nan(label))
    else:
        label = as_words(table.column(wanted.label))
        present = label.is_valid()
    if wanted.weight is not None:
        _check_weight(source, piece, rows, wanted.weight, present)
    # The other columns first: an error among them counts even where the row has no label.
    for name in wanted.numbers:
        plain[name] = label if name == wanted.label else as_numbers(table.column(name), name, source.path,
                                                                             rows.before or 0)
    for name in wanted.words:
        plain[name] = label if name == wanted.label else as_words(table.column(name))
    for name in wanted.texts:
        plain[name] = as_tokens(table.column(name))
    kept = pa.compute.sum(present).as_py() or 0
    if kept < read:
        plain = {name: column.filter(present) for name, column in plain.items()}
    for name in wanted.numbers:
        exact = name in (wanted.label, wanted.weight)
        plain[name] = pa.array(_stored(plain[name], name, source, "float64" if exact else dtype))
    if kept:
        stored = pa.RecordBatch.from_arrays(list(plain.values()), list(plain))
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, stored.schema) as writer:
            writer.write_batch(stored)
    return Spooled(piece, part, path, kept, read)


def _check_weight(source: Source, piece: Piece, rows: Parsed, name: str, present: Any) -> None:
    """Raise `UserError` for a weight that is missing, negative or infinite, in a row that is ``present``."""
    weight = as_numbers(rows.table.column(name), name, source.path, rows.before or 0).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)) & present.to_numpy(zero_copy_only=False))
    if len(bad):
        before = rows_before(source, piece.start) if rows.before is None else rows.before
        value = "missing" if np.isnan(weight[bad[0]]) else f"{weight[bad[0]]:g}"
        raise UserError(f"row {before + int(bad[0]) + 1:,} of {source.path}: its weight ('{name}') is {value}; weights "
                        "are finite and at least 0: mend it or leave the row out")


def _stored(values: Any, name: str, source: Source, dtype: str) -> np.ndarray:
    from dml_hpc.kernels.columns import store

    column = values.to_numpy()
    out = np.empty(len(column), np.float64 if dtype == "float64" else np.float32)
    least, greatest = store(column, out)
    largest = max(-least, greatest)
    if largest == np.inf:
        raise UserError(f"column '{name}' of {source.path} holds an infinite value; mend it or leave it out")
    if largest > float(np.finfo(dtype).max):
        raise UserError(f"column '{name}' holds {largest:g}, too large for {dtype}; "
                        "choose a wider --dtype or leave it out")
    return out


def open_spooled(entry: Spooled) -> Any:
    """Return a file of the spool as a pyarrow record batch, mapped into memory."""
    pa = load_pyarrow()
    return pa.ipc.open_file(pa.memory_map(str(entry.path))).get_batch(0)
