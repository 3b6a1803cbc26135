"""NPY, NPZ and HDF5 files opened together as rows: which arrays are X, y and weights, and whether they fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dml_hpc.data.sources.array_files import (
    CSR_PARTS,
    HDF5,
    StoredArray,
    StoredMatrix,
    open_array,
    open_hdf5,
    open_npy,
    open_npz,
)
from dml_hpc.data.sources.arrays import ArrayRows
from dml_hpc.errors import UserError
from dml_hpc.mpi import on_root

if TYPE_CHECKING:
    import numpy as np
    from mpi4py.MPI import Intracomm

    from dml_hpc.console import Progress
    from dml_hpc.mpi import Alone


class Keys(NamedTuple):
    """What X, y and the weights are called in the files, None: as usual, and weights there are none."""

    x: str | None = None
    y: str | None = None
    weight: str | None = None


def open_arrays(comm: Intracomm | Alone, paths: Sequence[Path], scratch: Path, *, label: str | None = None,
                x_key: str | None = None, y_key: str | None = None, weight: str | None = None,
                weight_key: str | None = None, features: int | None = None, holdout: float = 0.0, seed: int = 0,
                fill: np.ndarray | None = None, bar: Progress | None = None) -> ArrayRows:
    """Collective: open NPY, NPZ or HDF5 files, all of the same features, as rows one after the other.

    NPY: X is the array, (rows, features); ``label`` is the number of the column that is the label (negative: from the
    end), or the path of an NPY file with all labels. NPZ and HDF5: X is ``x_key`` ("X", else "x"), y is ``y_key`` ("y")
    unless ``label`` is given. Rows have weights with ``weight``, an NPY file of all of them, or ``weight_key``. CSR is
    what ``scipy.sparse.save_npz`` writes, or a group of data, indices and indptr (with or without ``shape``). Any
    integer or float type, any byte order. A CSR matrix has ``features`` features if that is more. A NaN in X is
    missing: it is counted, and filled; see `ArrayRows.survey` (means of CSR rows are taken with the zeros). Memory does
    not grow with the files; compressed NPZ files are unpacked into ``scratch``. ``bar`` advances by the bytes this rank
    has surveyed. Raises `AgreedError` for what does not fit, with its place.
    """
    keys = Keys(x_key, y_key, weight_key)
    rows = on_root(comm, lambda: _opened(paths, scratch, label, weight, keys, features))
    rows.survey(comm, bar, holdout, seed, fill)
    return rows


def _opened(paths: Sequence[Path], scratch: Path, label: str | None, weight: str | None, keys: Keys,
            features: int | None) -> ArrayRows:
    files = []
    for number, path in enumerate(paths):
        if path.suffix == ".npy":
            if any(keys):
                raise UserError(f"{path} holds one array, without keys; leave --x-key, --y-key and --weight-key out")
            files.append(open_npy(path))
        elif path.suffix in HDF5:
            files.append(open_hdf5(path, *keys))
        else:
            files.append(open_npz(path, scratch / f"unpacked-{number:05d}", *keys))
    width = max(file.shape[1] for file in files)
    for file in files:
        _check(file)
        if bool(file.csr) != bool(files[0].csr):
            raise UserError(f"{file.path} and {files[0].path} differ: one is sparse, the other is not")
        if file.shape[1] != width and not file.csr:
            raise UserError(f"{file.path} has {file.shape[1]:,} features, another file {width:,}")
    labels, column = _label(files, label, width)
    weights = _weights(files, weight)
    width -= column is not None
    if features is not None and (features < width or not files[0].csr) and features != width:
        raise UserError(f"--features {features:,} does not fit: {files[0].path} has {width:,}")
    if width < 1:
        raise UserError(f"{files[0].path} has no features")
    return ArrayRows(files, labels, column, weights, max(width, features or 0))


def _check(file: StoredMatrix) -> None:
    """Raise `UserError` when the arrays of a file are no numbers, or do not fit each other."""
    for array in file.arrays:
        whole = array in (file.csr.get("indices"), file.csr.get("indptr"))
        if array.dtype.kind not in ("iu" if whole else "fiub") or array.dtype.itemsize > 8:
            raise UserError(f"{array.name} holds {array.dtype}; it must hold "
                            + ("integers" if whole else "integers or floats of at most 64 bits"))
    rows = file.shape[0]
    if file.csr:
        data, indices, indptr = (file.csr[part] for part in CSR_PARTS)
        if len(indptr.shape) != 1 or indptr.shape[0] != rows + 1 or len(data.shape) != 1 or data.shape != indices.shape:
            raise UserError(f"{file.path} is no CSR matrix of {rows:,} rows: data {data.shape}, indices "
                            f"{indices.shape}, indptr {indptr.shape}")
    for column, what in ((file.y, "labels"), (file.weight, "weights")):
        if column is not None:
            _check_column(column, rows, what)


def _check_column(y: StoredArray, rows: int, what: str) -> None:
    if y.shape not in ((rows,), (rows, 1)):
        raise UserError(f"{y.name} has the shape {tuple(y.shape)}; {rows:,} rows need as many {what}")
    if y.dtype.kind not in "fiub" or y.dtype.itemsize > 8:
        raise UserError(f"{y.name} holds {y.dtype}; {what} must be integers or floats of at most 64 bits")


def _weights(files: Sequence[StoredMatrix], weight: str | None) -> StoredArray | None:
    """Return the array of all rows' weights that ``--weight`` names."""
    if weight is None:
        return None
    if not weight.endswith(".npy"):
        raise UserError(f"--weight {weight}: the weights of a matrix's rows are a .npy file, or --weight-key")
    if files[0].weight is not None:
        raise UserError("--weight and --weight-key say the same; give one of them")
    weights = open_array(Path(weight))
    _check_column(weights, sum(file.shape[0] for file in files), "weights")
    return weights


def _label(files: Sequence[StoredMatrix], label: str | None, width: int) -> tuple[StoredArray | None, int | None]:
    """Return where the labels are: an array of their own, or a column of X, or neither (in each file)."""
    if label is None:
        for file in files:
            if file.y is None:
                raise UserError(f"--label is needed: {file.path} has no 'y'; give a column's number, or a .npy file"
                                + ("" if file.path.suffix == ".npy" else ", or --y-key"))
        return None, None
    if label.endswith(".npy"):
        labels = open_array(Path(label))
        _check_column(labels, sum(file.shape[0] for file in files), "labels")
        return labels, None
    if files[0].csr:
        raise UserError(f"--label {label}: the label of a sparse matrix must be a .npy file, or --y-key")
    try:
        column = int(label)
    except ValueError:
        column = width
    if not -width <= column < width:
        raise UserError(f"--label {label}: it must be a .npy file or the number of a column, 0 … {width - 1:,}")
    return None, column % width
