"""Write small data sets for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dml_hpc.data.manifest import Column, Label, Manifest
from dml_hpc.data.shard import ShardWriter


def write_dataset(folder: Path, X: np.ndarray, y: np.ndarray, shard_rows: list[int], dtype: str = "float32") -> Path:
    """Write ``X`` (rows, features) and ``y`` (rows,) as numeric features into shards of the given sizes."""
    folder.mkdir()
    X, y = np.asarray(X, dtype), np.asarray(y, float)
    names = [f"x{j}" for j in range(X.shape[1])]
    entries, start = [], 0
    for number, rows in enumerate(shard_rows):
        with ShardWriter(folder / f"part-{number:05d}.h5", rows, X.shape[1], dtype) as shard:
            shard.append(X[start:start + rows], y[start:start + rows])
            entries.append(shard.finish())
        start += rows
    assert start == len(y)
    wide = X.astype(np.float64)
    stats = [(wide.mean(0), wide.std(0), wide.min(0), wide.max(0)) if len(y) else (np.zeros(X.shape[1]),) * 4]
    mean, deviation, minimum, maximum = (part.tolist() for part in stats[0])
    values = np.unique(y).tolist()
    Manifest(
        kind="dense", dtype=dtype, rows=len(y), features=X.shape[1], nonzeros=int(np.count_nonzero(X)),
        feature_names=names, numeric=[True] * X.shape[1], mean=mean, deviation=deviation, minimum=minimum,
        maximum=maximum, missing=[0] * X.shape[1], columns=[Column(name, "numeric") for name in names],
        label=Label("label", values if len(values) <= 100 else None), shards=entries,
    ).write(folder)
    return folder
