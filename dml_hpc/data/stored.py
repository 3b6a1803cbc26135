"""One array in an HDF5 file: mapped into memory where its bytes lie as they are used, read piece by piece elsewhere."""

from __future__ import annotations

import math
import os
import weakref
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

from dml_hpc.data.links import Found, find
from dml_hpc.data.retrying import UnreadableError, check_present, unreadable
from dml_hpc.errors import UserError
from dml_hpc.files import HDF5_ERRORS, first_line

MOST_COMPRESSED = 1100
"""How many bytes one stored byte can stand for: deflate, the densest common filter, reaches 1032."""


class StoredArray:
    """A 1-D or 2-D dataset of numbers, in native byte order to whoever reads it.

    ``offset`` is where its bytes begin in the file, None unless they lie there uncompressed in one piece;
    ``chunk_rows`` how many rows a chunk has, None unless it is stored in chunks. Made by `open_array`.
    """

    def __init__(self, found: Found):
        path, dataset, stored, self._sources = found
        self.path = path
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype = dataset.dtype.newbyteorder("=")
        self.row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        self.bytes = self.row_bytes * self.shape[0]
        self.offset = dataset.id.get_offset()
        self.chunk_rows = dataset.chunks[0] if dataset.chunks else None
        self.name: str = dataset.name
        self._in_file = dataset.dtype
        self._swapped = not dataset.dtype.isnative
        # What lies in one piece is read past HDF5, whose file may be closed then.
        self._dataset = dataset if self.offset is None and self.bytes else None
        self._handle: int | None = None
        name = self.name
        if self.offset is not None and self.offset + self.bytes > path.stat().st_size:
            raise UserError(f"{path} is cut short: {name} ends beyond the end of the file")
        if self.bytes > max(MOST_COMPRESSED * stored, 1 << 20):
            raise UserError(f"{path} is cut short: it does not hold all that {name} claims")
        self._check_filters(dataset)

    def _check_filters(self, dataset: h5py.Dataset) -> None:
        pipeline = dataset.id.get_create_plist()
        for place in range(pipeline.get_nfilters()):
            number = pipeline.get_filter(place)[0]
            if not h5py.h5z.filter_avail(number):
                with suppress(ImportError):
                    import hdf5plugin  # noqa: F401 -- importing it registers the filters
            if not h5py.h5z.filter_avail(number):
                raise UserError(f"{self.path}: {dataset.name} is compressed by HDF5 filter {number}, which this Python "
                                "lacks; run: pip install 'dml-hpc[compression]'")

    @property
    def needs_file(self) -> bool:
        """Whether reading it takes the HDF5 file, which is to stay open."""
        return self._dataset is not None

    @property
    def mappable(self) -> bool:
        """Whether `mapped` works: the bytes in the file are those of the array, aligned as the processor wants them."""
        if not self.bytes:
            return True
        return self.offset is not None and not self._swapped and self.offset % self.dtype.itemsize == 0

    def mapped(self) -> np.ndarray:
        """Return the whole array without reading it; private, so that writing to it never reaches the file.

        Ranks of a node that map the same file share the pages of its cache.
        """
        if not self.shape or 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        try:
            return np.memmap(self.path, self.dtype, "c", self.offset, self.shape).view(np.ndarray)
        except OSError as error:
            raise unreadable(error, f"{self.path}: {self.name} cannot be mapped: {first_line(error)}") from None
        except ValueError:  # it has shrunk since it was opened
            raise UnreadableError(f"{self.path} is cut short: {self.name} ends beyond the end of the file") from None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` … ``stop − 1``, newly read."""
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self.read_into(start, stop, out)
        return out

    def read_into(self, start: int, stop: int, out: np.ndarray) -> None:
        """Read rows ``start`` … ``stop − 1`` into ``out``, contiguous, of their shape and any float or integer type.

        Raises `UserError`, and `UnreadableError` where another try may do.
        """
        if stop <= start or not out.size:
            return
        try:
            if self._dataset is not None:
                check_present(self._sources)
                self._dataset.read_direct(out, np.s_[start:stop])
                return
            same = out.dtype == self.dtype and not self._swapped
            raw = out if same else np.empty(out.shape, self._in_file)
            assert self.offset is not None
            self._read_bytes(self.offset + start * self.row_bytes, raw)
            if not same:
                out[...] = raw
        except HDF5_ERRORS as error:
            raise unreadable(error, f"{self.path}: {self.name} cannot be read: {first_line(error)}") from None

    def _read_bytes(self, place: int, out: np.ndarray) -> None:
        # Past HDF5, which holds Python's lock while it copies.
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._handle)
        left = out.reshape(-1).view(np.uint8).data
        while len(left):
            count = os.preadv(self._handle, [left[:1 << 30]], place)
            if not count:
                raise UnreadableError(f"{self.path} is cut short: it ended while it was read")
            left, place = left[count:], place + count


def open_array(path: Path, file: h5py.File, name: str, dimensions: int) -> StoredArray:
    """Return the dataset ``name``; raises `UserError` when it is missing or holds no numbers in so many dimensions."""
    try:
        found = find(path, file, name)
        if found is None:
            there = ", ".join(sorted(str(key) for key in file)[:8]) or "nothing"
            raise UserError(f"{path} has no dataset {name} (it holds {there}); --x-key, --y-key and "
                            "--weight-key name others")
        dataset = found.node
        if not isinstance(dataset, h5py.Dataset):
            raise UserError(f"{path}: {name} is no dataset")
        if dataset.shape is None or len(dataset.shape) != dimensions:
            raise UserError(f"{path}: {name} has the shape {dataset.shape}, not {dimensions} dimensions")
        if dataset.dtype.kind not in "fiu" or dataset.dtype.itemsize > 8:
            raise UserError(f"{path}: {name} holds {dataset.dtype}, not numbers of up to 64 bits")
        return StoredArray(found)
    except HDF5_ERRORS as error:
        raise unreadable(error, f"{path}: {name} cannot be read: {first_line(error)}") from None
