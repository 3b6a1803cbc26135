"""From source columns to features: numbers, one-hot categories, hashed words; and the spool's rows as a source."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dml_hpc.data.csr import Csr, index_dtype
from dml_hpc.data.manifest import Column
from dml_hpc.data.sources.holdout import joined
from dml_hpc.data.sources.source import About, with_weight
from dml_hpc.data.sources.spool import Spooled, open_spooled
from dml_hpc.data.statistics import MOST_COUNTED

ROWS_AT_ONCE = 512
"""Columns are written into this many rows at a time, which stay in the processor's cache meanwhile."""
MOST_OPEN = 4


class Words(NamedTuple):
    """For each word of a dictionary, and lastly for no word: its feature, -1 for none, and the value it gives that."""

    features: np.ndarray
    values: np.ndarray


class _Entries(NamedTuple):
    """Row i has ``values[k]`` at ``features[k]`` for ``starts[i]`` ≤ k < ``starts[i + 1]``; feature -1 is none."""

    features: np.ndarray
    values: np.ndarray
    starts: np.ndarray


class Encoder:
    """Turns columns into features: one for a numeric column, one a category (``name=value``) for the others.

    With ``hash_bits`` every feature is one of 2^``hash_bits`` instead, by the hash of its name, which may change its
    sign too (`dml_hpc.kernels.hashing.hash_words`): that of a numeric column's name, of ``name=value`` for a category,
    and of ``name=word`` for each word of a text, which counts how often it occurs. ``fill`` holds, by column name, what
    a missing number becomes. ``features`` is their number, ``names`` theirs (None when hashed), ``numeric`` (features,)
    bool says which come from numbers (None: there are too many to say), ``first`` is the first feature of each column
    that is not hashed.
    """

    def __init__(self, columns: Sequence[Column], fill: Mapping[str, float], hash_bits: int | None = None):
        self.columns = list(columns)
        self.fill = dict(fill)
        self.hash_bits = hash_bits
        self.first: dict[str, int] = {}
        self.names: list[str] | None = None
        if hash_bits is None:
            self.names = []
            for column in self.columns:
                self.first[column.name] = len(self.names)
                self.names += [f"{column.name}={word}" for word in column.categories] \
                    if column.categories is not None else [column.name]
        self.features = len(self.names) if self.names is not None else 1 << (hash_bits or 0)
        self._numbers = {column.name: self._number(column.name) for column in self.columns if column.kind == "numeric"}
        self.numeric: np.ndarray | None = None
        if self.features <= MOST_COUNTED:
            self.numeric = np.zeros(self.features, bool)
            self.numeric[[feature for feature, _ in self._numbers.values()]] = True
        self._known = {column.name: {word: self.first[column.name] + i for i, word in enumerate(column.categories)}
                       for column in self.columns if hash_bits is None and column.categories is not None}

    def _number(self, name: str) -> tuple[int, float]:
        if self.hash_bits is None:
            return self.first[name], 1.0
        hashed = _hashed("", [name], self.hash_bits)
        return int(hashed.features[0]), float(hashed.values[0])

    def words(self, batch: Any) -> dict[str, Words]:
        """Return what the words of a spool's file become, by column."""
        found = {}
        for column in self.columns:
            if column.kind != "numeric":
                values = batch.column(column.name)
                dictionary = values.values.dictionary if column.kind == "text" else values.dictionary
                found[column.name] = self._words(column.name, dictionary)
        return found

    def _words(self, name: str, dictionary: Any) -> Words:
        if self.hash_bits is not None:
            return _hashed(f"{name}=", dictionary, self.hash_bits)
        known = self._known[name]
        features = np.array([*(known.get(word, -1) for word in dictionary.to_pylist()), -1], np.int64)
        return Words(features, np.ones(len(features)))

    def dense(self, batch: Any, words: Mapping[str, Words], start: int, stop: int, out: np.ndarray) -> None:
        """Write rows ``start`` … ``stop`` − 1 of a spool's file into ``out`` (stop − start, features); not hashed."""
        if len(self._numbers) < self.features:
            out.fill(0)
        numbers, codes = self._columns(batch, words, start, stop)
        places = np.arange(len(out))
        for first in range(0, len(out), ROWS_AT_ONCE):
            some = slice(first, min(first + ROWS_AT_ONCE, len(out)))
            for feature, _, values in numbers:
                out[some, feature] = values[some]
            for features, _ in codes:
                there = features[some] >= 0
                out[places[some][there], features[some][there]] = 1

    def sparse(self, batch: Any, words: Mapping[str, Words], start: int, stop: int, dtype: np.dtype) -> Csr:
        """Return rows ``start`` … ``stop`` − 1 of a spool's file: their entries that are not zero, by column."""
        from dml_hpc.kernels.columns import count_entries, place_entries
        from dml_hpc.kernels.rows import clean_rows

        rows = stop - start
        groups = [self._fixed(batch, words, start, stop)]
        groups += [_texts(batch.column(column.name).slice(start, rows), words[column.name])
                   for column in self.columns if column.kind == "text"]
        indptr = np.zeros(rows + 1, np.int64)
        for group in groups:
            count_entries(*group, indptr[1:])
        np.cumsum(indptr, out=indptr)
        indices, data = np.empty(indptr[-1], index_dtype(self.features)), np.empty(indptr[-1])
        places = indptr[:-1].copy()
        for group in groups:
            place_entries(*group, places, indices, data)
        clean_rows(indices, data, indptr, self.features)
        end = int(indptr[-1])
        return Csr(data[:end].astype(dtype), indices[:end], indptr, self.features)

    def _fixed(self, batch: Any, words: Mapping[str, Words], start: int, stop: int) -> _Entries:
        """Return what a row has of the columns that give it one entry each."""
        numbers, codes = self._columns(batch, words, start, stop)
        width = len(numbers) + len(codes)
        features, values = np.empty((stop - start, width), np.int64), np.empty((stop - start, width))
        for i, (feature, sign, column) in enumerate(numbers):
            features[:, i], values[:, i] = feature, sign * column
        for i, found in enumerate(codes, len(numbers)):
            features[:, i], values[:, i] = found
        return _Entries(features.ravel(), values.ravel(), np.arange(stop - start + 1) * width)

    def _columns(self, batch: Any, words: Mapping[str, Words], start: int, stop: int) \
            -> tuple[list[tuple[int, float, np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]:
        """Return (feature, sign, values) of each numeric column and (features, values) of each of categories."""
        numbers, codes = [], []
        for column in self.columns:
            if column.kind == "numeric":
                values = batch.column(column.name).to_numpy()[start:stop]
                gaps = np.isnan(values)
                if gaps.any():
                    values = np.where(gaps, np.float64(self.fill[column.name]), values)
                numbers.append((*self._numbers[column.name], values))
            elif column.kind == "categorical":
                # Code -1 (no word) finds what stands last.
                found = batch.column(column.name).indices.slice(start, stop - start).fill_null(-1).to_numpy()
                codes.append((words[column.name].features[found], words[column.name].values[found]))
        return numbers, codes


def _texts(lists: Any, words: Words) -> _Entries:
    starts = lists.offsets.to_numpy().astype(np.int64)
    codes = lists.values.indices.to_numpy()[starts[0]:starts[-1]]
    return _Entries(words.features[codes], words.values[codes], starts - starts[0])


def _hashed(prefix: str, words: Any, bits: int) -> Words:
    import pyarrow as pa

    from dml_hpc.kernels.hashing import hash_words

    array = pa.array(words, pa.string())
    _, ends, text = array.buffers()
    count = len(array)
    features, values = np.full(count + 1, -1), np.zeros(count + 1)
    begin = array.offset
    places = np.frombuffer(ends, np.int32)[begin:begin + count + 1] if count else np.zeros(1, np.int32)
    hash_words(np.frombuffer(prefix.encode(), np.uint8), np.frombuffer(text or b"", np.uint8), places, bits,
               features[:-1], values[:-1])
    features[:-1][places[1:] == places[:-1]] = -1  # an empty word is none
    return Words(features, values)


class TableRows:
    """The rows of a spool, encoded as they are read: a `RowSource`.

    ``label_words`` are the words for the labels 0, 1, … where the label is a word; ``kind`` "dense" or "csr";
    ``weight`` the column of weights, if any.
    """

    def __init__(self, files: Sequence[Spooled], encoder: Encoder, kind: str, label: str,
                 label_words: Sequence[str] | None, about: About, dtype: str, weight: str | None = None):
        self.kind = kind
        self.features = encoder.features
        self.about = about
        self._files = [entry for entry in files if entry.rows]
        self._firsts = np.concatenate([[0], np.cumsum([entry.rows for entry in self._files])]).astype(np.int64)
        self.rows = int(self._firsts[-1])
        self._encoder = encoder
        self._label, self._weight = label, weight
        self._codes = {word: float(i) for i, word in enumerate(label_words)} if label_words is not None else None
        self._dtype = np.dtype(dtype)
        self._open: OrderedDict[int, tuple[Any, dict[str, Words], np.ndarray]] = OrderedDict()

    def read(self, start: int, stop: int) -> tuple[np.ndarray | Csr, np.ndarray]:
        """Return rows ``start`` … ``stop`` − 1; see `RowSource`."""
        parts: list[np.ndarray | Csr] = []
        labels = [with_weight(np.empty(0), None if self._weight is None else np.empty(0))]
        X = np.empty((stop - start, self.features), self._dtype) if self.kind == "dense" else None
        number = int(np.searchsorted(self._firsts, start, side="right")) - 1
        done = start
        while done < stop:
            batch, words, y = self._file(number)
            first = int(self._firsts[number])
            last = min(stop, int(self._firsts[number + 1]))
            if X is not None and self._encoder.hash_bits is None:
                self._encoder.dense(batch, words, done - first, last - first, X[done - start:last - start])
            else:
                rows = self._encoder.sparse(batch, words, done - first, last - first, self._dtype)
                if X is not None:
                    X[done - start:last - start] = rows.dense()
                parts.append(rows)
            labels.append(y[done - first:last - first])
            done, number = last, number + 1
        if X is None and not parts:
            nothing = Csr(np.empty(0, self._dtype), np.empty(0, index_dtype(self.features)), np.zeros(1, np.int64),
                          self.features)
            return nothing, labels[0]
        return joined(parts) if X is None else X, np.concatenate(labels)

    def _file(self, number: int) -> tuple[Any, dict[str, Words], np.ndarray]:
        """Return a file of the spool, what its words become, and its labels; keep the last few."""
        if number not in self._open:
            batch = open_spooled(self._files[number])
            column = batch.column(self._label)
            if self._codes is None:
                y = column.to_numpy()
            else:
                y = np.array([self._codes.get(word, np.nan) for word in column.dictionary.to_pylist()])
                y = y[column.indices.to_numpy()]
            y = with_weight(y, None if self._weight is None else batch.column(self._weight).to_numpy())
            self._open[number] = batch, self._encoder.words(batch), y
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return self._open[number]
