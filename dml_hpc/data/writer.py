"""Write one HDF5 file of a data set."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import h5py
import numpy as np

from dml_hpc.data.csr import Csr, index_dtype
from dml_hpc.data.manifest import ShardEntry
from dml_hpc.data.shard import WEIGHT
from dml_hpc.errors import UserError
from dml_hpc.files import file_sha256

if TYPE_CHECKING:
    from typing_extensions import Self

ALIGNMENT_BYTES = 4096
HEAD_BYTES = 64 << 10
"""Kept free at the beginning of a file for all that describes its arrays; more where there are many chunks."""
CHUNK_BYTES = 256 << 10
"""Of a compressed shard: what is read at once, so that a shuffled epoch holds many places of a shard in memory."""
IN_MEMORY_BYTES = 64 << 20
COMPRESSIONS = ("none", "gzip", "lzf", "blosc2", "zstd")


def filters(compression: str | None) -> dict[str, Any]:
    """Return h5py's arguments for a compression; `UserError` when it needs a library that is not here."""
    if compression is None:
        return {}
    if compression in ("gzip", "lzf"):
        level = {"compression_opts": 4} if compression == "gzip" else {}
        return {"compression": compression, "shuffle": True, **level}
    try:
        import hdf5plugin
    except ImportError:
        raise UserError(f"--compression {compression} needs hdf5plugin; run: pip install "
                        "'dml-hpc[compression]'") from None
    if compression == "blosc2":
        return dict(hdf5plugin.Blosc2(cname="lz4", clevel=5, filters=hdf5plugin.Blosc2.SHUFFLE))
    return {"shuffle": True, **hdf5plugin.Zstd(clevel=3)}


def open_writer(path: Path, kind: str, rows: int, features: int, dtype: str, compression: str | None = None,
                weighted: bool = False) -> RowWriter:
    """Begin a shard of ``rows`` rows of ``kind``; raises `OSError` at once when the disk has no room for dense rows."""
    return (CsrWriter if kind == "csr" else DenseWriter)(path, rows, features, dtype, compression, weighted)


class ShardWriter:
    """A shard being written: first all it holds, then `close`, then ask for its `entry`."""

    def __init__(self, path: Path, rows: int, compression: str | None):
        self.path = path
        self.free = rows
        """How many rows are still to come."""
        self.nonzeros = 0
        """How many entries are written that are not 0; of sparse rows, that are stored."""
        self._rows, self._filled = rows, 0
        self._filters = filters(compression)
        self._file: Any = None
        self._starts: list[int] = []

    def _open(self, expected_bytes: int) -> None:
        # Known beforehand: HDF5 may crash when it closes a file on a disk that is full.
        disk = shutil.disk_usage(self.path.parent)
        if disk.total and not self._filters and disk.free < expected_bytes + 4 * ALIGNMENT_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # A chunk takes some 70 bytes of HDF5's index.
        head = HEAD_BYTES + (256 * (expected_bytes // CHUNK_BYTES) if self._filters else 0)
        self._file = h5py.File(self.path, "w", alignment_threshold=1, alignment_interval=ALIGNMENT_BYTES,
                               meta_block_size=head)

    def _create(self, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
        """Create a dataset: contiguous and page-aligned, so that readers can map it, or compressed in chunks."""
        row_bytes = np.dtype(dtype).itemsize * (shape[1] if len(shape) > 1 else 1)
        if not self._filters or not shape[0]:
            return self._file.create_dataset(name, shape, dtype)
        chunk = (max(1, min(shape[0], CHUNK_BYTES // row_bytes)), *shape[1:])
        return self._file.create_dataset(name, shape, dtype, chunks=chunk, **self._filters)

    def _complete(self) -> None:
        """Write what could not be written before the last row was there."""

    def close(self) -> None:
        """Complete the file, when all rows are written."""
        assert not self.free, "a shard is finished when all its rows are written"
        self._complete()
        self._file.visititems(lambda name, found: self._starts.extend(_starts(found)))
        self._file.close()

    def entry(self) -> ShardEntry:
        """Return the manifest entry of the closed file, which is read for its SHA-256; in any thread."""
        size = self.path.stat().st_size
        head = min(self._starts, default=size)
        return ShardEntry(self.path.name, self._filled, self.nonzeros, file_sha256(self.path), size, head,
                          file_sha256(self.path, head))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


class RowWriter(ShardWriter, ABC):
    """A shard of rows: `append` all of them before it is closed."""

    def append(self, X: np.ndarray | Csr, y: np.ndarray, weight: np.ndarray | None = None) -> None:
        """Write the next ``len(y)`` rows; ``weight`` (count,) is what each counts, where rows are weighted."""
        self._write(X, y, weight, self._filled, self._filled + len(y))
        self._filled += len(y)
        self.free -= len(y)

    @abstractmethod
    def _write(self, X: Any, y: np.ndarray, weight: np.ndarray | None, start: int, stop: int) -> None:
        """Write rows ``start`` … ``stop − 1``."""


class DenseWriter(RowWriter):
    """``X`` (rows, features), ``y`` (rows,) and, where rows are weighted, ``weight`` (rows,)."""

    def __init__(self, path: Path, rows: int, features: int, dtype: str, compression: str | None, weighted: bool):
        super().__init__(path, rows, compression)
        self._open(rows * features * np.dtype(dtype).itemsize)
        self._x = self._create("X", (rows, features), dtype)
        self._y = self._file.create_dataset("y", (rows,), label_dtype(dtype))
        self._weight = self._file.create_dataset(WEIGHT, (rows,), label_dtype(dtype)) if weighted else None

    def _write(self, X: np.ndarray, y: np.ndarray, weight: np.ndarray | None, start: int, stop: int) -> None:
        self._x[start:stop] = X
        self._y[start:stop] = y
        if self._weight is not None:
            self._weight[start:stop] = weight
        self.nonzeros += int(np.count_nonzero(X))


class CsrWriter(RowWriter):
    """A group ``X`` of ``data``, ``indices`` (nonzeros,) and ``indptr`` (rows + 1,), ``y`` and ``weight`` (rows,).

    How long these are shows at the end; until then the entries wait in memory, or on disk when they are many.
    """

    def __init__(self, path: Path, rows: int, features: int, dtype: str, compression: str | None, weighted: bool):
        super().__init__(path, rows, compression)
        self._features, self._dtype, self._index = features, np.dtype(dtype), index_dtype(features)
        self._indptr = np.zeros(rows + 1, np.int64)
        self._y = np.empty(rows, label_dtype(dtype))
        self._weight = np.empty(rows, label_dtype(dtype)) if weighted else None
        self._data = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=str(path.parent))  # noqa: SIM115
        self._indices = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=str(path.parent))  # noqa: SIM115

    def _write(self, X: Csr, y: np.ndarray, weight: np.ndarray | None, start: int, stop: int) -> None:
        packed = X.packed()
        self._indptr[start + 1:stop + 1] = self.nonzeros + packed.indptr[1:]
        self._y[start:stop] = y
        if self._weight is not None:
            self._weight[start:stop] = weight
        self._data.write(packed.data.astype(self._dtype, copy=False).data)
        self._indices.write(packed.indices.astype(self._index, copy=False).data)
        self.nonzeros += packed.nonzeros

    def _complete(self) -> None:
        self._open(self.nonzeros * (self._dtype.itemsize + self._index.itemsize) + self._rows * 16)
        group = self._file.create_group("X")
        group.attrs["shape"] = np.array([self._rows, self._features], np.int64)
        for name, kind, spool in (("data", self._dtype, self._data), ("indices", self._index, self._indices)):
            self._copy(spool, self._create(f"X/{name}", (self.nonzeros,), kind))
            spool.close()
        group.create_dataset("indptr", data=self._indptr)
        self._file.create_dataset("y", data=self._y)
        if self._weight is not None:
            self._file.create_dataset(WEIGHT, data=self._weight)

    def _copy(self, spool: IO[bytes], dataset: h5py.Dataset) -> None:
        spool.seek(0)
        start = 0
        while start < len(dataset):
            part = np.frombuffer(spool.read(8 << 20), dataset.dtype)
            dataset[start:start + len(part)] = part
            start += len(part)

    def __exit__(self, *error: Any) -> None:
        self._data.close()
        self._indices.close()
        super().__exit__(*error)


def _starts(found: Any) -> list[int]:
    """Return where the numbers of a dataset begin in the file, those of each of its chunks; of a group nothing."""
    if not isinstance(found, h5py.Dataset):
        return []
    if found.chunks is None:
        offset = found.id.get_offset()
        return [] if offset is None else [offset]
    starts: list[int] = []
    found.id.chunk_iter(lambda chunk: starts.append(chunk.byte_offset))
    return starts


def label_dtype(dtype: str) -> str:
    """Return the type of ``y`` and ``weight`` beside X of ``dtype``."""
    return "float32" if dtype == "float16" else dtype
