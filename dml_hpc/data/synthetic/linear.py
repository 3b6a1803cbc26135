"""Synthetic rows with labels from a linear model that is known: dense, or sparse bags of words.

Every random number is a pure function of (seed, purpose, place); see `dml_hpc.kernels.random`.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np

from dml_hpc.data.csr import Csr, concatenated, index_dtype
from dml_hpc.data.sources.source import About
from dml_hpc.errors import UserError
from dml_hpc.kernels import synthetic as kernels
from dml_hpc.kernels.random import fill_normals, stream

X, WEIGHTS, BIAS, LABELS, LENGTHS = range(5)
"""What a stream of random numbers is for."""

SIGNAL = 2.0
"""The deviation of the scores of classes: neither clear nor hopeless."""
TRUTH_ROWS = 100_000
TRUTH_ENTRIES = 1 << 24
"""How many rows and entries the least possible losses are estimated on."""
NORM_BLOCK = 1 << 16
PIECE_WORDS = 1 << 20
"""About how many words are drawn, and sorted, at once."""


class Model:
    """A linear model of known ``weights`` (outputs, features) and ``bias`` (outputs,) float64, and its labels.

    With ``noise`` y is the score plus normal noise of that deviation, else the class drawn by the logistic function of
    the one score, or the softmax of several. ``size`` is the norm of each output's weights.
    """

    def __init__(self, features: int, outputs: int, seed: int, size: float, noise: float | None = None):
        self.weights, self.bias = np.empty((outputs, features)), np.empty(outputs)
        fill_normals(stream(seed, WEIGHTS), 0, 1.0, self.weights.reshape(-1))
        fill_normals(stream(seed, BIAS), 0, 0.5, self.bias)
        for row in self.weights:
            blocks = (row[start:start + NORM_BLOCK] for start in range(0, features, NORM_BLOCK))
            row *= size / math.sqrt(math.fsum(chain.from_iterable((block * block).tolist() for block in blocks)))
        self._noise, self._key = noise, stream(seed, LABELS)

    def scores(self, rows: np.ndarray | Csr) -> np.ndarray:
        """Return the scores (count, outputs) float64 of rows."""
        out = np.empty((len(rows), len(self.bias)))
        if isinstance(rows, Csr):
            kernels.sparse_scores(rows.data, rows.indices, rows.indptr, self.weights, self.bias, out)
        else:
            kernels.dense_scores(rows, self.weights, self.bias, out)
        return out

    def labels(self, rows: np.ndarray | Csr, first: int) -> np.ndarray:
        """Return y (count,) float64 of rows, of which ``first`` is the number of the first."""
        scores = self.scores(rows)
        if self._noise is None:
            y = np.empty(len(rows))
            kernels.draw_classes(self._key, first, scores, y)
            return y
        y = scores[:, 0].copy()
        if self._noise:
            kernels.add_noise(self._key, first, self._noise, y)
        return y

    def truth(self, rows: np.ndarray | Csr) -> dict[str, Any]:
        """Return the weights and bias, and for classes the losses no model can beat, estimated on ``rows``.

        ``least_log_loss`` and ``least_error`` are the means of the entropy of the true probabilities and of the chance
        that the likeliest class is wrong (Bayes error); their ``…_deviation`` is the standard error of these means.
        """
        one = len(self.bias) == 1
        found: dict[str, Any] = {"weights": self.weights[0] if one else self.weights,
                                 "bias": float(self.bias[0]) if one else self.bias}
        if self._noise is not None:
            return found
        scores = self.scores(rows)
        if one:
            scores = np.hstack([np.zeros_like(scores), scores])
        scores -= scores.max(axis=1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        for name, losses in (("least_log_loss", -(np.exp(logs) * logs).sum(axis=1)),
                             ("least_error", 1 - np.exp(logs).max(axis=1))):
            found[name] = float(losses.mean())
            found[f"{name}_deviation"] = float(losses.std() / math.sqrt(len(losses)))
        return found


class Linear:
    """Dense rows of independent standard normal features, labelled by a `Model` (regression where it has noise)."""

    kind = "dense"

    def __init__(self, name: str, rows: int, features: int, seed: int, dtype: str, classes: int = 1,
                 noise: float | None = None):
        self.rows, self.features = rows, features
        settings = {"noise": noise} if noise is not None else {"classes": max(2, classes)}
        self.about = About(source={"synthetic": name, "seed": seed, **settings})
        self.model = Model(features, classes, seed, SIGNAL if noise is None else 1.0, noise)
        self._dtype, self._key = dtype, stream(seed, X)

    def _features(self, start: int, stop: int) -> np.ndarray:
        rows = np.empty((stop - start, self.features), np.float64 if self._dtype == "float64" else np.float32)
        fill_normals(self._key, start * self.features, 1.0, rows.reshape(-1))
        # Labels belong to the numbers as they are stored.
        return rows.astype(np.float16).astype(np.float32) if self._dtype == "float16" else rows

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """See `RowSource.read`."""
        rows = self._features(start, stop)
        return rows, self.model.labels(rows, start)

    def truth(self) -> dict[str, Any]:
        """See `Model.truth`."""
        return self.model.truth(self._features(0, min(self.rows, TRUTH_ROWS, max(1, TRUTH_ENTRIES // self.features))))


class SparseBinary:
    """Rows of words, some more popular than others, with how often they occur; labelled 0 or 1 by a `Model`.

    A row has a geometric number of words, and ``entries`` different ones in the mean; see `kernels.draw_words`.
    """

    kind = "csr"

    def __init__(self, rows: int, features: int, seed: int, dtype: str, entries: float):
        if features < 2:
            raise UserError(f"sparse-binary makes at least 2 features, not {features}")
        if not 1 <= entries <= features / 2:
            raise UserError(f"rows of {entries:g} entries are not for {features:,} features: sparse-binary makes 1 to "
                            f"{features / 2:g}; give --row-entries, --density or --features accordingly")
        self.rows, self.features = rows, features
        self._words = _words_for(entries, features)
        self.about = About(source={"synthetic": "sparse-binary", "seed": seed, "row_entries": entries})
        pairs = 2 * self._words * (self._words - 1)  # E[n (n − 1)] of a geometric n
        same = sum(count * p * p for count, p in _popularity(features))
        self.model = Model(features, 1, seed, SIGNAL * math.sqrt(features / (self._words + pairs * same)))
        self._value = np.dtype(np.float64 if dtype == "float64" else np.float32)
        self._keys = stream(seed, LENGTHS), stream(seed, X)

    def _features(self, start: int, stop: int) -> Csr:
        step = max(1, int(PIECE_WORDS / self._words))
        return concatenated([self._piece(first, min(first + step, stop))
                             for first in range(start, max(stop, start + 1), step)])

    def _piece(self, start: int, stop: int) -> Csr:
        stops = np.empty(stop - start, np.int64)
        kernels.word_counts(self._keys[0], start, self._words, stops)
        np.cumsum(stops, out=stops)
        words = np.empty(int(stops[-1]) if len(stops) else 0, np.int64)
        kernels.draw_words(self._keys[1], start, self.features, stops, words)
        words.sort()
        first = np.flatnonzero(np.diff(words, prepend=-1))
        counts = np.diff(first, append=len(words)).astype(self._value)
        words = words[first]
        indptr = np.searchsorted(words, np.arange(len(stops) + 1) * self.features)
        return Csr(counts, (words % self.features).astype(index_dtype(self.features)), indptr, self.features)

    def read(self, start: int, stop: int) -> tuple[Csr, np.ndarray]:
        """See `RowSource.read`."""
        rows = self._features(start, stop)
        return rows, self.model.labels(rows, start)

    def truth(self) -> dict[str, Any]:
        """See `Model.truth`."""
        most = max(1, int(TRUTH_ENTRIES / self._words))
        return {"row_words": self._words, **self.model.truth(self._features(0, min(self.rows, TRUTH_ROWS, most)))}


def _popularity(features: int) -> list[tuple[int, float]]:
    """Return (how many words, their probability) of each octave of the list of words; see `kernels.draw_words`."""
    octaves = (features + 1).bit_length() - 1
    counts = [1 << i for i in range(octaves)] + [features + 1 - (1 << octaves)]
    span = octaves + counts[-1] / (1 << octaves)
    return [(count, 1 / ((1 << i) * span)) for i, count in enumerate(counts)]


def _words_for(entries: float, features: int) -> float:
    """Return the mean number of words at which a row has ``entries`` different ones in the mean.

    A word of probability p is missing from n words with probability (1 − p)^n, whose mean over a geometric n has a
    closed form.
    """
    popularity = _popularity(features)

    def different(words: float) -> float:
        return sum(count * p / (1 - (1 - 1 / words) * (1 - p)) for count, p in popularity)

    low, high = 1.0, 2.0
    while different(high) < entries:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if different(middle) < entries else (low, middle)
    return high
