"""One HDF5 file of a data set: ``X`` (rows × features) and ``y`` (rows,)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from dml_hpc.data.manifest import ShardEntry
from dml_hpc.errors import UserError
from dml_hpc.layout import split

ALIGNMENT_BYTES = 4096


class ShardWriter:
    """Writes a dense shard of known size, contiguous and page-aligned, so that readers can map it into memory."""

    def __init__(self, path: Path, rows: int, features: int, dtype: str):
        self.path = path
        self._file = h5py.File(path, "w", alignment_threshold=1, alignment_interval=ALIGNMENT_BYTES)
        self._x = self._file.create_dataset("X", (rows, features), dtype)
        self._y = self._file.create_dataset("y", (rows,), "float32" if dtype == "float16" else dtype)
        self._filled = 0
        self._nonzeros = 0

    @property
    def free(self) -> int:
        """How many rows are still to come."""
        return self._x.shape[0] - self._filled

    def append(self, X: np.ndarray, y: np.ndarray) -> None:
        """Write the next ``len(y)`` rows."""
        stop = self._filled + len(y)
        self._x[self._filled:stop] = X
        self._y[self._filled:stop] = y
        self._filled = stop
        self._nonzeros += int(np.count_nonzero(X))

    def finish(self) -> ShardEntry:
        """Close the file and return its manifest entry."""
        assert self.free == 0, "a shard is finished when all its rows are written"
        self._file.close()
        return ShardEntry(self.path.name, self._filled, self._nonzeros, file_sha256(self.path))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()


class ShardSeries:
    """Writes ``rows`` rows into a folder as ``shards`` files of nearly equal length; some may be empty."""

    def __init__(self, folder: Path, rows: int, features: int, dtype: str, shards: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.free = rows
        """How many rows are still to come."""
        self._shape = (rows, features, dtype, shards)
        self._entries: list[ShardEntry] = []
        self._writer = self._open()

    def _open(self) -> ShardWriter:
        rows, features, dtype, shards = self._shape
        start, stop = split(rows, shards, len(self._entries))
        return ShardWriter(self.folder / f"part-{len(self._entries):05d}.h5", stop - start, features, dtype)

    def append(self, X: np.ndarray, y: np.ndarray) -> None:
        """Write the next ``len(y)`` rows, at most `free`."""
        start = 0
        while start < len(y):
            if not self._writer.free:
                self._entries.append(self._writer.finish())
                self._writer = self._open()
            stop = min(len(y), start + self._writer.free)
            self._writer.append(X[start:stop], y[start:stop])
            start = stop
        self.free -= len(y)

    def finish(self) -> list[ShardEntry]:
        """Close the last files and return the manifest entries of all."""
        self._entries.append(self._writer.finish())
        while len(self._entries) < self._shape[3]:
            self._writer = self._open()
            self._entries.append(self._writer.finish())
        return self._entries

    def __enter__(self) -> ShardSeries:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, trace)


def open_shard(path: Path, rows: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``X`` (rows, features) and ``y`` (rows,) of a shard.

    Contiguous, uncompressed, native data is memory-mapped (private, so writing to it never reaches the file);
    anything else is read into memory. Raises `UserError` when the file is missing, no HDF5, or does not have the
    shape the manifest promises.
    """
    try:
        # Read-only and without locks: shards on network file systems that refuse locks stay readable.
        with h5py.File(path, "r", locking=False) as file:
            if "X" not in file or "y" not in file:
                raise UserError(f"{path} is no shard: it has no dataset {'X' if 'X' not in file else 'y'}")
            X, y = _array(path, file["X"]), _array(path, file["y"])
    except FileNotFoundError:
        raise UserError(f"{path} is missing, though its manifest names it; import the data again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read as HDF5: {str(error).splitlines()[0]}") from None
    if X.shape != (rows, features) or y.shape != (rows,):
        raise UserError(f"{path} holds X {X.shape} and y {y.shape}, its manifest says {(rows, features)}")
    return X, y


def _array(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    offset = dataset.id.get_offset()
    mappable = (offset is not None and dataset.dtype.isnative and dataset.size
                and offset % dataset.dtype.itemsize == 0 and dataset.dtype.kind == "f")
    if mappable:
        if offset + dataset.nbytes > path.stat().st_size:
            raise UserError(f"{path} is cut short: {dataset.name} ends beyond the end of the file")
        return np.memmap(path, dataset.dtype, "c", offset, dataset.shape).view(np.ndarray)
    return dataset[()]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
