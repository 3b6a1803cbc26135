"""Columns of tables in the three forms that rows are made of: numbers, words, and lists of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dml_hpc.data.sources.tables import TextError, load_pyarrow


def as_numbers(column: Any, name: str, path: Path, row: int) -> Any:
    """Return a pyarrow column as one array of float64, with NaN where a value is missing.

    ``row`` rows of the file ``path`` came before it. Raises `TextError` for text that is no number.
    """
    pa = load_pyarrow()
    array = _plain(column)
    if _is_text(array.type):
        array = _without_empty(array)
    try:
        values = array.cast(pa.float64(), safe=False)
    except pa.ArrowInvalid:
        for i, word in enumerate(array.to_pylist()):
            try:
                pa.scalar(word).cast(pa.float64())
            except pa.ArrowInvalid:
                raise TextError(name, str(word), f"row {row + i + 1:,} of {path}") from None
        raise
    return values.fill_null(float("nan")) if values.null_count else values


def as_words(column: Any) -> Any:
    """Return a pyarrow column as one array of words, dictionary-coded, with null for a missing or an empty one."""
    pa = load_pyarrow()
    wanted = pa.dictionary(pa.int32(), pa.string())
    if column.type == wanted:
        array = _combined(column.unify_dictionaries() if isinstance(column, pa.ChunkedArray) else column)
        if pa.compute.index(array.dictionary, "").as_py() < 0:
            return array
        column = array
    array = _plain(column)
    if pa.types.is_floating(array.type):
        coded = array.dictionary_encode()
        words = [_number_word(value) for value in coded.dictionary.to_pylist()]
        array = pa.DictionaryArray.from_arrays(coded.indices, pa.array(words, pa.string())).dictionary_decode()
    return _without_empty(array.cast(pa.string())).dictionary_encode()


def as_tokens(column: Any) -> Any:
    """Return a pyarrow column of text as one list array of its words, dictionary-coded; null where there is no text.

    A word is a run of letters and digits, in lower case; lists may hold empty ones besides.
    """
    pa = load_pyarrow()
    text = _without_empty(_plain(column).cast(pa.string()))
    lists = pa.compute.split_pattern_regex(pa.compute.utf8_lower(text), r"[^\p{L}\p{N}]+")
    return pa.ListArray.from_arrays(lists.offsets, lists.values.dictionary_encode(), mask=text.is_null())


def _plain(column: Any) -> Any:
    array = _combined(column)
    return array.dictionary_decode() if load_pyarrow().types.is_dictionary(array.type) else array


def _combined(column: Any) -> Any:
    pa = load_pyarrow()
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def _is_text(kind: Any) -> bool:
    types = load_pyarrow().types
    return types.is_string(kind) or types.is_large_string(kind)


def _without_empty(text: Any) -> Any:
    pa = load_pyarrow()
    return pa.compute.if_else(pa.compute.equal(text, ""), pa.scalar(None, text.type), text)


def _number_word(value: float | None) -> str | None:
    """Return a number as it would stand in a CSV file: a whole one as 1, not 1.0; NaN as nothing."""
    if value is None or value != value:
        return None
    return str(int(value)) if value.is_integer() and abs(value) < 1e16 else repr(value)
