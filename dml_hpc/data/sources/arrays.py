"""Rows of NPY, NPZ and HDF5 files; a NaN is a missing value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.data.csr import Csr, concatenated, index_dtype
from dml_hpc.data.shard import check_weights
from dml_hpc.data.sources.array_files import StoredArray, StoredMatrix
from dml_hpc.data.sources.holdout import held_out
from dml_hpc.data.sources.source import About, with_weight
from dml_hpc.data.statistics import MOST_COUNTED
from dml_hpc.errors import UserError
from dml_hpc.layout import split
from dml_hpc.mpi import agreed
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.console import Progress
    from dml_hpc.mpi import Alone

BLOCK_BYTES = 4 << 20
MOST_SEGMENTS = 64
SEGMENT_SUMS = 1 << 24
"""How many sums the segments of a survey may have together."""


class ArrayRows:
    """The rows of several files one after the other, a `RowSource`.

    ``labels`` is an array with the labels of all files' rows; None: they are in the files, or column ``column`` of X.
    ``weights`` is one with their weights; None: they are in the files, where these have any.
    """

    def __init__(self, files: Sequence[StoredMatrix], labels: StoredArray | None, column: int | None,
                 weights: StoredArray | None, features: int):
        self.kind = "csr" if files[0].csr else "dense"
        self.features = features
        weighted = weights is not None or files[0].weight is not None
        self.about = About(source={"format": files[0].path.suffix.lstrip(".")}, weighted=weighted)
        self._files = files
        self._labels, self._weights = labels, weights
        self._column = column
        self._starts = np.concatenate([[0], np.cumsum([file.shape[0] for file in files], dtype=np.int64)])
        self.rows = int(self._starts[-1])
        self._fill: np.ndarray | None = None
        self.missing_of_parts: np.ndarray | None = None
        """(2, features): how many values of the rows to train on, and of those held out, were missing."""
        stored = [(file.x or file.csr["data"]).dtype for file in files]
        self._dtype = np.result_type(*(_float_type(dtype) for dtype in stored))
        self._may_miss = any(dtype.kind == "f" for dtype in stored)
        self._last = files[0]

    def read(self, start: int, stop: int) -> tuple[np.ndarray | Csr, np.ndarray]:
        """Return rows ``start`` … ``stop`` − 1, missing values filled in; raises `UserError` for what is damaged."""
        X, y = self._raw(start, stop)
        if self._fill is not None:
            if isinstance(X, Csr):
                places = np.flatnonzero(np.isnan(X.data))
                X.data[places] = self._fill[X.indices[places]]
            else:
                rows, columns = np.nonzero(np.isnan(X))
                X[rows, columns] = self._fill[columns]
        return X, y

    def survey(self, comm: Intracomm | Alone, bar: Progress | None = None, holdout: float = 0.0, seed: int = 0,
               fill: np.ndarray | None = None) -> None:
        """Collective: count the missing values and find what fills them, with one pass over the values.

        They become ``fill`` (features,), or the mean of the rows that are not held out (`held_out`). The rows are cut
        into segments, each summed by one rank in order, and the sums are added in the segments' order, so that the
        means do not depend on the ranks. Of more than `MOST_COUNTED` features none may be missing: nothing is counted,
        and a NaN is refused later. Raises `AgreedError` with the place of an infinite value.
        """
        if not self._may_miss or self.features > MOST_COUNTED:
            return
        segments = max(1, min(MOST_SEGMENTS, SEGMENT_SUMS // self.features))
        missing, trained, sums = np.zeros((2, self.features), np.int64), 0, []
        with agreed(comm):
            for segment in range(*split(segments, comm.size, comm.rank)):
                sums.append(np.zeros(self.features))
                start, stop = split(self.rows, segments, segment)
                step = self._rows_a_block()
                for first in range(start, stop, step):
                    last = min(first + step, stop)
                    held = held_out(first, last, holdout, seed) if holdout else np.zeros(last - first, bool)
                    self._survey_block(first, held, missing, sums[-1])
                    trained += int(np.count_nonzero(~held))
                    progressed()
                    if bar is not None:
                        bar.advance(self._row_bytes() * (last - first))
        missing, trained = comm.allreduce(missing), comm.allreduce(trained)
        columns = np.flatnonzero(missing.any(axis=0))
        if not len(columns):
            return
        total = np.zeros(len(columns))
        for part in comm.allgather([one[columns] for one in sums]):
            for one in part:
                total += one
        self.missing_of_parts, self.about.missing = missing, missing.sum(axis=0)
        self._fill = np.zeros(self.features)
        mean = total / np.maximum(trained - missing[0, columns], 1)
        self._fill[columns] = mean if fill is None else fill[columns]

    def _survey_block(self, start: int, held: np.ndarray, missing: np.ndarray, sums: np.ndarray) -> None:
        """Count the missing values of rows from ``start`` on, in training and held-out rows; add the former up."""
        from dml_hpc.kernels.rows import survey_rows, survey_values

        X, _ = self._raw(start, start + len(held))
        for part, chosen in enumerate((np.flatnonzero(~held), np.flatnonzero(held))):
            if not len(chosen):
                continue
            some = X if len(chosen) == len(held) else X.take(chosen) if isinstance(X, Csr) else X[chosen]
            added = np.zeros(self.features) if part else sums
            if isinstance(some, Csr):
                bad = survey_values(some.data, some.indices, missing[part], added)
                row = int(np.searchsorted(some.indptr, bad, side="right")) - 1
                column = int(some.indices[bad]) if bad >= 0 else 0
            else:
                bad = survey_rows(some, missing[part], added)
                row, column = divmod(bad, self.features)
            if bad >= 0:
                raise UserError(f"{self._where(start + int(chosen[row]))}, column {column} holds an infinite value; "
                                "mend it, or make it NaN (missing)")

    def _row_bytes(self) -> int:
        size = self._dtype.itemsize
        if self.kind == "dense":
            return max(1, self.features * size)
        return max(1, (size + 8) * sum(file.csr["data"].shape[0] for file in self._files) // max(1, self.rows))

    def _rows_a_block(self) -> int:
        return max(1, BLOCK_BYTES // self._row_bytes())

    def _where(self, row: int) -> str:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"{self._files[number].path}: row {row - int(self._starts[number]):,}"

    def _raw(self, start: int, stop: int) -> tuple[np.ndarray | Csr, np.ndarray]:
        """Return rows as they are stored, in float; X may hold NaN and infinite values."""
        first = min(int(np.searchsorted(self._starts, start, side="right")), len(self._files)) - 1
        parts = []
        for number in range(first, len(self._files)):
            begin = int(self._starts[number])
            if number > first and begin >= stop:
                break
            inside = slice(max(start - begin, 0), max(0, min(stop - begin, self._files[number].shape[0])))
            parts.append(self._of_file(self._files[number], begin, inside))
        if len(parts) == 1:
            return parts[0]
        Xs, ys = zip(*parts, strict=True)
        return concatenated(list(Xs)) if self.kind == "csr" else np.concatenate(Xs), np.concatenate(ys)

    def _of_file(self, file: StoredMatrix, begin: int, rows: slice) -> tuple[np.ndarray | Csr, np.ndarray]:
        if file is not self._last:  # no more than one file is open at a time
            for array in self._last.arrays:
                array.close()
            self._last = file
        X = self._csr(file, begin, rows) if file.x is None else file.x[rows].astype(self._dtype, copy=False)
        if self._labels is not None:
            y = self._labels[begin + rows.start:begin + rows.stop]
        elif self._column is not None and isinstance(X, np.ndarray):
            y, X = X[:, self._column], np.delete(X, self._column, axis=1)
        else:
            assert file.y is not None
            y = file.y[rows]
        y = y.reshape(-1).astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(y))
        if len(bad):
            raise UserError(f"{self._where(begin + rows.start + int(bad[0]))}: its label is {y[bad[0]]}; "
                            "mend it or leave the row out")
        return X, with_weight(y, self._weight(file, begin, rows))

    def _weight(self, file: StoredMatrix, begin: int, rows: slice) -> np.ndarray | None:
        if self._weights is not None:
            found = self._weights[begin + rows.start:begin + rows.stop]
        elif file.weight is not None:
            found = file.weight[rows]
        else:
            return None
        weight = found.reshape(-1).astype(np.float64)
        check_weights(weight, rows.start, f"{file.path}: ")
        return weight

    def _csr(self, file: StoredMatrix, begin: int, rows: slice) -> Csr:
        from dml_hpc.kernels.rows import clean_rows

        indptr = file.csr["indptr"][rows.start:rows.stop + 1].astype(np.int64)
        first, last = int(indptr[0]), int(indptr[-1])
        if first < 0 or (np.diff(indptr) < 0).any() or last > file.csr["data"].shape[0]:
            raise UserError(f"{file.csr['indptr'].name} is no row pointer: it falls, or points beyond the data")
        indices = file.csr["indices"][first:last].astype(np.int64)
        data = file.csr["data"][first:last].astype(self._dtype, copy=False)
        indptr -= first
        bad = clean_rows(indices, data, indptr, self.features)
        if bad >= 0:
            raise UserError(f"{self._where(begin + rows.start + bad)} has a column that is not in "
                            f"0 … {self.features - 1:,}")
        count = indptr[-1]
        return Csr(data[:count], indices[:count].astype(index_dtype(self.features)), indptr, self.features)


def _float_type(dtype: np.dtype) -> np.dtype:
    """Return the type that values are read in: float32 where it holds them exactly, else float64."""
    exact = dtype.itemsize <= (4 if dtype.kind == "f" else 2)
    return np.dtype(np.float32 if exact else np.float64)
