"""A data set folder, opened: its manifest, and any range of its rows as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dml_hpc.data.manifest import Manifest, read_manifest
from dml_hpc.data.shard import file_sha256, open_shard
from dml_hpc.errors import UserError


class Piece(NamedTuple):
    """Rows of one shard: ``X`` (count, features) and ``y`` (count,); ``first`` is the global number of their first."""

    X: np.ndarray
    y: np.ndarray
    first: int


class Dataset:
    """The rows of a folder of shards, numbered 0 … rows − 1 in the order of the shards.

    Every rank opens the same folder; a shard is opened when a row of it is first asked for.
    """

    def __init__(self, path: Path):
        self.path = path
        self.manifest: Manifest = read_manifest(path)
        self.rows = self.manifest.rows
        self.features = self.manifest.features
        shard_rows = [shard.rows for shard in self.manifest.shards]
        self.offsets = np.concatenate([[0], np.cumsum(shard_rows, dtype=np.int64)]).astype(np.int64)
        """(shards + 1,) int64: shard s holds rows ``offsets[s]`` … ``offsets[s + 1] − 1``."""
        self._opened: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def shard(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ``X`` (rows of the shard, features) and ``y`` of one shard; see `open_shard`."""
        if index not in self._opened:
            entry = self.manifest.shards[index]
            self._opened[index] = open_shard(self.path / entry.file, entry.rows, self.features,
                                             self.manifest.dtype)
        return self._opened[index]

    def ranges(self, start: int, stop: int, most_rows: int | None = None) -> list[tuple[int, int]]:
        """Cut rows ``start`` … ``stop − 1`` at the shards' ends and into at most ``most_rows`` rows each."""
        found = []
        for low, high in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True):
            low, high = max(start, low), min(stop, high)
            step = max(1, most_rows or high - low)
            found += [(first, min(first + step, high)) for first in range(low, high, step)]
        return found

    def pieces(self, start: int, stop: int, most_rows: int | None = None) -> list[Piece]:
        """Return rows ``start`` … ``stop − 1`` as views on the shards, in order, cut as `ranges` says."""
        found = []
        for first, last in self.ranges(start, stop, most_rows):
            number = int(np.searchsorted(self.offsets, first, side="right")) - 1
            X, y = self.shard(number)
            inside = slice(first - int(self.offsets[number]), last - int(self.offsets[number]))
            found.append(Piece(X[inside], y[inside], first))
        return found


def open_dataset(path: Path) -> Dataset:
    """Open a data set folder; raises `UserError` when it is none."""
    return Dataset(path)


class Examination(NamedTuple):
    """What opening every shard showed: ``problems`` as {file, where, problem}, ``counts`` by label value.

    ``counts`` covers the shards that opened; it is None when the label has too many values to be counted.
    """

    problems: list[dict[str, str]]
    counts: dict[float, int] | None


def examine(dataset: Dataset) -> Examination:
    """Open every shard, count its labels and compare its SHA-256; what is missing, misshapen or changed is reported."""
    problems: list[dict[str, str]] = []
    values = dataset.manifest.label.values
    counts = dict.fromkeys(values, 0) if values is not None else None
    for index, entry in enumerate(dataset.manifest.shards):
        try:
            y = dataset.shard(index)[1]
            digest = file_sha256(dataset.path / entry.file)
        except (UserError, OSError) as error:
            problems.append({"file": entry.file, "where": "file", "problem": str(error)})
            continue
        if digest != entry.sha256:
            problems.append({"file": entry.file, "where": "checksum", "problem":
                             f"{dataset.path / entry.file} has changed since it was imported: its SHA-256 is not that "
                             f"of its manifest; import the data again"})
        if counts is not None:
            for value, count in zip(*np.unique(y, return_counts=True), strict=True):
                counts[float(value)] = counts.get(float(value), 0) + int(count)
    return Examination(problems, counts)
