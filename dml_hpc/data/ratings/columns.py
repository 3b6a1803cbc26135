"""Columns of a table that are ratings: which they are, and rows of them checked and coded."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dml_hpc.data.sources.columns import as_numbers, as_words
from dml_hpc.data.sources.cuts import Piece
from dml_hpc.data.sources.parse import Parsed, rows_before
from dml_hpc.data.sources.tables import BOOLEAN, EMPTY, NUMERIC, Source, Table, TextError, load_pyarrow
from dml_hpc.errors import UserError

MOST_TABLE = 1 << 24
"""Ids that differ by less are looked up in a table; hashing takes several times as long."""


class Roles(NamedTuple):
    """The names of the columns; ``rating`` None: all are 1. ``weight`` and ``time`` are not always there."""

    user: str
    item: str
    rating: str | None
    weight: str | None = None
    time: str | None = None

    def given(self) -> dict[str, str]:
        """Return the columns there are by role."""
        return {role: name for role, name in self._asdict().items() if name is not None}


class Wanted(NamedTuple):
    """The columns and how they are read: ``text`` are the roles, "user" or "item", whose ids are text."""

    roles: Roles
    text: tuple[str, ...]
    kinds: dict[str, str]
    low: float = -np.inf
    high: float = np.inf

    @property
    def names(self) -> list[str]:
        """All columns."""
        return list(self.roles.given().values())

    def types(self) -> dict[str, Any]:
        """Return the type that each is read as, where it is text in a file."""
        pa = load_pyarrow()
        found = {}
        for role, name in self.roles.given().items():
            if role in ("user", "item"):
                found[name] = pa.dictionary(pa.int32(), pa.string()) if role in self.text else pa.int64()
            elif role == "time":
                found[name] = pa.timestamp("us") if _is_date(self.kinds[name]) else pa.int64()
            else:
                found[name] = pa.bool_() if self.kinds[name] == BOOLEAN else pa.float64()
        return found


def wanted(table: Table, roles: Roles, text_ids: bool, limits: tuple[float, float] | None) -> Wanted:
    """Return how to read ratings from a table; raises `UserError` for columns that are not there or cannot be them."""
    names = list(roles.given().values())
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"column '{twice}' is named twice among --user, --item, --rating, --weight and --time; each is "
                        "one column")
    for name in names:
        table.check_column(name)
    text = tuple(role for role in ("user", "item") if text_ids or any(
        source.kinds[getattr(roles, role)] != NUMERIC for source in table.sources))
    for source in table.sources:
        for role, name in roles.given().items():
            kind = source.kinds[name]
            if role in ("rating", "weight") and kind not in (NUMERIC, BOOLEAN, EMPTY):
                raise UserError(f"{source.path}: column '{name}' holds {kind}, a {role} is a number; name another "
                                f"--{role}")
            if role == "time" and kind not in (NUMERIC, EMPTY) and not _is_date(kind):
                raise UserError(f"{source.path}: column '{name}' holds {kind}, a time is a whole number or a date; "
                                "name another --time")
    low, high = limits or (-np.inf, np.inf)
    return Wanted(roles, text, table.kinds, low, high)


def _is_date(kind: str) -> bool:
    return kind.startswith(("timestamp", "date"))


def coded(source: Source, piece: Piece, rows: Parsed, want: Wanted) -> Any:
    """Return rows as a pyarrow record batch, checked, with columns named by their roles.

    ``user`` and ``item`` are dictionary-coded, int32 numbers of ids (int64 or text); ``rating`` and ``weight`` are
    float32, ``time`` int64. Raises `UserError`, naming the file and the row, for what is missing or no finite number,
    for a rating outside the range wanted, a negative weight, and an id or a time that is no whole number.
    """
    pa = load_pyarrow()
    columns: dict[str, Any] = {}

    def refuse(place: int, what: str) -> UserError:
        before = rows_before(source, piece.start) if rows.before is None else rows.before
        return UserError(f"row {before + place + 1:,} of {source.path}: {what}; mend it or leave the row out")

    for role, name in want.roles.given().items():
        column = rows.table.column(name)
        if role in ("user", "item"):
            array = as_words(column) if role in want.text else _encoded(_whole(column, name, source))
            if array.null_count:
                raise refuse(int(np.argmax(array.is_null().to_numpy(zero_copy_only=False))),
                             f"its {role} ('{name}') is missing")
            columns[role] = array
        elif role == "time":
            array = _whole(column, name, source)
            if array.null_count:
                raise refuse(int(np.argmax(array.is_null().to_numpy(zero_copy_only=False))),
                             f"its time ('{name}') is missing")
            columns[role] = array
        else:
            columns[role] = pa.array(_numbers(column, role, name, source, rows, want, refuse))
    if want.roles.rating is None:
        columns["rating"] = pa.array(np.ones(rows.table.num_rows, np.float32))
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def _numbers(column: Any, role: str, name: str, source: Source, rows: Parsed, want: Wanted,
             refuse: Any) -> np.ndarray:
    """Return ratings or weights (n,) float32."""
    exact = as_numbers(column, name, source.path, rows.before or 0).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        values = exact.astype(np.float32)
    low, high = (want.low, want.high) if role == "rating" else (0.0, np.inf)
    # NaN compares as false, and a sum is finite only when all are.
    if not (len(values) and np.isfinite(values.sum(dtype=np.float64)) and exact.min() >= low and exact.max() <= high):
        bad = np.flatnonzero(~(np.isfinite(values) & (exact >= low) & (exact <= high)))
        if len(bad):
            value = exact[bad[0]]
            if np.isnan(value):
                raise refuse(int(bad[0]), f"its {role} ('{name}') is missing or NaN")
            if not np.isfinite(values[bad[0]]):
                raise refuse(int(bad[0]), f"its {role} ('{name}') is {value:g}, no finite float32")
            if role == "weight":
                raise refuse(int(bad[0]), f"its weight ('{name}') is {value:g}, below 0")
            raise refuse(int(bad[0]), f"its rating ('{name}') is {value:g}, outside --range {want.low:g},{want.high:g}")
    return values


def _whole(column: Any, name: str, source: Source) -> Any:
    """Return a column as one array of int64; dates become seconds since 1970."""
    pa = load_pyarrow()
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    try:
        if pa.types.is_date(array.type) or pa.types.is_timestamp(array.type):
            array = array.cast(pa.timestamp("us"), safe=False)
            array = pa.compute.floor_temporal(array, unit="second").cast(pa.timestamp("s"))
        return array.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise UserError(f"column '{name}' of {source.path} holds no whole numbers of 64 bits ("
                        f"{str(error).splitlines()[0]}); ids that are none take --text-ids") from None


def _encoded(ids: Any) -> Any:
    """Return int64 ids dictionary-coded: by a table of all numbers from the least to the greatest where it is short."""
    pa = load_pyarrow()
    if ids.null_count or not len(ids):
        return ids.dictionary_encode()
    values = ids.to_numpy()
    low, high = int(values.min()), int(values.max())
    if high - low >= MOST_TABLE:
        return ids.dictionary_encode()
    places = values - low
    present = np.zeros(high - low + 1, bool)
    present[places] = True
    codes = np.cumsum(present, dtype=np.int32)
    codes -= 1
    return pa.DictionaryArray.from_arrays(pa.array(codes[places]), pa.array(np.flatnonzero(present) + low))


def told(error: TextError, want: Wanted) -> UserError:
    """Return what to tell of text among numbers."""
    column, value, row = error.args
    role = next(role for role, name in want.roles.given().items() if name == column)
    if role in ("user", "item"):
        return UserError(f"column '{column}' looked like whole numbers in the file's first rows but holds "
                         f"'{value[:40]}' ({row}); give --text-ids to take ids as text")
    kind = "whole number, or a date like the first" if role == "time" else "number"
    return UserError(f"column '{column}' holds '{value[:40]}' ({row}), its {role} is to be a {kind}; mend it or leave "
                     "the row out")


