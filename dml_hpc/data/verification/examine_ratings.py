"""What is wrong with a file of ratings, and with what their users and items are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dml_hpc.data.manifest import Manifest
from dml_hpc.data.ratings.blocks import grid_of
from dml_hpc.data.ratings.ids import FILE, read_ids
from dml_hpc.data.stored import StoredArray
from dml_hpc.data.verification.findings import (
    Expected,
    Fault,
    Findings,
    blocks,
    compare,
    compare_dtype,
    compare_rows,
    open_part,
    read_part,
    without_path,
)
from dml_hpc.errors import UserError
from dml_hpc.files import file_sha256, first_line
from dml_hpc.layout import split


def blocks_of(manifest: Manifest, number: int) -> list[list[int]]:
    """Return of each block of shard ``number`` how many ratings there are, of how many users and items."""
    assert manifest.grid is not None
    grid = grid_of(manifest.grid)
    users, items = np.diff(grid.user_bounds).tolist(), np.diff(grid.item_bounds).tolist()
    return [[count, users[u], width] for u in range(*split(grid.shape[0], len(manifest.shards), number))
            for count, width in zip(grid.counts[u].tolist(), items, strict=True)]


def examine_ratings(path: Path, file: Any, expected: Expected, found: Findings) -> None:
    """Look at the users and items of a file: each of a block in its stripe, and no pair twice; see `examine`."""
    parts = {}
    for name in ("user", "item"):
        part = open_part(path, file, name, 1, found)
        if part is None:
            continue
        if found.rows is None:
            found.rows = part.shape[0]
            compare(found, name, "rows", found.rows, expected.rows)
        compare_rows(found, name, part)
        compare_dtype(found, name, part, "int32")
        parts[name] = part
    if expected.timed:
        times = open_part(path, file, "time", 1, found)
        if times is not None:
            compare_rows(found, "time", times)
            compare_dtype(found, "time", times, "int64")
            for start, stop in blocks(path, times.shape[0], times.row_bytes):
                if read_part(times, start, stop, "time", found) is None:
                    break
    if expected.blocks is None or found.rows != sum(count for count, _, _ in expected.blocks) or found.faults:
        return
    start = 0
    for count, users, items in expected.blocks:
        both = []
        for name, below in (("user", users), ("item", items)):
            numbers = _numbers(parts[name], name, start, start + count, below, found)
            if numbers is None:
                return
            both.append(numbers)
        pairs = np.sort(both[0].astype(np.int64) * items + both[1])
        twice = int(np.count_nonzero(pairs[1:] == pairs[:-1]))
        if twice and not found.faults:
            found.add(f"user[{start}]", f"begins a block in which {twice:,} pairs of user and item come again")
        start += count


def _numbers(part: StoredArray, name: str, start: int, stop: int, below: int, found: Findings) -> np.ndarray | None:
    """Return the numbers of a block, or None having noted why they cannot be read; note which are out of range."""
    numbers = read_part(part, start, stop, name, found)
    if numbers is not None:
        odd = np.flatnonzero((numbers < 0) | (numbers >= below))
        if len(odd):
            found.add(f"{name}[{start + int(odd[0])}]", f"is {numbers[odd[0]]}, not in 0 … {below - 1:,}; so are "
                      f"{len(odd):,} values of its block")
    return numbers


def examine_ids(folder: Path, manifest: Manifest) -> list[Fault]:
    """Return what is wrong with ``ids.h5``, as it was written or as it can be read."""
    assert manifest.grid is not None and manifest.users is not None
    path = folder / FILE
    try:
        if not path.is_file():
            return [Fault("file", "is missing, or no file")]
        if file_sha256(path) != manifest.grid["ids_sha256"]:
            return [Fault("checksum", "has changed since it was written; copy it anew or import the data again")]
        for what, ids in zip(("users", "items"), read_ids(folder, manifest.users, manifest.features), strict=True):
            if len(set(ids.values.tolist())) < len(ids):
                return [Fault(what, "have an id that comes twice")]
    except OSError as error:
        return [Fault("file", f"cannot be read: {first_line(error)}")]
    except UserError as error:
        return [Fault("file", without_path(path, error))]
    return []
