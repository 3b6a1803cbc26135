"""Tables of who is recommended what, or what is like what, in one file: CSV, Parquet or HDF5, by its name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import h5py
import numpy as np

from dml_hpc import __version__
from dml_hpc.data.ratings.ids import Ids
from dml_hpc.data.sources.tables import load_pyarrow
from dml_hpc.errors import UserError
from dml_hpc.files import replaced_file
from dml_hpc.mpi import agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

LINE = np.dtype([("row", "<i8"), ("column", "<i4"), ("rank", "<i4"), ("score", "<f4")])
"""A line of a table: numbers of a user and of an item, the place of the item among the user's, and its score."""
_SPARE_BYTES = 1 << 20
_CHUNK_LINES = 1 << 14
_SPECIAL = re.compile(r'[",\r\n]|^\s|\s$|^$')


class Table(Protocol):
    """One kind of file, with the columns ``names`` (4): ids of ``rows``, ids of ``columns``, the place, the score.

    ``more_bytes`` is what the file needs beyond the bytes of what was `rendered` here.
    """

    more_bytes: int

    def __init__(self, names: Sequence[str], rows: Ids, columns: Ids):
        ...

    def rendered(self, lines: np.ndarray) -> np.ndarray:
        """Return lines (n,) of `LINE` as `append` takes them, bytes (m,) uint8; on any rank."""
        ...

    def written(self, path: Path, attributes: dict[str, Any]) -> AbstractContextManager[Any]:
        """Return the file, opened anew, which `append` is for; leaving it ends it."""
        ...

    def append(self, file: Any, data: np.ndarray) -> None:
        """Write what `rendered` has returned behind what is there."""
        ...


class CsvTable:
    """Comma-separated values with a header (RFC 4180, lines end in \\n); scores with seven digits."""

    more_bytes = 0

    def __init__(self, names: Sequence[str], rows: Ids, columns: Ids):
        self._header = ",".join(names) + "\n"
        self._rows = rows
        self._columns = _quoted(columns.values)

    def rendered(self, lines: np.ndarray) -> np.ndarray:
        """See `Table`."""
        columns = self._columns
        text = "".join([f"{row},{columns[column]},{rank},{score:.7g}\n" for row, column, rank, score in zip(
            _quoted(self._rows.values[lines["row"]]), *(lines[name].tolist() for name in ("column", "rank", "score")),
            strict=True)])
        return np.frombuffer(text.encode(), np.uint8)

    def written(self, path: Path, attributes: dict[str, Any]) -> AbstractContextManager[Any]:
        """See `Table`; there is no place for attributes."""
        file = path.open("wb")
        file.write(self._header.encode())
        return file

    def append(self, file: Any, data: np.ndarray) -> None:
        """See `Table`."""
        file.write(data.data)


def _quoted(values: np.ndarray) -> list[Any]:
    if values.dtype.kind != "O":
        return values.tolist()
    return ['"' + value.replace('"', '""') + '"' if _SPECIAL.search(value) else value for value in values]


class _Lines:
    """What kinds of files share whose lines are not made before they are written."""

    more_bytes = 0

    def __init__(self, names: Sequence[str], rows: Ids, columns: Ids):
        self._names, self._rows, self._columns = names, rows, columns

    def rendered(self, lines: np.ndarray) -> np.ndarray:
        """See `Table`."""
        return np.ascontiguousarray(lines).view(np.uint8)


class ParquetTable(_Lines):
    """Parquet: ids as int64 or strings, the place int32, the score float32."""

    def __init__(self, names: Sequence[str], rows: Ids, columns: Ids):
        super().__init__(names, rows, columns)
        pa = pyarrow()
        self._ids = [pa.array(ids.values, pa.string() if ids.is_text else pa.int64()) for ids in (rows, columns)]
        self._schema = pa.schema(list(zip(names, (*(ids.type for ids in self._ids), pa.int32(), pa.float32()),
                                          strict=True)))

    def written(self, path: Path, attributes: dict[str, Any]) -> AbstractContextManager[Any]:
        """See `Table`."""
        told = {f"dml_hpc.{name}": str(value) for name, value in attributes.items()}
        return pyarrow().parquet.ParquetWriter(path, self._schema.with_metadata(told))

    def append(self, file: Any, data: np.ndarray) -> None:
        """See `Table`."""
        pa, lines = pyarrow(), data.view(LINE)
        ids = [known.take(pa.array(lines[name])) for known, name in zip(self._ids, ("row", "column"), strict=True)]
        numbers = [pa.array(np.ascontiguousarray(lines[name])) for name in ("rank", "score")]
        file.write_table(pa.Table.from_arrays([*ids, *numbers], schema=self._schema))


class Hdf5Table(_Lines):
    """HDF5: a dataset for each column, ids as int64 or UTF-8, the place int32, the score float32."""

    def __init__(self, names: Sequence[str], rows: Ids, columns: Ids):
        super().__init__(names, rows, columns)
        # Beyond what a line has of them.
        self._row_bytes, self._column_bytes = rows.file_bytes - 8, columns.file_bytes - 4

    def rendered(self, lines: np.ndarray) -> np.ndarray:
        """See `Table`."""
        self.more_bytes += int(self._row_bytes[lines["row"]].sum() + self._column_bytes[lines["column"]].sum())
        return super().rendered(lines)

    def written(self, path: Path, attributes: dict[str, Any]) -> AbstractContextManager[Any]:
        """See `Table`."""
        file = h5py.File(path, "w", locking=False)
        file.attrs.update(dml_hpc_version=__version__, **attributes)
        kinds = [h5py.string_dtype() if ids.is_text else np.dtype("<i8") for ids in (self._rows, self._columns)]
        for name, kind in zip(self._names, (*kinds, "<i4", "<f4"), strict=True):
            file.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(_CHUNK_LINES,))
        return file

    def append(self, file: Any, data: np.ndarray) -> None:
        """See `Table`."""
        lines = data.view(LINE)
        for start in range(0, len(lines), _CHUNK_LINES):  # a signal is heard between two calls of HDF5
            self._append(file, lines[start:start + _CHUNK_LINES])

    def _append(self, file: Any, lines: np.ndarray) -> None:
        values = (self._rows.values[lines["row"]], self._columns.values[lines["column"]], lines["rank"], lines["score"])
        for name, part in zip(self._names, values, strict=True):
            dataset = file[name]
            there = len(dataset)
            dataset.resize(there + len(part), axis=0)
            dataset[there:] = part


KINDS: dict[str, type[CsvTable] | type[ParquetTable] | type[Hdf5Table]] = {
    ".csv": CsvTable, ".parquet": ParquetTable, ".h5": Hdf5Table, ".hdf5": Hdf5Table}


def kind_of(path: Path) -> type[CsvTable] | type[ParquetTable] | type[Hdf5Table]:
    """Return the kind of file that a name asks for; raises `UserError` for a name that says none."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"-o {path}: its name does not say what to write; end it in .csv, .parquet or .h5")
    if kind is ParquetTable:
        pyarrow()
    return kind


def pyarrow() -> Any:
    """Return pyarrow with its Parquet; raises `UserError` when it is not installed."""
    try:
        return load_pyarrow()
    except UserError:
        raise UserError("Parquet needs pyarrow; run: pip install 'dml-hpc[data]', or write CSV, HDF5 or "
                        "NPY") from None


def write_table(comm: Intracomm, path: Path, table: Table, parts: Sequence[np.ndarray],
                attributes: dict[str, Any]) -> None:
    """Collective: write the ``parts`` (what ``table`` has rendered) of all ranks, one after the other, to ``path``.

    Rank 0 writes them as they come; the file appears whole or not at all. Raises `AgreedError`.
    """
    sizes = comm.gather([part.size for part in parts])
    more_bytes = sum(comm.gather(table.more_bytes) or ())
    if comm.rank > 0:
        for part in parts:
            comm.Send(part, 0)
        with agreed(comm):
            pass
        return
    assert sizes is not None
    needed = sum(map(sum, sizes)) + more_bytes + _SPARE_BYTES
    with agreed(comm):
        failure: Exception | None = None
        with ExitStack() as stack:
            file: Any = None
            try:
                # HDF5 that finds the disk full when it closes a file may crash the process.
                if (free := shutil.disk_usage(path.absolute().parent).free) < needed:
                    raise UserError(f"cannot write {path}: it takes {needed >> 20:,} MiB, and {free >> 20:,} MiB are "
                                    "free; choose another -o")
                partial = stack.enter_context(replaced_file(path))
                file = stack.enter_context(table.written(partial, attributes))
            except Exception as error:
                failure = error
            for rank in range(comm.size):
                for number, size in enumerate(sizes[rank]):
                    if rank == 0:
                        data = parts[number]
                    else:
                        data = np.empty(size, np.uint8)
                        comm.Recv(data, rank)  # others send in any case
                    try:
                        if failure is None and size:
                            table.append(file, data)
                    except Exception as error:
                        failure = error
            if failure is not None:
                raise failure
