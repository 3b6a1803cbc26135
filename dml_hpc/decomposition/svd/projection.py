"""Rows projected onto the singular vectors of a matrix: of that matrix, or of others with the same features."""

from __future__ import annotations

import numpy as np

from dml_hpc.console import Progress
from dml_hpc.data.csr import Csr
from dml_hpc.data.dataset import Dataset, no_rows
from dml_hpc.data.sources.source import About, with_weight
from dml_hpc.data.writer import label_dtype
from dml_hpc.errors import UserError
from dml_hpc.kernels import csr_products
from dml_hpc.store.factors import Factors
from dml_hpc.watch import progressed


class Projected:
    """A data set's rows x as (x − shift)/scale·V/σ, with ``scores`` (x − shift)/scale·V: a source of dense rows.

    They have k features, "u0", "u1", …, of ``dtype`` (float32 or float64), and the labels and weights of the data set.
    Rows of the matrix that was factorised come to those of U, with ``scores`` to those of U·diag(σ). Sums are float64:
    with σ_i small beside σ₁ most of a row cancels. A triplet whose σ is 0, or which has no residual, as σ is zero to
    rounding, projects to 0: its v could be any other. A row's last bits may depend on the range it is read in.

    Of sparse rows the zeros are never filled in: x·W − shift·W with W = diag(1/scale)·V/σ.
    """

    kind = "dense"

    def __init__(self, dataset: Dataset, factors: Factors, scores: bool, dtype: str, bar: Progress | None = None):
        manifest = dataset.manifest
        self.rows, self.features = dataset.rows, factors.k
        self.about = About(
            feature_names=[f"u{i}" for i in range(factors.k)], label=manifest.label.name,
            label_names=manifest.label.names, label_missing=manifest.label.missing, weighted=dataset.weighted,
            label_values=manifest.label.values if dataset.is_imported else None,
            source={"svd": factors.digest, "scores": scores})
        self._dataset, self._dtype, self._bar = dataset, dtype, bar
        self._shift = factors.shift
        told = (factors.singular_values > 0) & ~np.isnan(factors.relative_residuals)
        self._weights = np.ascontiguousarray(factors.V / np.where(told & (not scores), factors.singular_values, 1.0))
        self._weights[:, ~told] = 0
        if factors.scale is not None:
            self._weights /= factors.scale[:, None]
        # Zeros rather than None: another type would have the kernel compiled once more.
        self._correction = np.zeros(factors.k) if self._shift is None else self._shift @ self._weights
        self._most_rows = max(1, min(dataset.block_rows(), dataset.rows))
        self._buffer = np.empty((self._most_rows if dataset.kind == "dense" else 0, factors.features))

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows ``start`` … ``stop`` − 1 projected (stop − start, k); see `RowSource`.

        Raises `UserError` for an entry of X that is no finite number, and for a projection too large for the dtype.
        """
        out = np.empty((stop - start, self.features))
        labels = np.empty(stop - start)
        weights = np.empty(stop - start) if self.about.weighted else None
        for piece in self._dataset.pieces(start, stop, self._most_rows):
            own = slice(piece.first - start, piece.first - start + len(piece.y))
            self._project(piece.X, out[own])
            labels[own] = piece.y
            if weights is not None:
                weights[own] = piece.weight
            progressed()
            if self._bar is not None:
                self._bar.advance(len(piece.y))
        with np.errstate(over="ignore", invalid="ignore"):
            projected = out.astype(self._dtype, copy=False)
        if not np.isfinite(projected).all():
            self._refuse(start, projected)
        return projected, with_weight(labels, weights)

    def warm_up(self) -> None:
        """Have the kernel for sparse rows compiled, or read from Numba's cache, by running it on no rows."""
        X = no_rows(self._dataset, self._dataset.computable(np.dtype(np.float64)))
        self._project(X, np.empty((0, self.features)))

    def _project(self, X: np.ndarray | Csr, out: np.ndarray) -> None:
        if isinstance(X, Csr):
            X = X.astype(self._dataset.computable(np.dtype(np.float64)), copy=False)
            csr_products.products(X.data, X.indices, X.indptr, self._weights, self._correction, out)
            return
        # Shifted before it is multiplied: far from zero the difference of two products would lose digits.
        centred = self._buffer[:len(X)]
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(X, 0.0 if self._shift is None else self._shift, out=centred)
            np.matmul(centred, self._weights, out=out)

    def _refuse(self, start: int, projected: np.ndarray) -> None:
        row, column = (int(place) for place in np.argwhere(~np.isfinite(projected))[0])
        found = self._dataset.row(start + row)
        values = found.X.packed().data if isinstance(found.X, Csr) else found.X
        bad = np.flatnonzero(~np.isfinite(values))
        if not len(bad):
            raise UserError(f"{found.path}: row {found.row} projects to u{column} beyond {self._dtype}: it is far "
                            "larger than the rows that were factorised; mend or drop it")
        feature = int(found.X.packed().indices[bad[0]] if isinstance(found.X, Csr) else bad[0])
        names = self._dataset.manifest.feature_names
        raise UserError(f"{found.path}: X[{found.row}, {feature}] ('{names[feature] if names else feature}') is "
                        f"{values[bad[0]]}, not a finite number; mend or drop that row")


def projected_dtype(dataset: Dataset) -> str:
    """Return the type in which projections of a data set's rows are stored: float32 unless X is float64."""
    return label_dtype(dataset.manifest.dtype)
