"""What is wrong with the sparse matrix of one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.data.links import find
from dml_hpc.data.statistics import Moments
from dml_hpc.data.stored import StoredArray
from dml_hpc.data.verification.findings import (
    BLOCK_BYTES,
    Expected,
    Findings,
    blocks,
    compare,
    compare_dtype,
    not_finite,
    open_part,
    read_part,
)
from dml_hpc.watch import progressed

MOST_FEATURES = 2**53


def examine_csr(path: Path, file: Any, expected: Expected, found: Findings) -> None:
    """Look at a group of ``data``, ``indices`` and ``indptr``."""
    data, indices, indptr = (open_part(path, file, f"{expected.x_key}/{name}", 1, found)
                             for name in ("data", "indices", "indptr"))
    found.features = expected.features if expected.features is not None else _own_features(path, file, expected, found)
    if indptr is not None:
        found.rows = max(indptr.shape[0] - 1, 0)
        compare(found, expected.x_key, "rows", found.rows, expected.rows)
    if data is not None:
        compare(found, expected.x_key, "entries", data.shape[0], expected.nonzeros)
        compare_dtype(found, f"{expected.x_key}/data", data, expected.dtype)
    if data is not None and indices is not None and indptr is not None:
        _entries(expected, found, data, indices, indptr)


def _own_features(path: Path, file: Any, expected: Expected, found: Findings) -> int | None:
    group = find(path, file, expected.x_key)
    shape = np.asarray(() if group is None else group.node.attrs.get("shape", ())).reshape(-1)
    if len(shape) != 2 or shape.dtype.kind not in "iu" or not 0 < int(shape[1]) <= MOST_FEATURES:
        found.add(expected.x_key, "does not say how many columns it has (attribute shape)")
        return None
    return int(shape[1])


def _entries(expected: Expected, found: Findings, data: StoredArray, indices: StoredArray,
             indptr: StoredArray) -> None:
    """Look at the entries of all rows; what needs to know whose they are is left out when ``indptr`` is wrong."""
    name = expected.x_key
    for part, what in ((indices, "indices"), (indptr, "indptr")):
        if part.dtype.kind not in "iu":
            found.add(f"{name}/{what}", f"holds {part.dtype}, not whole numbers")
            return
    if indices.shape != data.shape:
        found.add(f"{name}/indices", f"has {indices.shape[0]:,} entries, data has {data.shape[0]:,}")
        return
    cuts = _cuts(name, found, data, indptr)
    walk = _Entries(name, found, data, indices, None if cuts is None else indptr)
    wanted = expected.moments and found.features == expected.features and data.dtype.kind == "f"
    moments = Moments(found.features or 0) if wanted and cuts is not None else None
    whole = cuts or [(0, 0, start, stop) for start, stop in
                     blocks(data.path, data.shape[0], data.row_bytes + indices.row_bytes)]
    for cut in whole:
        progressed()
        rows = walk.look(*cut)
        if rows is None:
            moments = None
        elif moments is not None:
            moments.add(rows)
    found.moments = moments if walk.report() else None


def _cuts(name: str, found: Findings, data: StoredArray, indptr: StoredArray) -> list[tuple[int, int, int, int]] | None:
    """Cut the rows into blocks (first row, last, first entry, last); None when ``indptr`` is wrong, which is noted."""
    most = max(1, BLOCK_BYTES // data.row_bytes)
    cuts: list[tuple[int, int, int, int]] = []
    row, entry, last = 0, 0, 0
    falls, first = 0, -1
    for start, stop in blocks(indptr.path, indptr.shape[0], 8):
        raw = read_part(indptr, start, stop, f"{name}/indptr", found)
        if raw is None:
            return None
        block = np.concatenate([[last] if start else [], raw]).astype(np.int64)
        if not start and block[0] != 0:
            found.add(f"{name}/indptr[0]", f"is {block[0]}, not 0")
            return None
        fallen = np.flatnonzero(np.diff(block) < 0)
        if len(fallen):
            first = first if first >= 0 else int(fallen[0]) + max(start - 1, 0)
            falls += len(fallen)
        base = max(start - 1, 0)
        while not falls and entry + most < block[-1]:
            # At least one row, however long.
            place = max(int(np.searchsorted(block, entry + most, side="right")) - 1, row + 1 - base)
            cuts.append((row, base + place, entry, int(block[place])))
            row, entry = base + place, int(block[place])
        last = int(block[-1])
        if not falls and stop - 1 > row:
            cuts.append((row, stop - 1, entry, last))
            row, entry = stop - 1, last
    if falls:
        found.add(f"{name}/indptr[{first + 1}]", f"is less than the one before it; it falls {falls:,} times")
        return None
    if not indptr.shape[0]:
        found.add(f"{name}/indptr", "is empty; it is one longer than there are rows")
        return None
    if last != data.shape[0]:
        found.add(f"{name}/indptr[{indptr.shape[0] - 1}]", f"is {last:,}, not {data.shape[0]:,}, the number of entries")
        return None
    return cuts


class _Entries:
    """A walk over the entries of all rows: what is wrong is counted, and the first of each kind located."""

    def __init__(self, name: str, found: Findings, data: StoredArray, indices: StoredArray,
                 indptr: StoredArray | None):
        self._name, self._found = name, found
        self._data, self._indices, self._indptr = data, indices, indptr
        self._bad, self._outside, self._repeating = 0, 0, 0
        self._first_bad, self._first_outside, self._first_repeating = "", "", ""
        self._readable = True

    def look(self, first: int, last: int, start: int, stop: int) -> Csr | None:
        """Look at entries ``start`` … ``stop − 1``, of rows ``first`` … ``last − 1``; return them when all is well."""
        from dml_hpc.kernels.verify import columns_outside, repeating_rows

        name, found, features = self._name, self._found, self._found.features
        if not self._readable:
            return None
        data = read_part(self._data, start, stop, f"{name}/data", found)
        indices = read_part(self._indices, start, stop, f"{name}/indices", found)
        indptr = np.zeros(1, np.int64) if self._indptr is None else \
            read_part(self._indptr, first, last + 1, f"{name}/indptr", found)
        if data is None or indices is None or indptr is None:
            self._readable = False
            return None
        indptr = indptr.astype(np.int64)
        finite = np.isfinite(data)
        well = bool(finite.all())
        if not well:
            place = int(np.argmin(finite))
            self._first_bad = self._first_bad or \
                f"{self._place(first, start, place, indptr, indices[place])}={data[place]}"
            self._bad += len(data) - int(finite.sum())
        if features is None:
            return None
        count, place = columns_outside(indices, features)
        if count:
            self._outside, well = self._outside + count, False
            self._first_outside = self._first_outside or f"{name}/indices[{start + place}]={indices[place]}"
        if self._indptr is not None:
            count, row, column = repeating_rows(indptr - start, indices)
            if count:
                self._repeating, well = self._repeating + count, False
                self._first_repeating = self._first_repeating or f"{name}[{first + row}, {column}]"
        if not well or self._indptr is None:
            return None
        return Csr(data, indices, indptr - start, features)

    def _place(self, first: int, start: int, place: int, indptr: np.ndarray, column: Any) -> str:
        if self._indptr is None:
            return f"{self._name}/data[{start + place}]"
        row = first + int(np.searchsorted(indptr, start + place, side="right")) - 1
        return f"{self._name}[{row}, {column}]"

    def report(self) -> bool:
        """Note what was found; return whether all entries are as they should be."""
        not_finite(self._found, self._first_bad, self._bad)
        if self._outside:
            where, _, value = self._first_outside.partition("=")
            self._found.add(where, f"is {value}, not in 0 … {(self._found.features or 0) - 1:,}; {self._outside:,} "
                            "column numbers are not")
        if self._repeating:
            self._found.add(self._first_repeating, f"is there twice; {self._repeating:,} rows repeat a column")
        return self._readable and not (self._bad or self._outside or self._repeating)
