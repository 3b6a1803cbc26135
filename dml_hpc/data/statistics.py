"""Figures of each feature: gathered block by block while rows are written, kept in the manifest or beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.errors import UserError
from dml_hpc.files import HDF5_ERRORS, file_sha256, first_line

MOST_LISTED = 1 << 16
"""The statistics of more features are kept in `STATISTICS_FILE`."""
STATISTICS_FILE = "statistics.h5"
MOST_COUNTED = 1 << 24
"""Of more features nothing is counted for each, as that would take more memory than the rows; they are hashed words."""
MOST_ROWS = 2**53
"""Larger counts are not exact as float64; no data set has them."""


@dataclass
class Statistics:
    """Figures of each feature over all rows of a data set, each (features,): as written, missing values filled.

    ``numeric`` says which features are numbers, not categories; ``deviation`` is the population's; ``missing``
    counts the values that were filled.
    """

    numeric: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    missing: np.ndarray


class Moments:
    """Count, mean, sum of squared deviations, least and greatest of each feature, block by block.

    Each is (features,), float64. Blocks are merged pairwise, which loses no digits however far the mean is from
    zero (Chan, Golub and LeVeque, "Updating Formulae … for Computing Sample Variances", 1979). Of sparse rows the
    stored entries are counted alone; `statistics` adds the zeros. ``nonzeros`` counts entries that are not 0.
    """

    def __init__(self, features: int):
        self.count, self.mean, self.squares = np.zeros((3, features))
        self.minimum, self.maximum = np.full(features, np.inf), np.full(features, -np.inf)
        self.nonzeros = 0

    def add(self, X: np.ndarray | Csr) -> None:
        """Count rows in, all finite; float16, float32 or float64."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large shows in the deviation
            self._add(X)

    def _add(self, X: np.ndarray | Csr) -> None:
        from dml_hpc.kernels.moments import dense_moments, sparse_moments

        if isinstance(X, Csr):
            packed = X.packed()
            self.nonzeros += sparse_moments(_computable(packed.data), packed.indices, self.count, self.mean,
                                            self.squares, self.minimum, self.maximum)
        elif len(X):
            # About the mean known so far: sums of squares about it lose no digits.
            about = self.mean if self.count.any() else X[0].astype(np.float64)
            shifted, squares = np.zeros((2, len(self.mean)))
            self.nonzeros += dense_moments(_computable(X), about.copy(), shifted, squares, self.minimum, self.maximum)
            rows = len(X)
            self._merge(np.float64(rows), about + shifted / rows, np.maximum(squares - shifted * shifted / rows, 0))

    def merge(self, other: Moments) -> None:
        """Count in what another has counted; where its count is 0 nothing changes."""
        with np.errstate(over="ignore", invalid="ignore"):
            self._merge(other.count, other.mean, other.squares)
        self.minimum = np.minimum(self.minimum, other.minimum)
        self.maximum = np.maximum(self.maximum, other.maximum)
        self.nonzeros += other.nonzeros

    def _merge(self, count: np.ndarray | np.float64, mean: np.ndarray, squares: np.ndarray) -> None:
        total = np.maximum(self.count + count, 1)
        apart = np.where(count > 0, mean - self.mean, 0)
        self.mean = self.mean + apart * (count / total)
        self.squares = self.squares + squares + np.square(apart) * (self.count * count / total)
        self.count = self.count + count

    def statistics(self, rows: int, numeric: np.ndarray | None, missing: np.ndarray | None) -> Statistics:
        """Return the figures of ``rows`` rows, entries not counted being zero; all 0 without rows.

        ``numeric`` None: all are, ``missing`` None: none is. What is counted here is used up: of very many features
        there is no room for a copy.
        """
        features, share = len(self.mean), self.count / max(rows, 1)
        absent = self.count < rows
        # Zeros merged as any other batch would be, of mean 0 and no squares.
        with np.errstate(over="ignore", invalid="ignore"):
            self.squares += np.square(self.mean) * self.count * (1 - share)
        self.mean *= share
        self.minimum[absent], self.maximum[absent] = (np.minimum(self.minimum[absent], 0),
                                                      np.maximum(self.maximum[absent], 0))
        if not rows:
            self.minimum[:] = self.maximum[:] = 0
        self.squares /= max(rows, 1)
        deviation = np.sqrt(self.squares, out=self.squares)
        return Statistics(
            np.ones(features, bool) if numeric is None else numeric.astype(bool), self.mean, deviation, self.minimum,
            self.maximum, np.zeros(features, np.int64) if missing is None else missing.astype(np.int64))

    def save(self, path: Path) -> None:
        """Write what was counted to a file, for `merge_saved` on another rank."""
        seen = np.flatnonzero(self.count)
        np.save(path, np.vstack([seen.astype(np.float64), self.count[seen], self.mean[seen], self.squares[seen],
                                 self.minimum[seen], self.maximum[seen]]))

    def merge_saved(self, path: Path) -> None:
        """Count in what `save` wrote, ``nonzeros`` aside."""
        numbers, *figures = np.load(path, mmap_mode="r")
        seen = numbers.astype(np.int64)
        part, other = Moments(0), Moments(0)
        part.count, part.mean, part.squares, part.minimum, part.maximum = (
            have[seen] for have in (self.count, self.mean, self.squares, self.minimum, self.maximum))
        other.count, other.mean, other.squares, other.minimum, other.maximum = (np.asarray(one) for one in figures)
        part.merge(other)
        for have, merged in ((self.count, part.count), (self.mean, part.mean), (self.squares, part.squares),
                             (self.minimum, part.minimum), (self.maximum, part.maximum)):
            have[seen] = merged


def _computable(X: np.ndarray) -> np.ndarray:
    return X.astype(np.float32) if X.dtype.itemsize < 4 else X


def described(folder: Path, statistics: Statistics) -> dict[str, Any]:
    """Return the statistics as the manifest lists them; those of very many features go to a file in ``folder``."""
    if len(statistics.mean) <= MOST_LISTED:
        return {name: figures.tolist() for name, figures in vars(statistics).items()}
    import h5py

    path = folder / STATISTICS_FILE
    with h5py.File(path, "w") as file:
        for name, figures in vars(statistics).items():
            # Of hashed features most were never seen.
            file.create_dataset(name, data=figures.astype(_TYPES[name], copy=False), chunks=True, compression="lzf",
                                shuffle=True)
    return {"file": STATISTICS_FILE, "sha256": file_sha256(path)}


def read_statistics(folder: Path, entry: Any, features: int) -> Statistics:
    """Return what `described` gave a manifest; raises `ValueError` for what is not that, `UserError` for the file."""
    if isinstance(entry, dict) and "file" in entry:
        return _from_file(folder, entry, features)
    if not isinstance(entry, dict) or set(entry) != set(_TYPES):
        raise ValueError("the statistics are not those of a data set")
    for name, figures in entry.items():
        if not isinstance(figures, list) or len(figures) != features:
            raise ValueError(f"{name} does not have {features} entries")
        if not all(map(_FITS[name], figures)):
            raise ValueError(f"{name} has an entry of another type")
    return Statistics(**{name: np.array(figures, _TYPES[name]) for name, figures in entry.items()})


def _from_file(folder: Path, entry: dict[str, Any], features: int) -> Statistics:
    import h5py

    from dml_hpc.data.links import own

    path = folder / STATISTICS_FILE
    if entry != {"file": STATISTICS_FILE, "sha256": entry.get("sha256")}:
        raise ValueError("the file of the statistics is not named as it should be")
    if not path.is_file() or file_sha256(path) != entry["sha256"]:
        raise UserError(f"{path} is missing or has changed since it was written; import the data again")
    try:
        with h5py.File(path, "r", locking=False) as file:
            for name, kind in _TYPES.items():
                dataset = own(path, file, name)
                if dataset.shape != (features,) or dataset.dtype != np.dtype(kind):
                    raise ValueError(f"{name} is {dataset.shape} of {dataset.dtype}")
            return Statistics(**{name: file[name][()] for name in _TYPES})
    except HDF5_ERRORS as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}; import the data again") from None


def is_count(entry: object) -> bool:
    """Say whether a value from JSON is a number of rows, bytes or the like."""
    return type(entry) is int and 0 <= entry <= MOST_ROWS


def is_number(entry: Any) -> bool:
    """Say whether a value from JSON is a finite number."""
    return type(entry) in (int, float) and math.isfinite(entry)


_TYPES = {"numeric": "?", "mean": "<f8", "deviation": "<f8", "minimum": "<f8", "maximum": "<f8", "missing": "<i8"}
_FITS: dict[str, Callable[[Any], bool]] = {
    "numeric": lambda entry: isinstance(entry, bool), "mean": is_number,
    "deviation": lambda entry: is_number(entry) and entry >= 0, "minimum": is_number, "maximum": is_number,
    "missing": is_count}
