"""The factors of an SVD in one HDF5 file that any HDF5 reader opens."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dml_hpc import __version__
from dml_hpc.data.links import own
from dml_hpc.errors import UserError
from dml_hpc.files import HDF5_ERRORS, first_line
from dml_hpc.store.whole import written_whole

FORMAT = 2
"""Format 1 had no number, and neither shift nor scale: rows projected with it would be wrong."""
KIND = "dml-hpc svd"
OF_TRIPLETS = ("singular_values", "relative_residuals", "left_residuals", "energy", "explained_variance",
               "explained_variance_ratio")
OF_FEATURES = ("shift", "scale")
OPTIONAL = ("left_residuals", "energy", "explained_variance", "explained_variance_ratio", "shift", "scale")
NUMBERS = ("norm", "error_bound", "accuracy")
DIGESTED = ("singular_values", "V", "shift", "scale")
"""What rows are projected with."""


@dataclass(frozen=True, eq=False)
class Factors:
    """k singular triplets of A = (X − 1·shiftᵀ)·diag(1/scale), where X has ``rows`` rows: A ≈ U·diag(σ)·Vᵀ.

    All arrays are float64. ``singular_values`` (k,), descending; ``V`` (features, k), orthonormal columns, whose rows
    ``feature_names`` names (None: they have numbers alone). ``shift`` and ``scale`` (features,), None: 0 and 1.
    ``relative_residuals`` ‖Aᵀu − σv‖/σ₁ and ``left_residuals`` ‖Av − σu‖/σ₁, (k,), NaN where σ is zero to rounding and
    there is no u. ``norm`` is ‖A‖_F, ``energy`` (k,) the share of its square in triplets 1 … i, ``error_bound`` a bound
    on ‖A − UΣVᵀ‖₂. ``explained_variance`` (k,) and its ratio to the whole are of centred columns, else None.
    ``accuracy`` is the residual that was asked for, ``accuracy_met`` whether every triplet has it. ``method`` names the
    algorithm. What has a default may be unknown: None, or NaN.
    """

    singular_values: np.ndarray
    V: np.ndarray
    relative_residuals: np.ndarray
    feature_names: list[str] | None
    method: str
    rows: int
    left_residuals: np.ndarray | None = None
    shift: np.ndarray | None = None
    scale: np.ndarray | None = None
    norm: float = math.nan
    error_bound: float = math.nan
    energy: np.ndarray | None = None
    explained_variance: np.ndarray | None = None
    explained_variance_ratio: np.ndarray | None = None
    accuracy: float = math.nan
    accuracy_met: bool = False

    @property
    def k(self) -> int:
        """How many triplets there are."""
        return len(self.singular_values)

    @property
    def features(self) -> int:
        """How many numbers a row has."""
        return len(self.V)

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the bytes of σ, V and, where there are any, shift and scale.

        Each in C order, little endian, one after the other.
        """
        digest = hashlib.sha256()
        for name in DIGESTED:
            array = getattr(self, name)
            if array is not None:
                digest.update(np.ascontiguousarray(array, "<f8").data)
        return digest.hexdigest()


def write_factors(path: Path, factors: Factors) -> None:
    """Write ``path`` on the calling rank alone, whole or not at all; what stood there is replaced.

    The file holds a dataset for each array of `Factors` that is not None, float64, little endian, ``feature_names``
    (UTF-8), and as attributes its numbers and words, ``digest``, ``format``, ``kind`` and ``dml_hpc_version``. Raises
    `UserError` when it cannot be written.
    """
    with written_whole(path) as file:
        file.attrs.update(format=FORMAT, kind=KIND, dml_hpc_version=__version__, digest=factors.digest,
                          method=factors.method, rows=factors.rows, accuracy_met=factors.accuracy_met,
                          **{name: float(getattr(factors, name)) for name in NUMBERS})
        for name in ("V", *OF_TRIPLETS, *OF_FEATURES):
            array = getattr(factors, name)
            if array is not None:
                file[name] = np.asarray(array, "<f8")
        if factors.feature_names is not None:
            file.create_dataset("feature_names", data=factors.feature_names, dtype=h5py.string_dtype(),
                                shape=(len(factors.feature_names),))


def read_factors(path: Path) -> Factors:
    """Return the factors in a file.

    Raises `UserError` when there are none, or they are not as `write_factors` writes them.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; `dml-hpc svd … -o {path}` makes one")
    try:
        with h5py.File(path, "r", locking=False) as file:
            _check_format(path, file)
            factors = _read(path, file)
            digest = file.attrs["digest"]
        damage = _damage(factors, digest)
    except HDF5_ERRORS as error:
        raise UserError(f"{path} cannot be read as factors: {first_line(error)}") from None
    if damage:
        raise UserError(f"{path} is damaged: {damage}; run svd again")
    return factors


def _check_format(path: Path, file: h5py.File) -> None:
    kind = file.attrs.get("kind")
    if kind is None and {"singular_values", "V", "relative_residuals"} <= set(file):
        raise UserError(f"{path} was written by an older dml-hpc; run svd again")
    if not isinstance(kind, str) or kind != KIND:
        raise UserError(f"{path} holds no factors; `dml-hpc svd` writes them")
    if file.attrs["format"] != FORMAT:
        raise UserError(f"{path} has format {file.attrs['format']}, this version reads {FORMAT}; run svd again")


def _read(path: Path, file: h5py.File) -> Factors:
    found: dict[str, Any] = {name: float(file.attrs[name]) for name in NUMBERS}
    for name in ("V", *OF_TRIPLETS, *OF_FEATURES):
        if file.get(name, getlink=True) or name not in OPTIONAL:
            found[name] = _whole(path, file, name)[()].astype(np.float64, copy=False)
    names = _whole(path, file, "feature_names").asstr()[()].tolist() if file.get("feature_names", getlink=True) \
        else None
    return Factors(feature_names=names, method=str(file.attrs["method"]), rows=int(file.attrs["rows"]),
                   accuracy_met=bool(file.attrs["accuracy_met"]), **found)


def _whole(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    dataset = own(path, file, name)
    # What is not stored is not read: a claim of more than the file holds would only fill memory.
    if dataset.id.get_storage_size() < dataset.nbytes:
        raise ValueError(f"{name} is not whole")
    return dataset


def _damage(factors: Factors, digest: object) -> str | None:
    """Return what `write_factors` would not have written, None for whole factors."""
    if factors.V.ndim != 2 or factors.singular_values.ndim != 1 or not factors.V.size:
        return "V is no matrix, or has no singular values"
    for names, shape in ((("V",), (factors.features, factors.k)), (OF_TRIPLETS, (factors.k,)),
                         (OF_FEATURES, (factors.features,))):
        for name in names:
            array = getattr(factors, name)
            if array is not None and array.shape != shape:
                return f"{name} has the shape {array.shape}, not {shape}"
    if factors.feature_names is not None and len(factors.feature_names) != factors.features:
        return f"{factors.features} features have {len(factors.feature_names)} names"
    if factors.digest != digest:
        return "its numbers are not those it was saved with"
    for name in DIGESTED:
        array = getattr(factors, name)
        if array is not None and not np.isfinite(array).all():
            return f"{name} holds {'NaN' if np.isnan(array).any() else 'infinity'}"
    if (factors.singular_values < 0).any() or (factors.scale is not None and not (factors.scale > 0).all()):
        return "singular values are negative, or scales not positive"
    return None
