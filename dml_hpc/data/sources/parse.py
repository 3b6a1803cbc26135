"""Pieces of source tables become pyarrow tables, every piece parsed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, NamedTuple, Protocol

import numpy as np

from dml_hpc.data.sources.cuts import PIECE_BYTES, Piece
from dml_hpc.data.sources.tables import BOOLEAN, Source, load_pyarrow, open_text, readable

BATCH_BYTES = 32 << 20
MOST_BATCH_ROWS = 1 << 20


class Wanted(NamedTuple):
    """The columns that are read: ``numbers``, ``words``, which are categories, and ``texts`` of many words.

    ``label`` is one of the first two, ``weight`` one of the first; ``kinds`` say what the first file's columns hold.
    """

    numbers: list[str]
    words: list[str]
    texts: list[str]
    label: str
    kinds: Mapping[str, str]
    weight: str | None = None

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [*self.numbers, *self.words, *self.texts]

    def types(self) -> dict[str, Any]:
        """Return the type that each is read as."""
        pa = load_pyarrow()
        # "true" is no number to a CSV reader: a column that began with booleans is read as such.
        types = {name: pa.bool_() if self.kinds[name] == BOOLEAN else pa.float64() for name in self.numbers}
        types.update(dict.fromkeys(self.words, pa.dictionary(pa.int32(), pa.string())))
        return {**types, **dict.fromkeys(self.texts, pa.string())}


class ReadAs(Protocol):
    """Which columns are read: their names, and by name the type that text is read as."""

    @property
    def names(self) -> list[str]:
        """All of them."""
        ...

    def types(self) -> dict[str, Any]:
        """Return the type that each is read as."""
        ...


class Parsed(NamedTuple):
    """Some rows of a file as a pyarrow table, the bytes of the file they took, and how many rows came before them.

    These are not counted (None) where a piece of plain CSV was cut; see `rows_before`.
    """

    table: Any
    bytes: int
    before: int | None = None


def parsed(source: Source, piece: Piece, wanted: ReadAs) -> Iterator[Parsed]:
    """Yield the rows of a piece in order, so much at a time that memory stays bounded.

    pyarrow's threads share the work. Raises `UserError` for what cannot be read and `TextError` for text in a column
    of numbers, with its row.
    """
    if source.form == "parquet":
        yield from _row_groups(source, piece, wanted)
    elif source.form == "csv":
        with readable(source.path), source.path.open("rb", buffering=0) as file:
            file.seek(piece.start)
            text = file.read(piece.stop - piece.start)
        table = _table(text, source, wanted.types(), piece.start == 0, lambda: rows_before(source, piece.start))
        yield Parsed(table, len(text))
    else:
        yield from _packed(source, wanted)


def _row_groups(source: Source, piece: Piece, wanted: ReadAs) -> Iterator[Parsed]:
    pa = load_pyarrow()
    with readable(source.path), pa.parquet.ParquetFile(source.path) as file:
        before = sum(file.metadata.row_group(group).num_rows for group in range(piece.start))
        rows = max(1, min(MOST_BATCH_ROWS, BATCH_BYTES // (8 * len(wanted.names))))
        for batch in file.iter_batches(rows, row_groups=range(piece.start, piece.stop), columns=wanted.names):
            size = source.bytes * batch.num_rows // file.metadata.num_rows
            yield Parsed(pa.Table.from_batches([batch]), size, before)
            before += batch.num_rows


def _packed(source: Source, wanted: ReadAs) -> Iterator[Parsed]:
    types = wanted.types()
    rows, done = 0, 0
    with readable(source.path), open_text(source.path, source.form) as (stream, tell):
        for number, text in enumerate(_whole_rows(stream)):
            table = _table(text, source, types, number == 0, lambda rows=rows: rows)  # type: ignore[misc]
            yield Parsed(table, tell() - done, rows)
            rows, done = rows + table.num_rows, tell()


def _table(text: bytes, source: Source, types: Mapping[str, Any], header: bool, before: Callable[[], int]) -> Any:
    """Parse rows of CSV, with the file's header or ``before()`` rows after it."""
    pa = load_pyarrow()

    def read(threads: bool) -> Any:
        return pa.csv.read_csv(
            pa.BufferReader(text),
            pa.csv.ReadOptions(use_threads=threads, column_names=None if header else list(source.kinds)),
            pa.csv.ParseOptions(newlines_in_values=b'"' in text),
            pa.csv.ConvertOptions(strings_can_be_null=True, include_columns=list(types), column_types=types))

    try:
        return read(True)
    except pa.ArrowInvalid:
        # One thread counts rows: now the error names the one.
        with readable(source.path, list(source.kinds), 0 if header else before() + 1):
            return read(False)


def rows_before(source: Source, stop: int) -> int:
    """Return how many rows a CSV file holds before byte ``stop``, where one begins."""
    first = next(iter(source.kinds))
    rows = 0
    with readable(source.path), open_text(source.path, source.form) as (stream, _):
        for number, text in enumerate(_whole_rows(stream, stop)):
            rows += _table(text, source, {first: load_pyarrow().string()}, number == 0, lambda: 0).num_rows
    return rows


def _whole_rows(stream: IO[bytes], stop: int | None = None) -> Iterator[bytes]:
    """Yield the text of a stream, or its first ``stop`` bytes, in parts of about `PIECE_BYTES` that are whole rows."""
    from dml_hpc.kernels.csv_rows import last_row_end

    held, place = b"", 0
    while more := stream.read(PIECE_BYTES if stop is None else min(PIECE_BYTES, stop - place)):
        place += len(more)
        text = held + more
        quoted = b'"' in text
        end = int(last_row_end(np.frombuffer(text, np.uint8))) if quoted else text.rfind(b"\n") + 1
        if end:
            yield text[:end]
        held = text[end:]
    if held:
        yield held
