"""Matrices of known singular values, as files for ``dml-hpc`` and its peers, and how far results are from them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from scipy.linalg import eigh, solve_triangular
from scipy.sparse import csr_matrix

BLOCK_ROWS = 20_000
PAGE_BYTES = 4096


def orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return random orthonormal columns, (rows, columns) float64: Q of a Gaussian matrix."""
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def dense(rng: np.random.Generator, rows: int, sigma: np.ndarray) -> np.ndarray:
    """Return U·diag(σ)·Vᵀ, (rows, len(σ)) float32, U and V random; its singular values are σ but for rounding.

    U is G·R⁻¹ with G Gaussian and RᵀR = GᵀG: as G is well conditioned, that is as good as a QR, and goes by blocks.
    """
    features = len(sigma)
    X = rng.standard_normal((rows, features), dtype=np.float32)
    R = np.linalg.cholesky(gram(X)).T
    after = solve_triangular(R, sigma[:, None] * orthonormal(rng, features, features).T)
    for start in range(0, rows, BLOCK_ROWS):
        X[start:start + BLOCK_ROWS] = X[start:start + BLOCK_ROWS].astype(np.float64) @ after
    return X


def gram(X: np.ndarray) -> np.ndarray:
    """Return XᵀX, (features, features) float64, summed in float64."""
    total = np.zeros((X.shape[1], X.shape[1]))
    for start in range(0, len(X), BLOCK_ROWS):
        block = X[start:start + BLOCK_ROWS].astype(np.float64)
        total += block.T @ block
    return total


def largest_by_gram(X: np.ndarray, k: int) -> np.ndarray:
    """Return the k largest singular values of X as it is stored, (k,) float64, descending, from XᵀX in float64.

    Their relative error is about 1e-16 (σ₁/σᵢ)²: for spectra that fall by no more than a few powers of ten.
    """
    features = X.shape[1]
    return np.sqrt(eigh(gram(X), eigvals_only=True, subset_by_index=(features - k, features - 1))[::-1])


def write_matrix(path: Path, X: np.ndarray | csr_matrix) -> Path:
    """Write X to an HDF5 file as ``X``, contiguous and page-aligned, so that ranks map it; return the path."""
    with h5py.File(path, "w", alignment_threshold=1, alignment_interval=PAGE_BYTES) as file:
        if isinstance(X, np.ndarray):
            file.create_dataset("X", data=X)
        else:
            group = file.create_group("X")
            group.attrs["shape"] = np.array(X.shape, np.int64)
            for name in ("data", "indices", "indptr"):
                group.create_dataset(name, data=getattr(X, name))
    return path


def sigma_error(found: list[float] | np.ndarray, exact: np.ndarray) -> float:
    """Return max |σ̂ᵢ − σᵢ| / σᵢ over the exact ones, both in descending order."""
    return float(np.max(np.abs(np.asarray(found, np.float64)[:len(exact)] - exact) / exact))
