"""One HDF5 file of a data set, opened: any range of its rows, mapped or read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.data.links import find, open_file
from dml_hpc.data.retrying import unreadable
from dml_hpc.data.stored import StoredArray, open_array
from dml_hpc.errors import UserError
from dml_hpc.files import HDF5_ERRORS, first_line


class Keys(NamedTuple):
    """What the matrix, the labels and the rows' weights are called in an HDF5 file."""

    x: str = "X"
    y: str | None = "y"
    """None: labels are not wanted, and all 0."""
    weight: str | None = None
    """None: rows have no weights, or these are not wanted."""


def keys_of(x: str | None, y: str | None, weight: str | None = None) -> Keys | None:
    """Return what a command line calls the matrix, the labels and the weights, None when it names none of them."""
    return None if x is None and y is None and weight is None else Keys(x or Keys().x, y or Keys().y, weight)


DEFAULT_KEYS = Keys()
WEIGHT = "weight"
"""What the weights are called in shards that have a manifest."""


class _Labelled:
    """What shards of any form have beside X: ``labels``, and ``weights`` where there are any."""

    rows: int

    def __init__(self, path: Path, file: Any, keys: Keys):
        self.path = path
        self._file = file
        self.labels = None if keys.y is None else open_array(path, file, keys.y, 1)
        self.weights = None if keys.weight is None else open_array(path, file, keys.weight, 1)

    def y(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the labels of a range of rows, newly read."""
        stop = self.rows if stop is None else stop
        return np.zeros(stop - start) if self.labels is None else self.labels.read(start, stop)

    def weight(self, start: int = 0, stop: int | None = None) -> np.ndarray | None:
        """Return what each of a range of rows counts, newly read; None where rows have no weights."""
        return None if self.weights is None else self.weights.read(start, self.rows if stop is None else stop)

    def close(self) -> None:
        """Close the file; what is mapped stays."""
        self._file.close()


class DenseShard(_Labelled):
    """Rows of an ``X`` (rows, features) of floats or integers, with labels ``y`` (rows,)."""

    kind = "dense"

    def __init__(self, path: Path, file: Any, keys: Keys):
        self.stored = open_array(path, file, keys.x, 2)
        super().__init__(path, file, keys)
        self.rows, self.features = self.stored.shape
        self.dtype = self.stored.dtype
        self.chunk_rows = self.stored.chunk_rows
        self.nonzeros: int | None = None
        self.mappable = self.stored.mappable and self.dtype.kind == "f"
        self._x: np.ndarray | None = None

    def whole(self) -> np.ndarray:
        """Return all rows: mapped where the file allows it, else read, once."""
        if self._x is None:
            self._x = self.stored.mapped() if self.mappable else self.stored.read(0, self.rows)
        return self._x

    def block(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` … ``stop − 1``: a view where the file is mapped, else newly read."""
        return self.whole()[start:stop] if self.mappable else self.stored.read(start, stop)

    def bytes_of(self, start: int, stop: int) -> int:
        """Return how many bytes the rows take in memory."""
        return (stop - start) * self.stored.row_bytes

    def within(self, start: int, stop: int, most_bytes: int) -> int:
        """Return up to which row those from ``start`` on take ``most_bytes``: at least the next, at most ``stop``."""
        return min(stop, start + max(1, most_bytes // max(self.stored.row_bytes, 1)))

    def balanced(self, share: float) -> int:
        """Return the row before which ``share`` of this shard's work lies."""
        return round(share * self.rows)


class CsrShard(_Labelled):
    """Rows of a group ``X`` of ``data``, ``indices`` and ``indptr``, with labels ``y`` (rows,).

    ``indptr`` is checked when the shard is opened, the column numbers of a block whenever one is read, so that no
    kernel is ever led outside its arrays.
    """

    kind = "csr"

    def __init__(self, path: Path, file: Any, keys: Keys, features: int | None):
        self.stored = open_array(path, file, f"{keys.x}/data", 1)
        self.indices = open_array(path, file, f"{keys.x}/indices", 1)
        pointers = open_array(path, file, f"{keys.x}/indptr", 1)
        super().__init__(path, file, keys)
        self.rows, self.nonzeros = max(pointers.shape[0] - 1, 0), self.stored.shape[0]
        self.features = features if features is not None else self._own_features(file, keys.x)
        self.dtype = self.stored.dtype
        if pointers.shape[0] < 1 or pointers.dtype.kind not in "iu" or self.indices.dtype.kind not in "iu":
            raise UserError(f"{path}: {keys.x} is no CSR matrix: indptr and indices are to be whole numbers, and "
                            "indptr one longer than there are rows")
        if self.indices.shape != self.stored.shape:
            raise UserError(f"{path}: {keys.x} has {self.nonzeros:,} entries but {self.indices.shape[0]:,} indices")
        whole = pointers.mappable and pointers.dtype == np.int64
        self.indptr = pointers.mapped() if whole else pointers.read(0, self.rows + 1).astype(np.int64)
        if self.indptr[0] != 0 or self.indptr[-1] != self.nonzeros:
            raise UserError(f"{path}: indptr goes from {self.indptr[0]} to {self.indptr[-1]}, not from 0 to the "
                            f"{self.nonzeros:,} entries that there are")
        self.chunk_rows = None if self.stored.chunk_rows is None else \
            max(1, self.stored.chunk_rows * self.rows // max(self.nonzeros, 1))
        self.mappable = all(part.mappable for part in (self.stored, self.indices)) and self.dtype.kind == "f"
        self._mapped: Csr | None = None

    def _own_features(self, file: Any, name: str) -> int:
        found = find(self.path, file, name)
        assert found is not None
        group = found.node
        shape = np.asarray(group.attrs.get("shape", ())).reshape(-1)
        if len(shape) != 2 or shape.dtype.kind not in "iu" or not 0 < int(shape[1]) <= 2**53:
            raise UserError(f"{self.path}: {group.name} does not say how many columns it has (attribute shape)")
        return int(shape[1])

    def block(self, start: int, stop: int, mapped: bool = True) -> Csr:
        """Return rows ``start`` … ``stop − 1``, their structure checked: a view where the file is mapped, else read.

        Without ``mapped`` they are newly read in any case.
        """
        low, high = self._entries(start, stop)
        if mapped and self.mappable:
            if self._mapped is None:
                self._mapped = Csr(self.stored.mapped(), self.indices.mapped(), self.indptr, self.features)
            return self._checked(self._mapped[start:stop], start)
        indptr = self.indptr[start:stop + 1] - low
        return self._checked(Csr(self.stored.read(low, high), self.indices.read(low, high), indptr, self.features),
                             start)

    def _entries(self, start: int, stop: int) -> tuple[int, int]:
        low, high = int(self.indptr[start]), int(self.indptr[stop])
        if not 0 <= low <= high <= self.nonzeros:
            raise UserError(f"{self.path}: indptr of rows {start:,} to {stop:,} leaves the {self.nonzeros:,} entries")
        return low, high

    def _checked(self, rows: Csr, first: int) -> Csr:
        from dml_hpc.kernels.moments import first_bad_row

        row, what = first_bad_row(rows.indptr, rows.indices, len(rows.indices), self.features)
        if row >= 0:
            raise UserError(f"{self.path}: row {first + row:,} " + (
                "ends before it begins, or beyond the last entry (indptr)" if what == 1 else
                f"has a column number outside 0 … {self.features - 1} (indices)"))
        return rows

    def bytes_of(self, start: int, stop: int) -> int:
        """Return how many bytes the rows take in memory."""
        low, high = self._entries(start, stop)
        return (high - low) * (self.stored.row_bytes + self.indices.row_bytes) + (stop - start + 1) * 8

    def within(self, start: int, stop: int, most_bytes: int) -> int:
        """Return up to which row those from ``start`` on take ``most_bytes``: at least the next, at most ``stop``."""
        entries = most_bytes // (self.stored.row_bytes + self.indices.row_bytes)
        ends = self.indptr[start:stop + 1]
        return min(stop, max(start + 1, start + int(np.searchsorted(ends, ends[0] + entries, side="right")) - 1))

    def balanced(self, share: float) -> int:
        """Return the row before which ``share`` of this shard's entries lies."""
        return int(np.searchsorted(self.indptr, share * self.nonzeros)) if self.nonzeros else round(share * self.rows)


class RatingsShard:
    """Columns ``user``, ``item`` and ``rating``, each (rows,)."""

    kind = "ratings"

    def __init__(self, path: Path, file: Any):
        self.path = path
        self._file = file
        self.user = open_array(path, file, "user", 1)
        self.item = open_array(path, file, "item", 1)
        self.labels = open_array(path, file, "rating", 1)
        self.rows = self.user.shape[0]
        self.nonzeros = self.rows
        self.dtype = self.labels.dtype
        if self.item.shape != self.user.shape:
            raise UserError(f"{path} holds {self.rows:,} users but {self.item.shape[0]:,} items")

    def extra(self, name: str) -> StoredArray:
        """Return ``weight`` or ``time`` (rows,); raises `UserError` where there is none."""
        return open_array(self.path, self._file, name, 1)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


Shard = DenseShard | CsrShard


def open_shard(path: Path, keys: Keys = DEFAULT_KEYS, features: int | None = None) -> Shard:
    """Open an HDF5 file; ``features`` is how many a sparse one has, None: as it says itself.

    Raises `UserError` when the file is missing, no HDF5, or what it holds is no matrix with as many labels.
    """
    file = open_file(path)
    try:
        sparse = holds_group(path, file, keys.x)
        shard: Shard = CsrShard(path, file, keys, features) if sparse else DenseShard(path, file, keys)
        for column, name in ((shard.labels, keys.y), (shard.weights, keys.weight)):
            if column is not None and column.shape[0] != shard.rows:
                raise UserError(f"{path} holds {shard.rows:,} rows of {keys.x} but {column.shape[0]:,} of {name}")
        if not any(part.needs_file for part in stored_parts(shard)):
            shard.close()
    except HDF5_ERRORS as error:
        file.close()
        raise unreadable(error, f"{path} cannot be read as HDF5: {first_line(error)}") from None
    except UserError:
        file.close()
        raise
    return shard


def open_ratings(path: Path) -> RatingsShard:
    """Open a shard of ratings; raises `UserError` when it is none."""
    file = open_file(path)
    try:
        shard = RatingsShard(path, file)
        if shard.labels.shape[0] != shard.rows:
            raise UserError(f"{path} holds {shard.rows:,} users but {shard.labels.shape[0]:,} ratings")
    except (*HDF5_ERRORS, UserError) as error:
        file.close()
        if isinstance(error, UserError):
            raise
        raise unreadable(error, f"{path} cannot be read as HDF5: {first_line(error)}") from None
    return shard


def check_weights(weight: np.ndarray, first: int, where: str = "") -> None:
    """Raise `UserError` for a weight that is negative or not finite; ``first`` is the number of the first row."""
    bad = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
    if len(bad):
        raise UserError(f"{where}the weight of row {first + int(bad[0]):,} is {weight[bad[0]]:g}; weights are finite "
                        "and at least 0: mend it or leave the row out")


def holds_group(path: Path, file: Any, name: str) -> bool:
    """Say whether ``name`` is a group, as the arrays of sparse rows are; raises `UserError` as `find` does."""
    import h5py

    found = find(path, file, name)
    return found is not None and isinstance(found.node, h5py.Group)


def stored_parts(shard: DenseShard | CsrShard | RatingsShard) -> list[StoredArray]:
    """Return the arrays of a shard that hold numbers, in the order of their names in the file."""
    if isinstance(shard, RatingsShard):
        return [shard.user, shard.item, shard.labels]
    found = [shard.stored] if isinstance(shard, DenseShard) else [shard.stored, shard.indices]
    return [*found, *(part for part in (shard.labels, shard.weights) if part is not None)]
