"""Write small data sets for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.data.manifest import Column, Label, Manifest
from dml_hpc.data.sources.source import About
from dml_hpc.data.statistics import Moments
from dml_hpc.data.writer import open_writer


class ArraySource:
    """The rows of an array, or of sparse rows, in memory."""

    def __init__(self, X: np.ndarray | Csr, y: np.ndarray, **about):
        self.kind = "csr" if isinstance(X, Csr) else "dense"
        self.X, self.y = X, np.asarray(y, float)
        self.rows, self.features = X.shape
        self.about = About(**about)

    def read(self, start: int, stop: int):
        return self.X[start:stop], self.y[start:stop]


def write_dataset(folder: Path, X: np.ndarray | Csr, y: np.ndarray, shard_rows: list[int], dtype: str = "float32",
                  compression: str | None = None, weight: np.ndarray | None = None) -> Path:
    """Write ``X`` (rows, features), ``y`` and ``weight`` (rows,) as numeric features into shards of the given sizes."""
    folder.mkdir()
    kind = "csr" if isinstance(X, Csr) else "dense"
    X, y = X if isinstance(X, Csr) else np.asarray(X, dtype), np.asarray(y, float)
    features = X.shape[1]
    entries, start, moments = [], 0, Moments(features)
    for number, rows in enumerate(shard_rows):
        with open_writer(folder / f"part-{number:05d}.h5", kind, rows, features, dtype, compression,
                         weight is not None) as shard:
            shard.append(X[start:start + rows], y[start:start + rows],
                         None if weight is None else weight[start:start + rows])
            shard.close()
            entries.append(shard.entry())
        moments.add(X[start:start + rows])
        start += rows
    assert start == len(y)
    statistics = moments.statistics(len(y), None, None)
    for figures in (statistics.mean, statistics.deviation, statistics.minimum, statistics.maximum):
        figures[~np.isfinite(figures)] = 0  # of rows that no import would write
    names = [f"x{j}" for j in range(features)]
    values = np.unique(y).tolist()
    Manifest(
        kind=kind, dtype=dtype, rows=len(y), features=features, nonzeros=sum(entry.nonzeros for entry in entries),
        feature_names=names, statistics=statistics,
        columns=[Column(name, "numeric") for name in names],
        label=Label("label", values if len(values) <= 100 else None), shards=entries, compression=compression,
        weighted=weight is not None,
    ).write(folder)
    return folder
