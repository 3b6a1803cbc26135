"""Source tables: what columns CSV and Parquet files have, and what a column holds."""

from __future__ import annotations

import gzip
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from dml_hpc.errors import UserError, did_you_mean

NUMERIC, BOOLEAN, TEXT, EMPTY = "numeric", "boolean", "text", "empty"
"""What a column holds, where it can become features; others are called by their type (``timestamp[s]``)."""

FORMS = {".csv": "csv", ".csv.gz": "gz", ".csv.zip": "zip", ".parquet": "parquet", ".pq": "parquet"}
HEAD_BYTES = 2 << 20
"""What a column of a CSV file holds is inferred from the first half of these."""


class Source(NamedTuple):
    """One file: its form (a value of `FORMS`), its columns in order with what they hold, its size."""

    path: Path
    form: str
    kinds: dict[str, str]
    bytes: int


class Table:
    """The rows of one or several files, in the order given. The first file says which columns there are."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = list(sources)
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


def is_table(path: Path) -> bool:
    """Say whether a file is a table, by its name."""
    return path.name.lower().endswith(tuple(FORMS))


def open_table(paths: Sequence[Path]) -> Table:
    """Open source files: ``.csv``, ``.csv.gz``, ``.csv.zip`` (one member) and ``.parquet``.

    Reads no more than what a column holds needs to be known: a file's first bytes or its footer. Raises `UserError`
    for a file that is missing, empty, or not of these kinds.
    """
    load_pyarrow()
    return Table([_open(path) for path in paths])


def load_pyarrow() -> Any:
    """Return pyarrow with the parts used here; raises `UserError` when it is not installed."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        raise UserError("reading tables needs pyarrow; run: pip install 'dml-hpc[data]'") from None
    return pyarrow


def _open(path: Path) -> Source:
    pa = load_pyarrow()
    form = next(form for ending, form in FORMS.items() if path.name.lower().endswith(ending))
    with readable(path):
        if form == "parquet":
            with pa.parquet.ParquetFile(path) as file:
                return Source(path, form, _kinds(path, file.schema_arrow), path.stat().st_size)
        with open_text(path, form) as (stream, _):
            head = stream.read(HEAD_BYTES)
        options = pa.csv.ReadOptions(use_threads=False, block_size=HEAD_BYTES // 2)
        with pa.csv.open_csv(pa.BufferReader(head), options, pa.csv.ParseOptions(newlines_in_values=True),
                             pa.csv.ConvertOptions(strings_can_be_null=True)) as first:
            return Source(path, form, _kinds(path, first.schema), path.stat().st_size)


def _kinds(path: Path, schema: Any) -> dict[str, str]:
    types = load_pyarrow().types
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


@contextmanager
def open_text(path: Path, form: str) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """Open CSV text for reading from the beginning, unpacked where its ``form`` is "gz" or "zip".

    Yields the text as a file and how many of the bytes of ``path`` are read so far.
    """
    with path.open("rb") as raw:
        if form == "zip":
            with zipfile.ZipFile(raw) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                if len(members) != 1:
                    raise UserError(f"{path} holds {len(members)} files, not one; unpack it and name the files")
                with archive.open(members[0]) as stream:
                    yield stream, raw.tell
        elif form == "gz":
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield unpacked, raw.tell  # type: ignore[misc]
        else:
            yield raw, raw.tell


class TextError(Exception):
    """Text in a column that is read as numbers: (column, value, row)."""

    def told(self, kinds: dict[str, str]) -> UserError:
        """Return what to tell the user; ``kinds`` say what columns seemed to hold."""
        column, value, row = self.args
        value = value if len(value) <= 40 else value[:40] + "…"
        if kinds[column] == TEXT:
            return UserError(f"column '{column}' was promised numeric but holds text ('{value}', {row}); "
                             "name it in --categorical or leave it out")
        # Read as numbers because it began as such; nobody promised it. It may be the label, which has no option.
        return UserError(f"column '{column}' looked {kinds[column]} in the file's first rows but holds text "
                         f"('{value}', {row}) later; name it in --categorical (or, where it is the label, mend that "
                         "value: a label is all numbers or all words)")


@contextmanager
def readable(path: Path, columns: Sequence[str] = (), rows: int = 0) -> Iterator[None]:
    """Turn what a reader raises into a `UserError` of one line that names the file, or into a `TextError`.

    ``columns`` are the file's; ``rows`` of it were read before, which counts where the reader names a row.
    """
    try:
        yield
    # pyarrow's own errors are ValueError, OSError and RuntimeError, by inheritance.
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        text = re.sub(r"Row #(\d+)", lambda found: f"Row #{int(found[1]) + rows}", " ".join(str(error).split()))
        where = re.search(r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to \w+: (.*)", text)
        if where and int(where[1]) < len(columns):
            column = columns[int(where[1])]
            row = f"row {int(where[2]):,} of {path}" if where[2] else str(path)
            value = re.fullmatch(r"invalid value '(.*)'", where[3])
            if value:
                raise TextError(column, value[1], row) from None
            raise UserError(f"column '{column}', {row}: {where[3]}; CSV is to be UTF-8") from None
        raise UserError(f"{path} cannot be read: {text[:200] or type(error).__name__}") from None
