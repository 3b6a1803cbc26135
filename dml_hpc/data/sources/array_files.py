"""Arrays in NPY, NPZ and HDF5 files: found by name, read by ranges of rows."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from dml_hpc.data.links import Found, find, open_file
from dml_hpc.data.retrying import check_present
from dml_hpc.errors import UserError
from dml_hpc.files import HDF5_ERRORS, first_line

HDF5 = (".h5", ".hdf5")
MOST_NAMED = 12
CSR_PARTS = ("data", "indices", "indptr")
_LOCAL_HEADER = 30


@dataclass(frozen=True)
class MappedArray:
    """An array that lies in one piece in a file, as in NPY files; mapped while it is read.

    ``name`` is how messages call it; ``offset`` is where it begins.
    """

    name: str
    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return rows as an array in memory."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)[rows]
        order: Literal["C", "F"] = "F" if self.fortran else "C"
        mapped: np.ndarray = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)
        return np.array(mapped[rows], order="C")

    def close(self) -> None:
        """Nothing is kept open."""


@dataclass
class Hdf5Array:
    """A dataset of an HDF5 file, in any layout."""

    path: Path
    key: str
    dtype: np.dtype
    shape: tuple[int, ...]
    _dataset: Any = field(default=None, repr=False)
    _sources: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """Return the file and the key."""
        return f"{self.path}: {self.key}"

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return rows as an array in memory; raises `UserError` when they cannot be read."""
        try:
            if self._dataset is None:
                _, self._dataset, _, self._sources = _found(self.path, open_file(self.path), self.key)
            check_present(self._sources)
            return self._dataset[rows]
        except HDF5_ERRORS as error:
            raise UserError(f"{self.name} cannot be read: {first_line(error)}") from None

    def close(self) -> None:
        """Close the file."""
        if self._dataset is not None:
            file, self._dataset = self._dataset.file, None
            file.close()


StoredArray = MappedArray | Hdf5Array
"""An array in a file; ``name`` is how messages call it."""


@dataclass(frozen=True)
class StoredMatrix:
    """What one file holds: ``x`` dense, or the three arrays of CSR rows; ``y`` and ``weight`` may be missing."""

    path: Path
    shape: tuple[int, int]
    x: StoredArray | None
    csr: dict[str, StoredArray]
    y: StoredArray | None
    weight: StoredArray | None = None

    @property
    def arrays(self) -> list[StoredArray]:
        """All of them."""
        return [array for array in (self.x, *self.csr.values(), self.y, self.weight) if array is not None]


def open_array(path: Path) -> MappedArray:
    """Return the array of an NPY file; raises `UserError` when it is none, or holds Python objects."""
    with path.open("rb") as file:
        return _npy(file, 0, path.stat().st_size, path, str(path))


def _npy(file: BinaryIO, start: int, stop: int, path: Path, name: str) -> MappedArray:
    """Return the NPY array that lies in bytes ``start`` … ``stop`` − 1 of a file."""
    file.seek(start)
    try:
        version = np.lib.format.read_magic(file)
        readers: dict[tuple[int, int], Callable] = {(1, 0): np.lib.format.read_array_header_1_0,
                                                    (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError("its version is for structured arrays")
        shape, fortran, dtype = readers[version](file)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{name} cannot be read as NPY: {first_line(error)}") from None
    array = MappedArray(name, path, dtype, shape, fortran, file.tell())
    if dtype.hasobject:
        raise UserError(f"{name} holds Python objects; save it as numbers (X.astype(float))")
    if array.offset + int(np.prod(shape, dtype=object)) * dtype.itemsize > stop:
        raise UserError(f"{name} is cut short: it does not hold all that its header claims")
    return array


def open_npy(path: Path) -> StoredMatrix:
    """Return the matrix of an NPY file."""
    x = open_array(path)
    return StoredMatrix(path, _two_axes(x), x, {}, None)


def open_npz(path: Path, unpacked: Path, x_key: str | None, y_key: str | None,
             weight_key: str | None = None) -> StoredMatrix:
    """Return the matrix of an NPZ file: dense, or as ``scipy.sparse.save_npz`` writes CSR.

    Members stored as they are stay in place, compressed ones are written to the new folder ``unpacked``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

            def member(key: str) -> MappedArray:
                return _member(archive, infos[key], path, unpacked, f"{path}: {key}")

            y = member(_key(path, infos, "--y-key", y_key, ["y"])) if y_key or "y" in infos else None
            weight = member(_key(path, infos, "--weight-key", weight_key, [])) if weight_key else None
            if x_key is None and infos.keys() >= {*CSR_PARTS, "format", "shape"}:
                kind, shape = (np.lib.format.read_array(archive.open(infos[key]), allow_pickle=False).tolist()
                               for key in ("format", "shape"))
                if kind not in (b"csr", "csr") or len(shape) != 2:
                    raise UserError(f"{path} holds a sparse matrix that is not CSR; save X.tocsr()")
                return StoredMatrix(path, (shape[0], shape[1]), None, {part: member(part) for part in CSR_PARTS}, y,
                                    weight)
            x = member(_key(path, infos, "--x-key", x_key, ["X", "x"]))
            return StoredMatrix(path, _two_axes(x), x, {}, y, weight)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read as NPZ: {first_line(error)}") from None


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, unpacked: Path, name: str) -> MappedArray:
    if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
        with path.open("rb") as file:
            # The local header's lengths are its own: they may differ from those of the directory.
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER)
            start = info.header_offset + _LOCAL_HEADER + sum(np.frombuffer(header[26:30], "<u2").tolist())
            return _npy(file, start, start + info.file_size, path, name)
    unpacked.mkdir(parents=True, exist_ok=True)
    copy = unpacked / f"{len(list(unpacked.iterdir())):05d}.npy"
    try:
        with archive.open(info) as packed, copy.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
    except RuntimeError as error:
        raise UserError(f"{name} cannot be read: {first_line(error)}") from None
    with copy.open("rb") as file:
        return _npy(file, 0, copy.stat().st_size, copy, name)


def open_hdf5(path: Path, x_key: str | None, y_key: str | None, weight_key: str | None = None) -> StoredMatrix:
    """Return the matrix of an HDF5 file: a dataset, or a group of CSR arrays with or without an attribute ``shape``."""
    import h5py

    try:
        with open_file(path) as file:
            names = _Names(path, file)

            def array(key: str) -> Hdf5Array:
                dataset = _found(path, file, key).node
                if not isinstance(dataset, h5py.Dataset):
                    raise UserError(f"{path}: {key} is no dataset")
                return Hdf5Array(path, key, dataset.dtype, dataset.shape or ())

            y = array(_key(path, names, "--y-key", y_key, ["y"])) if y_key or "y" in names else None
            weight = array(_key(path, names, "--weight-key", weight_key, [])) if weight_key else None
            key = _key(path, names, "--x-key", x_key, ["X", "x"])
            group = _found(path, file, key).node
            if isinstance(group, h5py.Dataset):
                x = array(key)
                return StoredMatrix(path, _two_axes(x), x, {}, y, weight)
            if not all(f"{key}/{part}" in names for part in CSR_PARTS):
                raise UserError(f"{path}: {key} is neither a dataset nor a group of data, indices and indptr")
            csr: dict[str, StoredArray] = {part: array(f"{key}/{part}") for part in CSR_PARTS}
            kind = group.attrs.get("encoding-type", "csr_matrix")
            if kind != "csr_matrix":
                raise UserError(f"{path}: {key} is a {kind}; write it as CSR")
            shape = group.attrs.get("shape")
            if shape is None and f"{key}/shape" in names:
                shape = _found(path, file, f"{key}/shape").node
            if shape is not None and (np.shape(shape) != (2,) or np.asarray(shape).dtype.kind not in "iu"):
                raise UserError(f"{path}: the shape of {key} is to be two whole numbers, rows and columns")
            features = int(shape[1]) if shape is not None else _width(csr["indices"])
            return StoredMatrix(path, (csr["indptr"].shape[0] - 1, features), None, csr, y, weight)
    except HDF5_ERRORS as error:
        raise UserError(f"{path} cannot be read as HDF5: {first_line(error)}") from None


class _Names(Collection[str]):
    """The names in an HDF5 file; links are followed as `dml_hpc.data.links.find` does, which may raise `UserError`."""

    def __init__(self, path: Path, file: Any):
        self._path, self._file = path, file

    def __contains__(self, name: object) -> bool:
        return find(self._path, self._file, str(name)) is not None

    def __iter__(self) -> Iterator[str]:
        names: list[str] = []
        self._file.visit(names.append)
        return iter(names)

    def __len__(self) -> int:
        return len(list(iter(self)))


def _found(path: Path, file: Any, key: str) -> Found:
    found = find(path, file, key)
    if found is None:
        raise UserError(f"{path} has no '{key}'")
    return found


def _width(indices: StoredArray) -> int:
    """Return the largest column plus 1, from one pass over the columns."""
    step = 1 << 20
    widths = [int(indices[at:at + step].max()) + 1 for at in range(0, indices.shape[0], step)]
    indices.close()
    return max(widths, default=1)


def _key(path: Path, names: Collection[str], option: str, wanted: str | None,
         usual: list[str]) -> str:
    """Return the key asked for, or the first usual one there is."""
    for key in [wanted.strip("/")] if wanted else usual:
        if key in names:
            return key
    there = list(names)
    listed = ", ".join(there[:MOST_NAMED]) + (", …" if len(there) > MOST_NAMED else "")
    raise UserError(f"{path} has no '{wanted or usual[0]}'; it holds {listed or 'nothing'}: choose with {option}")


def _two_axes(x: StoredArray) -> tuple[int, int]:
    if len(x.shape) != 2:
        raise UserError(f"{x.name} has {len(x.shape)} axes, {tuple(x.shape)}; it must have two, rows and features")
    return x.shape[0], x.shape[1]
