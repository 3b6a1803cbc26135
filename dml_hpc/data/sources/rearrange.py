"""Data sets as sources of others: their rows, several of them in a row, and a split that is equal for every class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.data.dataset import Dataset
from dml_hpc.data.manifest import Column
from dml_hpc.data.sources.holdout import BLOCK_ROWS, draws, joined
from dml_hpc.data.sources.source import About, RowSource, with_weight
from dml_hpc.errors import UserError
from dml_hpc.watch import progressed

BINS = 4096


class DatasetRows:
    """The rows of a data set, of any kind, as a source: what its manifest says of them stays true."""

    def __init__(self, dataset: Dataset):
        manifest = dataset.manifest
        figures = manifest.statistics
        self.kind, self.rows, self.features = dataset.kind, dataset.rows, dataset.features
        self.about = About(
            feature_names=manifest.feature_names, numeric=None if figures is None else figures.numeric,
            missing=None if figures is None else figures.missing, columns=manifest.columns, label=manifest.label.name,
            label_names=manifest.label.names, label_missing=manifest.label.missing, weighted=dataset.weighted,
            hash_bits=manifest.hash_bits,
            label_values=manifest.label.values if dataset.is_imported else None,
            source={name: said for name, said in manifest.source.items() if name not in ("foreign", "chunk_rows")})
        self.dataset = dataset

    def read(self, start: int, stop: int) -> tuple[np.ndarray | Csr, np.ndarray]:
        """Return rows ``start`` … ``stop`` − 1; see `RowSource`. Raises `UserError` for shards that cannot be read."""
        parts, labels = [], []
        for first, last in self.dataset.ranges(start, stop):
            number, begin = self.dataset.place(first)
            X, y = self._read(number, begin, begin + last - first)
            parts.append(X)
            labels.append(y)
        return (joined(parts), np.concatenate(labels)) if parts else _no_rows(self)

    def _read(self, number: int, start: int, stop: int) -> tuple[np.ndarray | Csr, np.ndarray]:
        rows = self.dataset.shard(number)
        y = with_weight(rows.y(start, stop).astype(np.float64), rows.weight(start, stop))
        return _floats(rows.block(start, stop), self.dataset.manifest.dtype), y

    def labels(self, start: int, stop: int) -> np.ndarray:
        """Return the labels (stop − start,) of a range of rows, float64; X is not read."""
        found = [np.empty(0)]
        for first, last in self.dataset.ranges(start, stop):
            number, begin = self.dataset.place(first)
            found.append(self.dataset.shard(number).y(begin, begin + last - first))
        return np.concatenate(found).astype(np.float64)


def _floats(X: np.ndarray | Csr, dtype: str) -> np.ndarray | Csr:
    """Return rows of whole numbers, as files that were never imported may hold, in a float type."""
    if X.dtype.kind == "f":
        return X
    return Csr(X.data.astype(dtype), X.indices, X.indptr, X.features) if isinstance(X, Csr) else X.astype(dtype)


def _no_rows(source: RowSource) -> tuple[np.ndarray | Csr, np.ndarray]:
    y = with_weight(np.empty(0), np.empty(0) if source.about.weighted else None)
    if source.kind == "csr":
        return Csr(np.empty(0), np.empty(0, np.int32), np.zeros(1, np.int64), source.features), y
    return np.empty((0, source.features)), y


class Merged:
    """The rows of several sources one after the other; `merged` looks whether they fit."""

    def __init__(self, sources: Sequence[RowSource], features: int, about: About):
        self.kind, self.features, self.about = sources[0].kind, features, about
        self._sources = list(sources)
        self._offsets = np.concatenate([[0], np.cumsum([source.rows for source in sources])]).tolist()
        self.rows = int(self._offsets[-1])

    def read(self, start: int, stop: int) -> tuple[np.ndarray | Csr, np.ndarray]:
        """Return rows ``start`` … ``stop`` − 1; see `RowSource`."""
        parts, labels = [], []
        for source, low, high in zip(self._sources, self._offsets[:-1], self._offsets[1:], strict=True):
            if max(start, low) < min(stop, high):
                X, y = source.read(max(start, low) - low, min(stop, high) - low)
                parts.append(X)
                labels.append(y)
        return (joined(parts), np.concatenate(labels)) if parts else _no_rows(self)


def merged(sources: Sequence[DatasetRows]) -> Merged:
    """Return the rows of data sets as one source; counts of what was missing add up.

    Raises `UserError` when they differ in kind, features, columns, or the words for their labels, or only some have
    weights.
    """
    first = sources[0]
    for other in sources[1:]:
        _check_same(first, other)
    abouts = [source.about for source in sources]
    columns = [replace(column, missing=sum(about.columns[place].missing for about in abouts))
               for place, column in enumerate(first.about.columns)]
    missing = [about.missing for about in abouts if about.missing is not None]
    listed = [about.label_values for about in abouts if about.label_values is not None]
    about = replace(
        first.about, columns=columns, missing=sum(missing[1:], start=missing[0]) if missing else None,
        label_missing=sum(about.label_missing for about in abouts),
        label_values=sorted({value for values in listed for value in values}) if listed else None,
        source=dict(first.about.source))
    return Merged(sources, first.features, about)


def _check_same(first: DatasetRows, other: DatasetRows) -> None:
    here, there = first.dataset.path, other.dataset.path
    if first.about.weighted != other.about.weighted:
        raise UserError(f"{here} and {there} do not fit together: the rows of only one have weights; import the other "
                        "with --weight")

    def described(columns: list[Column]) -> list[Column]:
        return [replace(column, missing=0) for column in columns]

    problem = None
    if first.kind != other.kind:
        problem = f"one is {first.kind}, the other {other.kind}"
    elif first.features != other.features:
        problem = f"one has {first.features:,} features, the other {other.features:,}"
    elif first.about.feature_names != other.about.feature_names:
        names, others = first.about.feature_names, other.about.feature_names
        problem = "only one of them names its features" if names is None or others is None else next(
            f"feature {j} is '{name}' in one and '{another}' in the other"
            for j, (name, another) in enumerate(zip(names, others, strict=True)) if name != another)
    elif described(first.about.columns) != described(other.about.columns) or \
            first.about.hash_bits != other.about.hash_bits:
        problem = "their features were made from other columns"
    elif first.about.label != other.about.label:
        problem = f"the label of one is '{first.about.label}', of the other '{other.about.label}'"
    elif first.about.label_names != other.about.label_names:
        problem = f"the labels of one are {_words(first.about.label_names)}, of the other " \
                  f"{_words(other.about.label_names)}"
    if problem is not None:
        raise UserError(f"{here} and {there} do not fit together: {problem}; import the second with --like {here}")


def _words(names: list[str] | None) -> str:
    return "numbers" if names is None else ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


class Strata:
    """Limits for `dml_hpc.data.sources.holdout.held_out` under which the same share of every label value is held out.

    ``limits`` are those of the label values that the data set's manifest lists; `stratified` makes them.
    """

    def __init__(self, source: DatasetRows, limits: np.ndarray):
        self._source, self._limits = source, limits
        self._values = np.array(source.dataset.manifest.label.values)

    def of(self, start: int, stop: int) -> np.ndarray:
        """Return the limit (stop − start,) of each row: it is held out when its draw is below."""
        return self._limits[_place(self._source, self._values, self._source.labels(start, stop), start)]


def stratified(source: DatasetRows, share: float, seed: int) -> np.ndarray:
    """Return below which draw rows of each label value are to be held out, so that exactly its ``share`` is, rounded.

    All labels are read, twice. Raises `UserError` when the data set lists no label values, or a row has another.
    """
    listed = source.dataset.manifest.label.values
    if not listed:
        raise UserError(f"--stratify needs a label of few values; '{source.about.label}' of {source.dataset.path} has "
                        "too many to list")
    values = np.array(listed)
    counts = np.zeros(len(values) * BINS, np.int64)
    for drawn, place in _drawn(source, values, seed):
        counts += np.bincount(place * BINS + (drawn * BINS).astype(np.int64), minlength=len(counts))
    below = np.cumsum(counts.reshape(len(values), BINS), axis=1)
    wanted = np.round(share * below[:, -1]).astype(np.int64)
    cut = np.array([np.searchsorted(row, number) for row, number in zip(below, wanted, strict=True)])
    # Only the draws of one bin a value are put in order.
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for drawn, place in _drawn(source, values, seed):
        inside = (drawn * BINS).astype(np.int64) == cut[place]
        found.append((drawn[inside], place[inside]))
    near, whose = (np.concatenate(parts) for parts in zip(*found, strict=True)) if found else (np.empty(0),) * 2
    limits = (cut + 1) / BINS
    for value in range(len(values)):
        ordered = np.sort(near[whose == value])
        needed = int(wanted[value]) - (int(below[value, cut[value] - 1]) if cut[value] else 0)
        if needed < len(ordered):
            limits[value] = ordered[needed]
    return limits


def _drawn(source: DatasetRows, values: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield block by block the draws of rows and the places of their labels among ``values``."""
    for start in range(0, source.rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, source.rows)
        progressed()
        yield draws(start, stop, seed), _place(source, values, source.labels(start, stop), start)


def _place(source: DatasetRows, values: np.ndarray, labels: np.ndarray, start: int) -> np.ndarray:
    place = np.minimum(np.searchsorted(values, labels), len(values) - 1)
    bad = np.flatnonzero(values[place] != labels)
    if len(bad):
        raise UserError(f"the label of row {start + int(bad[0]):,} of {source.dataset.path} is {labels[bad[0]]:g}, "
                        "which its manifest does not list; `dml-hpc data verify` says more")
    return place
