"""Sources that are matrices, not tables: LIBSVM, NPY, NPZ and HDF5 files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dml_hpc.data.sources.source import RowSource
from dml_hpc.errors import UserError
from dml_hpc.mpi import agreed

if TYPE_CHECKING:
    import numpy as np
    from mpi4py.MPI import Intracomm

    from dml_hpc.console import Progress
    from dml_hpc.mpi import Alone

LIBSVM = (".svm", ".libsvm", ".svmlight")
COMPRESSED = (".gz", ".bz2", ".xz", ".lzma")
ARRAYS = (".npy", ".npz", ".h5", ".hdf5")
TABLES = (".csv", ".tsv", ".tab", ".parquet", ".pq", ".zip", ".arrow", ".feather")


def _kind(path: Path) -> str | None:
    """Return "libsvm", "npy", "npz" or "hdf5", or None for what is a table."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSED]
    last = suffixes[-1] if suffixes else ""
    if path.suffix in ARRAYS:
        return "hdf5" if path.suffix in (".h5", ".hdf5") else path.suffix[1:]
    if last in LIBSVM:
        return "libsvm"
    if last not in TABLES:
        from dml_hpc.data.sources.libsvm_text import looks_like_libsvm

        return "libsvm" if looks_like_libsvm(path) else None
    return None


def is_matrix(path: Path) -> bool:
    """Return whether `open_matrix` is for this file: by its name, else (a9a, a9a.t, a.txt) by its first line."""
    return _kind(path) is not None


def open_matrix(comm: Intracomm | Alone, paths: Sequence[Path], scratch: Path, *, label: str | None = None,
                x_key: str | None = None, y_key: str | None = None, weight: str | None = None,
                weight_key: str | None = None, features: int | None = None, hash_bits: int | None = None,
                dtype: str = "float32", zero_based: bool | None = None, holdout: float = 0.0, seed: int = 0,
                fill: np.ndarray | None = None, bar: Progress | None = None) -> RowSource:
    """Collective: open files of one format as rows, one file after the other.

    ``scratch`` is a folder that all ranks share and that stays until the last read. See `open_libsvm` for LIBSVM
    (``features``, ``hash_bits``, ``dtype``, ``zero_based``) and `open_arrays` for the others (``label``, ``x_key``,
    ``y_key``, ``weight``, ``weight_key``, ``features``, ``holdout``, ``seed``, ``fill``). Raises `AgreedError` for what
    is missing, does not fit, has no rows, or for an option that the format does not have.
    """
    with agreed(comm):
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path} is no file; check the path")
        kinds = {_kind(path): path for path in paths}
        if len(kinds) > 1:
            raise UserError(f"{' and '.join(map(str, kinds.values()))} are of different formats; import one at a time")
        kind = next(iter(kinds))
        refused = ({"--label": label, "--x-key": x_key, "--y-key": y_key, "--weight": weight,
                    "--weight-key": weight_key} if kind == "libsvm" else {"--hash-bits": hash_bits})
        for option, value in refused.items():
            if value is not None:
                raise UserError(f"{option} is not for {paths[0].name}: " + (
                    "LIBSVM files hold labels and columns by themselves" if kind == "libsvm"
                    else "only tables and LIBSVM files are hashed") + "; leave it out")
    rows: RowSource
    if kind == "libsvm":
        from dml_hpc.data.sources.libsvm import open_libsvm

        rows = open_libsvm(comm, paths, scratch, features=features, hash_bits=hash_bits, dtype=dtype,
                           zero_based=zero_based, bar=bar)
    else:
        from dml_hpc.data.sources.array_opening import open_arrays

        rows = open_arrays(comm, paths, scratch, label=label, x_key=x_key, y_key=y_key, weight=weight,
                           weight_key=weight_key, features=features, holdout=holdout, seed=seed, fill=fill, bar=bar)
    with agreed(comm):
        if not rows.rows:
            raise UserError(f"{paths[0]} has no rows")
    return rows
