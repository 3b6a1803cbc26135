"""What every objective offers to trainers and to prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.kernels import glm, glm_sparse


class Objective(ABC):
    """A loss ℓ(s, y) of a linear score s = x·w + b.

    ``weights`` and ``gradient`` have shape (features + 1,), the intercept b last; X is (rows, features), dense or
    sparse, ``y`` (rows,) as `targets` makes it, ``rows`` (count,) int64.
    """

    name: str
    loss: int
    """Which ℓ of `dml_hpc.kernels.glm`."""

    @abstractmethod
    def classes(self, name: str, values: list[float] | None) -> list[float] | None:
        """Return the label's classes, None for a real-valued target.

        ``name`` and ``values`` are the label's name and distinct values (None: too many to list). Raises
        `UserError` when the objective cannot be trained on such a label.
        """

    @abstractmethod
    def targets(self, y: np.ndarray, classes: list[float] | None, dtype: np.dtype) -> np.ndarray:
        """Return the y of ℓ(s, y) for labels ``y`` as an array of ``dtype``; `UserError` names one that has none."""

    @abstractmethod
    def summed_loss(self, scores: np.ndarray, targets: np.ndarray) -> float:
        """Return Σ ℓ in float64."""

    @abstractmethod
    def metrics(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float | None]:
        """Return ``accuracy``, ``auc``, ``rmse`` and ``r2`` (None where one does not apply) in float64."""

    @abstractmethod
    def predictions(self, scores: np.ndarray, classes: list[float] | None) -> dict[str, np.ndarray]:
        """Return what is predicted from scores (count,), by name; each (count,)."""

    def loss_and_gradient(self, X: np.ndarray | Csr, y: np.ndarray, rows: np.ndarray, weights: np.ndarray,
                          gradient: np.ndarray) -> float:
        """Add the gradient of the summed loss of ``rows`` to ``gradient`` and return that sum."""
        if isinstance(X, Csr):
            return glm_sparse.loss_and_gradient(self.loss, X.data, X.indices, X.indptr, y, rows, weights, gradient)
        return glm.loss_and_gradient(self.loss, X, y, rows, weights, gradient)

    def fixed_point_gradient(self, X: np.ndarray | Csr, y: np.ndarray, rows: np.ndarray, weights: np.ndarray,
                             shift: np.ndarray, scale: np.ndarray, per_unit: float, per_loss_unit: float,
                             out: np.ndarray) -> None:
        """Add the gradient of ``rows``, their loss and their masses to ``out`` in fixed point.

        See `dml_hpc.kernels.glm.fixed_point_gradient`. Sparse rows are not shifted: ``shift`` is 0 for them.
        """
        if isinstance(X, Csr):
            glm_sparse.fixed_point_gradient(self.loss, X.data, X.indices, X.indptr, y, rows, weights, scale, per_unit,
                                            per_loss_unit, out)
            return
        glm.fixed_point_gradient(self.loss, X, y, rows, weights, shift, scale, per_unit, per_loss_unit, out)

    def scores(self, X: np.ndarray | Csr, weights: np.ndarray, out: np.ndarray) -> None:
        """Write the score of every row of X to ``out`` (rows,)."""
        if isinstance(X, Csr):
            glm_sparse.scores(X.data, X.indices, X.indptr, weights, out)
        else:
            glm.scores(X, weights, out)

    def sequential_sgd(self, X: np.ndarray | Csr, y: np.ndarray, rows: np.ndarray, shift: np.ndarray, scale: np.ndarray,
                       weights: np.ndarray, step_size: float, l2: float) -> float:
        """Take one SGD step a row, in order; see `dml_hpc.kernels.glm.sequential_sgd`. X is dense."""
        assert isinstance(X, np.ndarray)
        kind = weights.dtype.type
        return glm.sequential_sgd(self.loss, X, y, rows, shift, scale, weights, kind(step_size), kind(l2))
