"""A shard opened, and held against what its manifest says of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dml_hpc.data.manifest import Manifest, ShardEntry, check_head
from dml_hpc.data.shard import Keys, Shard, open_shard
from dml_hpc.errors import UserError


def open_promised(path: Path, entry: ShardEntry, manifest: Manifest, keys: Keys) -> Shard:
    """Open a shard; raises `UserError` when it is not what its ``entry`` in the ``manifest`` promises."""
    if entry.head_bytes:
        check_head(path, entry)
    shard = open_shard(path, keys, manifest.features)
    broken = _broken_promise(shard, entry, manifest)
    if broken:
        shard.close()
        raise UserError(f"{path} {broken}")
    return shard


def _broken_promise(shard: Shard, entry: ShardEntry, manifest: Manifest) -> str | None:
    found = (shard.kind, shard.rows, shard.features)
    if found != (manifest.kind, entry.rows, manifest.features):
        return (f"holds {shard.rows:,} {shard.kind} rows of {shard.features:,} features, its manifest says "
                f"{entry.rows:,} {manifest.kind} rows of {manifest.features:,}")
    if shard.dtype != np.dtype(manifest.dtype) and manifest.is_imported:
        return f"holds {shard.dtype}, its manifest says {manifest.dtype}"
    chunked = shard.chunk_rows is not None
    if shard.kind == "dense" and entry.rows and manifest.is_imported and chunked != (manifest.compression is not None):
        state = "compressed" if chunked else "not compressed"
        return f"is {state}, its manifest says {manifest.compression or 'it is not'}"
    if shard.nonzeros not in (None, entry.nonzeros):
        return f"holds {shard.nonzeros:,} entries, its manifest says {entry.nonzeros:,}"
    return None
