"""Source tables: CSV and Parquet files as one stream of chunks of columns, in bounded memory."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from dml_hpc.errors import UserError, did_you_mean

NUMERIC, BOOLEAN, TEXT, EMPTY = "numeric", "boolean", "text", "empty"
"""What a column holds, where it can become features; others are called by their type (``timestamp[s]``)."""

CHUNK_ROWS = 65_536
CHUNK_BYTES = 32 << 20


class Words(NamedTuple):
    """A column of words: row i holds ``words[codes[i]]``, or nothing where ``codes[i]`` is -1."""

    codes: np.ndarray
    words: list[str]


Chunk = dict[str, "np.ndarray | Words"]
"""Some rows by column: a numeric one is (rows,) float64 with NaN where a value is missing."""


class Source(NamedTuple):
    """One file: its columns in order with what they hold, its size, and how to read (batch, bytes done)."""

    path: Path
    kinds: dict[str, str]
    bytes: int
    read: Callable[[Mapping[str, bool]], Iterator[tuple[Any, int]]]


class Table:
    """The rows of one or several files, in the order given. The first file says which columns there are."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = sources
        self.kinds = sources[0].kinds
        self.bytes = sum(source.bytes for source in sources)
        self.name = sources[0].path.name if len(sources) == 1 else f"{len(sources)} files"

    def check_column(self, name: str) -> None:
        """Raise `UserError` with the nearest name when a file has no column ``name``."""
        for source in self.sources:
            if name not in source.kinds:
                near = did_you_mean(name, source.kinds)
                few = ", ".join(list(source.kinds)[:12]) + (", …" if len(source.kinds) > 12 else "")
                raise UserError(f"{source.path} has no column '{name}'{near or f'; it has {few}'}")

    def chunks(self, numeric: Mapping[str, bool]) -> Iterator[tuple[Chunk, int]]:
        """Yield (chunk, bytes read for it) of the columns in ``numeric``: numbers where true, else words.

        Every chunk but the last has the same number of rows, which depends on the number of columns alone:
        what is computed by chunk does not depend on how the rows are stored. Raises `UserError` for what
        cannot be read, and for text in a numeric column (naming column, value and row).
        """
        rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // (8 * max(1, len(numeric)))))
        done = 0
        for table, position in _even(self._batches(numeric), rows):
            yield {name: _numbers(table[name]) if number else _words(table[name])
                   for name, number in numeric.items()}, position - done
            done = position

    def _batches(self, numeric: Mapping[str, bool]) -> Iterator[tuple[Any, int]]:
        before = 0
        for source in self.sources:
            rows = 0
            try:
                for batch, position in source.read(numeric):
                    yield _plain(batch, numeric, source, rows), before + position
                    rows += batch.num_rows
            except _TextError as text:
                raise self._text_in(text) from None
            before += source.bytes

    def _text_in(self, text: _TextError) -> UserError:
        column, value, row = text.args
        value = value if len(value) <= 40 else value[:40] + "…"
        kind = self.kinds[column]
        if kind == TEXT:
            return UserError(f"column '{column}' was promised numeric but holds text ('{value}', {row}); "
                             "name it in --categorical or leave it out")
        # Read as numbers because it began as such; nobody promised it. It may be the label, which has no option.
        return UserError(f"column '{column}' looked {kind} in the file's first rows but holds text ('{value}', {row}) "
                         "later; name it in --categorical (or, where it is the label, mend that value: a label is "
                         "all numbers or all words)")


def open_table(paths: Sequence[Path]) -> Table:
    """Open source files: ``.csv``, ``.csv.gz``, ``.csv.zip`` (one member) and ``.parquet``.

    What a column of a CSV file holds is inferred from its first million bytes. Raises `UserError` for a file
    that is missing, empty, or not of these kinds.
    """
    if not paths:
        raise UserError("there is no file to import; name at least one")
    _pyarrow()
    return Table([_open(path) for path in paths])


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        raise UserError("reading tables needs pyarrow; run: pip install 'dml-hpc[data]'") from None
    return pyarrow


def _open(path: Path) -> Source:
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the files in it")
    name = path.name.lower()
    if name.endswith((".parquet", ".pq")):
        source = _parquet(path)
    elif name.endswith((".csv", ".csv.gz", ".csv.zip")):
        source = _csv(path)
    else:
        raise UserError(f"{path} is neither .csv, .csv.gz, .csv.zip nor .parquet, by its name")
    return source


def _kinds(path: Path, schema: Any) -> dict[str, str]:
    types = _pyarrow().types
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise UserError(f"{path} has two columns called '{name}'; rename one")
    kinds = {}
    for name, kind in zip(schema.names, schema.types, strict=True):
        of = kind.value_type if types.is_dictionary(kind) else kind
        if types.is_integer(of) or types.is_floating(of) or types.is_decimal(of):
            kinds[name] = NUMERIC
        elif types.is_boolean(of):
            kinds[name] = BOOLEAN
        elif types.is_string(of) or types.is_large_string(of):
            kinds[name] = TEXT
        else:
            kinds[name] = EMPTY if types.is_null(of) else str(of)
    return kinds


def _parquet(path: Path) -> Source:
    pa = _pyarrow()
    size = path.stat().st_size

    def read(numeric: Mapping[str, bool]) -> Iterator[tuple[Any, int]]:
        with pa.parquet.ParquetFile(path) as file:
            rows = 0
            for batch in file.iter_batches(CHUNK_ROWS // 4, columns=list(numeric)):
                rows += batch.num_rows
                yield batch, size * rows // file.metadata.num_rows

    with _readable(path), pa.parquet.ParquetFile(path) as file:
        kinds = _kinds(path, file.schema_arrow)
    return Source(path, kinds, size, lambda numeric: _checked(path, list(kinds), read(numeric)))


def _csv(path: Path) -> Source:
    pa = _pyarrow()

    unpacked = _unpacked(path) if path.name.lower().endswith(".zip") else None
    size = os.fstat(unpacked.fileno()).st_size if unpacked else path.stat().st_size

    def stream() -> tuple[Any, Callable[[], int]]:
        """Return the text as a file, and how many of the ``size`` bytes are read so far."""
        raw = pa.OSFile(f"/proc/self/fd/{unpacked.fileno()}" if unpacked else str(path))
        return pa.CompressedInputStream(raw, "gzip") if path.name.lower().endswith(".gz") else raw, raw.tell

    def reader(file: Any, **convert: Any) -> Any:
        return pa.csv.open_csv(
            file,
            # One thread counts rows, so that a bad value can be found; it is no slower on one stream.
            read_options=pa.csv.ReadOptions(use_threads=False),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(strings_can_be_null=True, **convert))

    def read(numeric: Mapping[str, bool]) -> Iterator[tuple[Any, int]]:
        file, tell = stream()
        # "true" is no number to a CSV reader: a column that began with booleans is read as such.
        types = {name: pa.string() if not number else pa.bool_() if kinds[name] == BOOLEAN else pa.float64()
                 for name, number in numeric.items()}
        with reader(file, include_columns=list(numeric), column_types=types) as batches:
            for batch in batches:
                yield batch, tell()

    with _readable(path), reader(stream()[0]) as first:
        kinds = _kinds(path, first.schema)
    return Source(path, kinds, size, lambda numeric: _checked(path, list(kinds), read(numeric)))


def _unpacked(path: Path) -> IO[bytes]:
    """Return the archive's only member as a nameless temporary file.

    pyarrow reads ahead in threads of its own, which must not call a Python file: one that still did when the
    interpreter ended would abort the process.
    """
    with _readable(path), zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            raise UserError(f"{path} holds {len(members)} files, not one; unpack it and name the files")
        file = tempfile.TemporaryFile()  # noqa: SIM115 -- read as long as the table is
        with archive.open(members[0]) as member:
            shutil.copyfileobj(member, file, 1 << 20)
        file.flush()
    return file


def _checked(path: Path, columns: Sequence[str], batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        # Only the reading: what the consumer raises is its own.
        with _readable(path, columns):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


class _readable:  # noqa: N801 -- reads as a statement: `with _readable(path):`
    """Turns what a reader raises into a `UserError` of one line that names the file."""

    def __init__(self, path: Path, columns: Sequence[str] = ()):
        self.path, self.columns = path, columns

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # pyarrow's own errors are ValueError, OSError and RuntimeError, by inheritance.
        readers = (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error)
        if not isinstance(error, readers):
            return
        text = " ".join(str(error).split())
        where = re.search(r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to \w+: (.*)", text)
        if where and int(where[1]) < len(self.columns):
            column = self.columns[int(where[1])]
            row = f"row {int(where[2]):,} of {self.path}" if where[2] else str(self.path)
            value = re.fullmatch(r"invalid value '(.*)'", where[3])
            if value:
                raise _TextError(column, value[1], row) from None
            raise UserError(f"column '{column}', {row}: {where[3]}; CSV is to be UTF-8") from None
        raise UserError(f"{self.path} cannot be read: {text[:200] or type(error).__name__}") from None


class _TextError(Exception):
    """Text in a column that is read as numbers: (column, value, row)."""


def _plain(batch: Any, numeric: Mapping[str, bool], source: Source, row: int) -> Any:
    """Return the batch with every column as float64 or string; ``row`` rows of the file came before it."""
    pa = _pyarrow()
    arrays = [_as_float(batch.column(name), name, source, row) if number else _as_text(batch.column(name))
              for name, number in numeric.items()]
    return pa.RecordBatch.from_arrays(arrays, list(numeric))


def _as_float(array: Any, name: str, source: Source, row: int) -> Any:
    pa = _pyarrow()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = _as_text(array)
    try:
        values = array.cast(pa.float64(), safe=False)
    except pa.ArrowInvalid:
        for i, word in enumerate(array.to_pylist()):
            try:
                pa.scalar(word).cast(pa.float64())
            except pa.ArrowInvalid:
                raise _TextError(name, str(word), f"row {row + i + 1:,} of {source.path}") from None
        raise
    if np.isinf(values.to_numpy(zero_copy_only=False)).any():
        raise UserError(f"column '{name}' of {source.path} holds an infinite value; mend it or leave it out")
    return values


def _as_text(array: Any) -> Any:
    pa = _pyarrow()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_floating(array.type):
        coded = array.dictionary_encode()
        words = [_number_word(value) for value in coded.dictionary.to_pylist()]
        return pa.DictionaryArray.from_arrays(coded.indices, pa.array(words, pa.string())).dictionary_decode()
    text = array.cast(pa.string())
    return pa.compute.if_else(pa.compute.equal(text, ""), pa.scalar(None, pa.string()), text)


def _number_word(value: float | None) -> str | None:
    """Return a number as it would stand in a CSV file: a whole one as 1, not 1.0; NaN as nothing."""
    if value is None or value != value:
        return None
    return str(int(value)) if value.is_integer() else repr(value)


def _even(batches: Iterator[tuple[Any, int]], rows: int) -> Iterator[tuple[Any, int]]:
    """Cut a stream of record batches into tables of exactly ``rows`` rows, the last one shorter."""
    pa = _pyarrow()
    held: list[Any] = []
    count, position = 0, 0
    for batch, position in batches:
        while count + batch.num_rows >= rows:
            yield pa.Table.from_batches([*held, batch.slice(0, rows - count)]), position
            batch = batch.slice(rows - count)
            held, count = [], 0
        held.append(batch)
        count += batch.num_rows
    if count:
        yield pa.Table.from_batches(held), position


def _numbers(column: Any) -> np.ndarray:
    # A null becomes NaN.
    return column.combine_chunks().to_numpy(zero_copy_only=False)


def _words(column: Any) -> Words:
    coded = column.combine_chunks().dictionary_encode()
    return Words(coded.indices.fill_null(-1).to_numpy(zero_copy_only=False), coded.dictionary.to_pylist())
