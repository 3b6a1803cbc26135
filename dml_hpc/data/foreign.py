"""HDF5 files that were never imported: what a manifest would say of them, from their shapes and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dml_hpc.data.manifest import MOST_VALUES, Label, Manifest, ShardEntry
from dml_hpc.data.shard import Keys, Shard, check_weights, open_shard
from dml_hpc.errors import UserError

BLOCK_ROWS = 1 << 20


def described(paths: Sequence[Path], keys: Keys) -> Manifest:
    """Return a manifest for HDF5 files, whose labels and weights are read; ``keys`` name their arrays.

    Raises `UserError` for files that do not fit together, and for weights that are negative or not finite.
    """
    entries: list[ShardEntry] = []
    values: np.ndarray | None = np.empty(0)
    kinds, features, types = set(), set(), []
    chunk_rows: int | None = None
    for path in paths:
        shard = open_shard(path, keys)
        kinds.add(shard.kind)
        features.add(shard.features)
        types.append(shard.dtype)
        chunk_rows = max(filter(None, (chunk_rows, shard.chunk_rows)), default=None)
        entries.append(ShardEntry(path.name, shard.rows, shard.nonzeros or 0, ""))
        values = _values(shard, values)
        shard.close()
    if len(kinds) > 1 or len(features) > 1:
        widths = " and ".join(map(str, sorted(features)))
        raise UserError(f"the files do not fit together: they have {widths} features, {' and '.join(sorted(kinds))}")
    width = features.pop()
    if not width:
        raise UserError(f"{paths[0]}: {keys.x} has no columns")
    # Whole numbers of up to 16 bits are exact as float32.
    floats = [kind if kind.kind == "f" else np.dtype("f4" if kind.itemsize <= 2 else "f8") for kind in types]
    return Manifest(
        kind=kinds.pop(), dtype=str(np.result_type(*floats)), rows=sum(entry.rows for entry in entries),
        features=width, nonzeros=sum(entry.nonzeros for entry in entries), feature_names=None, statistics=None,
        columns=[], label=Label(keys.y or "none", None if values is None else values.tolist()), shards=entries,
        source={"foreign": [str(path) for path in paths], "chunk_rows": chunk_rows},
        weighted=keys.weight is not None)


def _values(shard: Shard, values: np.ndarray | None) -> np.ndarray | None:
    """Return the distinct labels of a shard and those known, None when they are too many; weights are checked."""
    for start in range(0, shard.rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, shard.rows)
        weight = shard.weight(start, stop)
        if weight is not None:
            check_weights(weight, start, f"{shard.path}: ")
        if values is not None:
            values = np.union1d(values, shard.y(start, stop).astype(np.float64))
            values = values if len(values) <= MOST_VALUES and np.isfinite(values).all() else None
    return values
