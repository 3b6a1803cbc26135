"""One HDF5 file of a data set: ``X`` (rows × features) and ``y`` (rows,)."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from dml_hpc.data.manifest import ShardEntry
from dml_hpc.errors import UserError
from dml_hpc.files import HDF5_ERRORS, first_line
from dml_hpc.layout import split

ALIGNMENT_BYTES = 4096
MOST_COMPRESSED = 1100
"""How many bytes one stored byte can stand for: deflate, the densest common filter, reaches 1032."""


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
    """Writes ``rows`` rows into a folder as ``shards`` files of nearly equal length; some may be empty.

    Raises `OSError` at once when the disk has no room for them.
    """

    def __init__(self, folder: Path, rows: int, features: int, dtype: str, shards: int):
        folder.mkdir(parents=True, exist_ok=True)
        # Known beforehand: HDF5 may crash when it closes a file on a disk that is full.
        disk = shutil.disk_usage(folder)
        if disk.total and disk.free < rows * features * np.dtype(dtype).itemsize + shards * 4 * ALIGNMENT_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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


def open_shard(path: Path, rows: int, features: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ``X`` (rows, features) of ``dtype`` and ``y`` (rows,) of a shard, both in native byte order.

    Contiguous, uncompressed, native data is memory-mapped (private, so writing to it never reaches the file);
    anything else is read into memory. Raises `UserError` when the file is missing, no HDF5, or does not have the
    shape and type the manifest promises; nothing is read or mapped before that is known.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path} is missing, though its manifest names it; import the data again")
        # Read-only and without locks: shards on network file systems that refuse locks stay readable.
        with h5py.File(path, "r", locking=False) as file:
            X, y = _dataset(path, file, "X"), _dataset(path, file, "y")
            if X.shape != (rows, features) or y.shape != (rows,):
                raise UserError(f"{path} holds X {X.shape} and y {y.shape}, its manifest says {(rows, features)}")
            if X.dtype.newbyteorder("=") != np.dtype(dtype) or y.dtype.kind not in "fiu" or y.dtype.itemsize > 8:
                raise UserError(f"{path} holds X of {X.dtype} and y of {y.dtype}, its manifest says {dtype}")
            return _array(path, X), _array(path, y)
    except HDF5_ERRORS as error:
        raise UserError(f"{path} cannot be read as HDF5: {first_line(error)}") from None


def _dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    if name not in file:
        raise UserError(f"{path} is no shard: it has no dataset {name}")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(f"{path} is no shard: {name} is no dataset")
    if dataset.is_virtual or dataset.external or dataset.file.filename != file.filename:
        raise UserError(f"{path} is no shard: it keeps {name} in another file")
    return dataset


def _array(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    native = dataset.dtype.newbyteorder("=")
    if not dataset.size:
        return np.empty(dataset.shape, native)
    offset = dataset.id.get_offset()
    if offset is not None and offset + dataset.nbytes > path.stat().st_size:
        raise UserError(f"{path} is cut short: {dataset.name} ends beyond the end of the file")
    if dataset.nbytes > MOST_COMPRESSED * dataset.id.get_storage_size():
        raise UserError(f"{path} is cut short: it does not hold all that {dataset.name} claims")
    if offset is not None and dataset.dtype.isnative and offset % native.itemsize == 0 and native.kind == "f":
        return np.memmap(path, dataset.dtype, "c", offset, dataset.shape).view(np.ndarray)
    return dataset[()].astype(native, copy=False)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
