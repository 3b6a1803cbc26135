"""What tells one data set from another, shard by shard: a run may leave some out, and the next one others."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.data.dataset import Dataset
from dml_hpc.data.manifest import ShardEntry, read_manifest
from dml_hpc.store.state import Values

SAMPLED_ROWS = 64
"""Of files that were never imported, whose rows tell one data set from another; of each file two at least."""
_DIGITS = 16
_SHAPE = ("features", "kind", "dtype")
_NAMED = 3


def of_data(dataset: Dataset) -> Values:
    """Return what tells a data set from others.

    ``shards`` are [name, digest] of those in use, ``left_out`` of the others; the digest of one that was never imported
    and left out is None. ``digest`` is that of all that are in use, with what is known of the features.
    """
    manifest = dataset.manifest
    names, names_left_out = _names(dataset)
    digests = [_of_shard(dataset, number) for number in range(len(names))]
    # Those of files that were never imported are counted only where they are wanted, and follow from the files.
    figures = manifest.statistics.mean.tobytes() if dataset.is_imported and manifest.statistics is not None else b""
    entries: dict[str, ShardEntry] = {}
    if dataset.left_out and dataset.is_imported:
        entries = {shard.file: shard for shard in read_manifest(dataset.path).shards}
    left_out = [[name, _digest(entries[name]) if name in entries else None] for name in names_left_out]
    return {"rows": dataset.rows, "features": dataset.features, "kind": dataset.kind, "dtype": manifest.dtype,
            "digest": hashlib.sha256(json.dumps(digests).encode() + figures).hexdigest(),
            "shards": [list(pair) for pair in zip(names, digests, strict=True)], "left_out": left_out}


def difference(there: Values, here: Values, same_rows: bool) -> str | None:
    """Return how the data set ``there`` is another than that ``here``, and what to do, in words that follow "is of".

    None: it is the same. Unless ``same_rows`` are wanted, other shards may be left out.
    """
    another = f"another data set ({there['rows']:,} rows × {there['features']:,} features); name that one"
    if any(there[name] != here[name] for name in _SHAPE):
        return another
    if not (there["left_out"] or here["left_out"]):
        return None if (there["rows"], there["digest"]) == (here["rows"], here["digest"]) else another
    if not _same_but_for_left_out(there, here):
        return another
    if same_rows and there["shards"] != here["shards"]:
        return (f"other rows of this data set: then {_without(there)}, now {_without(here)}; see that the "
                "same ones can be read")
    return None


def _same_but_for_left_out(there: Values, here: Values) -> bool:
    """Say whether shards have the same names, and what is known of both here and there is the same."""
    known, known_here = (dict([*one["shards"], *one["left_out"]]) for one in (there, here))
    if set(known) != set(known_here):
        return False
    pairs = [(digest, known_here[name]) for name, digest in known.items()]
    of_both = [pair for pair in pairs if None not in pair]
    used, used_here = ([name for name, _ in one["shards"]] for one in (there, here))
    common = set(used) & set(used_here)
    return bool(of_both) and all(one == other for one, other in of_both) and (
        [name for name in used if name in common] == [name for name in used_here if name in common])


def _without(about: Values) -> str:
    names = [name for name, _ in about["left_out"]]
    if not names:
        return "no shard is left out"
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more} {'are' if len(names) > 1 else 'is'} left out"


def _names(dataset: Dataset) -> tuple[list[str], list[str]]:
    """Return what the shards in use and those left out are called, wherever their folder is."""
    left_out = [Path(one.file) for one in dataset.left_out]
    if dataset.is_imported:
        return [path.name for path in dataset.paths], [path.name for path in left_out]
    common = os.path.commonpath([os.path.abspath(path.parent) for path in [*dataset.paths, *left_out]])
    used, others = ([os.path.relpath(os.path.abspath(path), common) for path in paths]
                    for paths in (dataset.paths, left_out))
    return used, others


def _of_shard(dataset: Dataset, number: int) -> str:
    """Return the digest of a shard in use: of all its bytes where a manifest knows them, else of some of its rows."""
    entry, sampled = dataset.manifest.shards[number], b""
    if not dataset.is_imported:
        first = int(dataset.offsets[number])
        count = max(2, SAMPLED_ROWS // (len(dataset.paths) + len(dataset.left_out)))
        places = np.linspace(0, entry.rows - 1, count if entry.rows else 0).astype(np.int64)
        for row in np.unique(places).tolist():
            X, y, weight = dataset.row(first + row)[2:]
            values = (X.indices, X.data) if isinstance(X, Csr) else (X,)
            sampled += b"".join(part.tobytes() for part in values) + repr((y, weight)).encode()
    return _digest(entry, sampled)


def _digest(entry: ShardEntry, sampled: bytes = b"") -> str:
    content = json.dumps([entry.rows, entry.nonzeros, entry.sha256]).encode() + sampled
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
