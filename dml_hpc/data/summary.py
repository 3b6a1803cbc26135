"""What the labels, the weights and the lengths of the rows of a data set are like; X itself is not read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from dml_hpc.data.dataset import Dataset
from dml_hpc.data.shard import CsrShard, RatingsShard, Shard
from dml_hpc.data.totals import shard_weight
from dml_hpc.errors import UserError

BINS = 10
BLOCK = 1 << 20


@dataclass
class Summary:
    """Counts over all rows of the shards that can be read.

    ``labels`` are (low, high, rows), low = high for the values that the manifest lists, else `BINS` equal bins.
    ``sizes`` are (low, high, rows) by the entries that a sparse row stores, in powers of two, None for other kinds.
    ``unusual`` counts labels that are NaN, infinite, or not listed; ``weight`` is the sum of the rows' weights, None
    where they have none; ``problems`` are (file, what keeps it from being read).
    """

    labels: list[tuple[float, float, int]] = field(default_factory=list)
    sizes: list[tuple[int, int, int]] | None = None
    unusual: int = 0
    weight: float | None = None
    problems: list[tuple[str, str]] = field(default_factory=list)


def summarise(dataset: Dataset) -> Summary:
    """Read the labels and weights of a data set, of any kind, and how long its sparse rows are."""
    summary = Summary()
    lengths = np.zeros(64, np.int64)
    weights: list[float] = []
    low, high = np.inf, -np.inf
    for number in range(len(dataset.paths)):
        try:
            shard = _open(dataset, number)
            for y in _labels(shard):
                y = y[np.isfinite(y)]
                low, high = min(low, y.min(initial=np.inf)), max(high, y.max(initial=-np.inf))
            if dataset.weighted:
                weights.append(shard_weight(dataset, number))
            if isinstance(shard, CsrShard):
                # 0 entries, 1, 2, 3 … 4, 5 … 8, and so on.
                size = np.diff(shard.indptr)
                if len(size) and size.min() < 0:
                    raise UserError(f"{shard.path}: indptr falls")
                power = np.ceil(np.log2(np.maximum(size, 1))) + 1
                lengths += np.bincount(np.where(size > 0, power, 0).astype(np.int64), minlength=64)
        except UserError as error:
            path = str(dataset.paths[number])
            summary.problems.append((path, str(error).removeprefix(path).lstrip(": ")))
    values = dataset.manifest.label.values
    edges = np.array(values) if values is not None else np.linspace(low, high, BINS + 1) if low < high else \
        np.array([low] if np.isfinite(low) else [])
    counts = np.zeros(len(edges) if values is not None or len(edges) < 2 else BINS, np.int64)
    broken = {path for path, _ in summary.problems}
    for number in range(len(dataset.paths)):
        if str(dataset.paths[number]) in broken:
            continue
        for y in _labels(_open(dataset, number)):
            counted = _count(y, edges, len(counts))
            counts += counted
            summary.unusual += len(y) - int(counted.sum())
    tops = edges if len(counts) == len(edges) else edges[1:]
    summary.labels = list(zip(edges.tolist(), tops.tolist(), counts.tolist(), strict=False))
    summary.weight = math.fsum(weights) if dataset.weighted else None
    if dataset.kind == "csr":
        last = int(np.max(np.flatnonzero(lengths), initial=0))
        bounds = [(0, 0), (1, 1), *((2**(bit - 1) + 1, 2**bit) for bit in range(1, 62))]
        summary.sizes = [(*bounds[bit], int(lengths[bit])) for bit in range(last + 1)]
    return summary


def _open(dataset: Dataset, number: int) -> Shard | RatingsShard:
    return dataset.ratings(number) if dataset.kind == "ratings" else dataset.shard(number)


def _labels(shard: Shard | RatingsShard) -> Iterator[np.ndarray]:
    for start in range(0, shard.rows, BLOCK):
        stop = min(start + BLOCK, shard.rows)
        y = shard.labels.read(start, stop) if isinstance(shard, RatingsShard) else shard.y(start, stop)
        yield y.astype(np.float64)


def _count(y: np.ndarray, edges: np.ndarray, bins: int) -> np.ndarray:
    """Return how many of ``y`` equal each of the ``edges``, or lie between two of them when there is one bin less."""
    if bins == len(edges):
        place = np.searchsorted(edges, y)
        place = np.minimum(place, max(bins - 1, 0))
        return np.bincount(place[edges[place] == y] if bins else [], minlength=bins)
    return np.histogram(y[np.isfinite(y)], edges)[0]
