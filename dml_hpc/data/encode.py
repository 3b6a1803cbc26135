"""From source columns to features: one-hot categories, statistics in one pass, rows of numbers. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dml_hpc.data.manifest import MOST_VALUES, Column
from dml_hpc.data.tables import Chunk, Words
from dml_hpc.errors import UserError

MOST_CATEGORIES = 10_000
"""A column with more different words is a name or an identifier, of no use one-hot."""


def ordered(words: Iterable[str]) -> list[str]:
    """Return the words sorted: those that look like integers by their value, then the others as text."""
    def key(word: str) -> tuple[bool, int, str]:
        number = re.fullmatch(r"[+-]?[0-9]{1,18}", word)
        return (not number, int(word) if number else 0, word)

    return sorted(words, key=key)


class Moments:
    """Count, mean, sum of squared deviations, least and greatest of k columns, batch by batch.

    Each is (k,), float64. Batches are merged pairwise, which loses no digits however far the mean is from
    zero (Chan, Golub and LeVeque, "Updating Formulae … for Computing Sample Variances", 1979).
    """

    def __init__(self, columns: int):
        self.count, self.mean, self.squares = np.zeros((3, columns))
        self.minimum, self.maximum = np.full(columns, np.inf), np.full(columns, -np.inf)

    def add(self, values: np.ndarray) -> None:
        """Count ``values`` (k, rows) float64 in; NaN is no value."""
        if not values.shape[1]:
            return
        absent = np.isnan(values)
        count = values.shape[1] - absent.sum(axis=1, dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.where(absent, 0, values).sum(axis=1) / np.maximum(count, 1)
            squares = np.square(np.where(absent, 0, values - mean[:, None])).sum(axis=1)
        self.merge(count, mean, squares, np.where(absent, np.inf, values).min(axis=1),
                   np.where(absent, -np.inf, values).max(axis=1))

    def merge(self, count: np.ndarray, mean: np.ndarray, squares: np.ndarray,
              minimum: np.ndarray, maximum: np.ndarray) -> None:
        """Count another batch in by its own five figures, (k,) each; where its count is 0 nothing changes."""
        total = np.maximum(self.count + count, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            apart = np.where(count > 0, mean - self.mean, 0)
            self.mean = self.mean + apart * (count / total)
            self.squares = self.squares + squares + np.square(apart) * (self.count * count / total)
        self.count = self.count + count
        self.minimum, self.maximum = np.minimum(self.minimum, minimum), np.maximum(self.maximum, maximum)


class Survey:
    """What the rows of one part (training or held out) hold in the feature columns.

    ``words`` counts every category, ``missing`` the rows without a value and ``unseen`` those whose category
    is not among ``known`` (category lists by column, when they are given from elsewhere), by column name.
    """

    def __init__(self, numeric: Sequence[str], categorical: Sequence[str],
                 known: Mapping[str, Iterable[str]] | None = None):
        self.rows = 0
        self.numeric = list(numeric)
        self.moments = Moments(len(self.numeric))
        self.words: dict[str, Counter[str]] = {name: Counter() for name in categorical}
        self.missing = dict.fromkeys([*numeric, *categorical], 0)
        self.unseen = dict.fromkeys(categorical, 0)
        self._known = {name: frozenset(words) for name, words in known.items()} if known is not None else None

    def add(self, chunk: Chunk, rows: np.ndarray) -> None:
        """Count the given rows of the chunk in. Raises `UserError` for a column with too many categories."""
        self.rows += len(rows)
        values = np.empty((len(self.numeric), len(rows)))
        for i, name in enumerate(self.numeric):
            column = chunk[name]
            assert not isinstance(column, Words)
            np.take(column, rows, out=values[i])
            self.missing[name] += int(np.isnan(values[i]).sum())
        self.moments.add(values)
        for name, total in self.words.items():
            column = chunk[name]
            assert isinstance(column, Words)
            # Shifted by one, so that -1 (no word) is counted first.
            missing, *counts = np.bincount(column.codes[rows] + 1, minlength=len(column.words) + 1).tolist()
            self.missing[name] += missing
            for word, count in zip(column.words, counts, strict=True):
                if self._known is not None and word not in self._known[name]:
                    self.unseen[name] += count
                elif count:
                    total[word] += count
            if len(total) > MOST_CATEGORIES and self._known is None:
                raise UserError(f"column '{name}' has more than {MOST_CATEGORIES:,} different values, "
                                f"too many to be categories; leave it out (--drop)")


class Encoder:
    """Turns columns into features: one for a numeric column, one a category (``name=value``) for the others.

    ``fill`` holds, by column name, what a missing numeric value becomes.
    """

    def __init__(self, columns: Sequence[Column], fill: Mapping[str, float]):
        self.columns = list(columns)
        self.fill = dict(fill)
        self.names: list[str] = []
        self.numeric: list[bool] = []
        self.first: list[int] = []
        """The number of each column's first feature."""
        for column in self.columns:
            self.first.append(len(self.names))
            if column.categories is None:
                self.names.append(column.name)
            else:
                self.names += [f"{column.name}={word}" for word in column.categories]
            self.numeric += [column.categories is None] * (len(self.names) - len(self.numeric))
        self._places = [{word: first + i for i, word in enumerate(column.categories or ())}
                        for column, first in zip(self.columns, self.first, strict=True)]

    def prepare(self, chunk: Chunk) -> list[np.ndarray]:
        """Return a (rows,) array a column: float64 values, filled; or int64, which of the features is 1.

        The latter is -1 where the category is missing or unknown.
        """
        prepared = []
        for column, places in zip(self.columns, self._places, strict=True):
            source = chunk[column.name]
            if isinstance(source, Words):
                # One entry more, so that code -1 (no word) finds -1 at the end.
                feature = np.array([places.get(word, -1) for word in source.words] + [-1], np.int64)
                prepared.append(feature[source.codes])
            else:
                prepared.append(np.where(np.isnan(source), self.fill[column.name], source))
        return prepared

    def encode(self, prepared: Sequence[np.ndarray], rows: np.ndarray, out: np.ndarray) -> None:
        """Write the given rows of a prepared chunk into ``out`` (len(rows), features), contiguous."""
        out.fill(0)
        flat, starts = out.reshape(-1), np.arange(len(rows)) * out.shape[1]
        for column, first, source in zip(self.columns, self.first, prepared, strict=True):
            values = source[rows]
            if column.categories is None:
                out[:, first] = values
            else:
                known = values >= 0
                flat[(starts + values)[known]] = 1

    def statistics(self, survey: Survey) -> dict[str, list[Any]]:
        """Return the manifest's per-feature lists for a part: of its features as they are written, filled.

        ``mean``, ``deviation`` (population), ``minimum``, ``maximum``, ``missing``; all 0 without rows.
        """
        numeric = dict(zip(survey.numeric, zip(*self._filled(survey), strict=True), strict=True))
        table: list[list[float]] = []
        rows = max(survey.rows, 1)
        for column in self.columns:
            missing = survey.missing[column.name]
            if column.categories is None:
                table.append([float(figure) for figure in numeric[column.name]] + [missing])
                continue
            for word in column.categories:
                share = survey.words[column.name][word] / rows
                spread = float(np.sqrt(share * (1 - share)))
                table.append([share, spread, float(share == 1), float(share > 0), missing])
        mean, deviation, minimum, maximum, gaps = (list(figures) for figures in zip(*table, strict=True))
        return {"mean": mean, "deviation": deviation, "minimum": minimum, "maximum": maximum, "missing": gaps}

    def _filled(self, survey: Survey) -> tuple[np.ndarray, ...]:
        fill = np.array([self.fill[name] for name in survey.numeric])
        gaps = np.array([survey.missing[name] for name in survey.numeric], np.float64)
        whole, seen = Moments(len(fill)), survey.moments
        whole.merge(seen.count, seen.mean, seen.squares, seen.minimum, seen.maximum)
        whole.merge(gaps, fill, np.zeros(len(fill)),
                    np.where(gaps > 0, fill, np.inf), np.where(gaps > 0, fill, -np.inf))
        deviation = np.sqrt(whole.squares / np.maximum(whole.count, 1))
        empty = whole.count == 0
        figures = (whole.mean, deviation, whole.minimum, whole.maximum)
        return tuple(np.where(empty, 0, figure) for figure in figures)


class LabelSurvey:
    """The distinct values of the label: words, or the first `MOST_VALUES` and one more numbers."""

    def __init__(self) -> None:
        self.words: set[str] = set()
        self.values = np.empty(0)
        self.largest = 0.0

    def add(self, column: np.ndarray | Words, rows: np.ndarray) -> None:
        """Count the label of the given rows in, none missing. Raises `UserError` for too many words."""
        if isinstance(column, Words):
            self.words.update(column.words[code] for code in np.unique(column.codes[rows]))
            if len(self.words) > MOST_CATEGORIES:
                raise UserError(f"the label has more than {MOST_CATEGORIES:,} different words; "
                                f"choose another --label")
        elif len(rows):
            values = np.unique(column[rows])
            self.largest = max(self.largest, float(np.abs(values).max()))
            if len(self.values) <= MOST_VALUES:
                self.values = np.union1d(self.values, values)[:MOST_VALUES + 1]
