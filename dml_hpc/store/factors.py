"""The factors of an SVD in an HDF5 file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from dml_hpc import __version__
from dml_hpc.errors import UserError
from dml_hpc.store.whole import written_whole


@dataclass(frozen=True)
class Factors:
    """A truncated SVD of a matrix of ``rows`` × features.

    ``singular_values`` (k,), ``V`` (features, k) and ``relative_residuals`` (k,) are float64; a residual is
    NaN where σ is zero to rounding. ``method`` names the algorithm, ``feature_names`` the rows of V.
    """

    singular_values: np.ndarray
    V: np.ndarray
    relative_residuals: np.ndarray
    feature_names: list[str] | None
    method: str
    rows: int


def write_factors(path: Path, factors: Factors) -> None:
    """Write ``path`` on the calling rank alone, whole or not at all; what stood there is replaced.

    The file holds the datasets ``singular_values``, ``V``, ``relative_residuals``, ``feature_names`` (UTF-8)
    and the attributes ``method``, ``rows``, ``dml_hpc_version``. Raises `UserError` when it cannot be written.
    """
    with written_whole(path) as file:
        file["singular_values"] = factors.singular_values
        file["V"] = factors.V
        file["relative_residuals"] = factors.relative_residuals
        if factors.feature_names is not None:
            file.create_dataset("feature_names", data=factors.feature_names, dtype=h5py.string_dtype(),
                                shape=(len(factors.feature_names),))
        file.attrs.update(method=factors.method, rows=factors.rows, dml_hpc_version=__version__)


def read_factors(path: Path) -> Factors:
    """Return the factors `write_factors` wrote; raises `UserError` when ``path`` is missing or holds none."""
    if not path.is_file():
        raise UserError(f"{path} is no file; `dml-hpc svd` writes factors")
    try:
        with h5py.File(path, "r", locking=False) as file:
            named = "feature_names" in file
            return Factors(file["singular_values"][()], file["V"][()], file["relative_residuals"][()],
                           list(file["feature_names"].asstr()[()]) if named else None, str(file.attrs["method"]),
                           int(file.attrs["rows"]))
    except (KeyError, AttributeError) as error:
        raise UserError(f"{path} holds no factors ({str(error).splitlines()[0]}); "
                        "`dml-hpc svd` writes them") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read as HDF5: {str(error).splitlines()[0]}") from None
