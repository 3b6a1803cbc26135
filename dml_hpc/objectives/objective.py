"""What every objective offers to trainers and to prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.data.reading import Rows
from dml_hpc.objectives.layers import Layers
from dml_hpc.objectives.sequential import Sequential
from dml_hpc.watch import progressed


class Objective(ABC):
    """A loss ℓ(s, y) of the scores s of a row, (outputs,) numbers that `layers` of parameters make of it.

    Throughout, X is (rows, features), dense (float16, 32 or 64) or sparse, ``y`` (rows,) as `targets` makes it,
    ``weight`` (rows,) what each row counts, of the parameters' dtype, or None: 1 each; ``rows`` (count,) int64 are
    numbers of rows of X. ``parameters`` and ``gradient`` are vectors as `Layers` describes them, for rows as they are
    stored (see `dml_hpc.objectives.scaling`).
    """

    name: str
    convex = True
    smooth = True
    """Whether the gradient is continuous, as quasi-Newton methods want it."""
    curvature: float | None = None
    """The most that ℓ'' can be, None where it has no bound; bounds the step sizes that converge."""
    sequential = False
    """Whether `sequential_sgd` is there."""

    @property
    def settings(self) -> dict[str, object]:
        """What it was opened with beside its name (see `open_objective`), for the model file; JSON can hold it."""
        return {}

    @abstractmethod
    def classes(self, name: str, values: list[float] | None) -> list[float] | None:
        """Return the label's classes, None for a real-valued target.

        ``name`` and ``values`` are the label's name and distinct values (None: too many to list). Raises
        `UserError` when the objective cannot be trained on such a label.
        """

    @abstractmethod
    def layers(self, features: int, classes: list[float] | None) -> Layers:
        """Return how the parameters lie."""

    def initial(self, layers: Layers, seed: int, dtype: np.dtype) -> np.ndarray:
        """Return the parameters (size,) to start from: zeros, unless symmetry must be broken."""
        return np.zeros(layers.size, dtype)

    @abstractmethod
    def targets(self, y: np.ndarray, classes: list[float] | None, dtype: np.dtype) -> np.ndarray:
        """Return the y of ℓ(s, y) for labels ``y`` as an array of ``dtype``; `UserError` names one that has none."""

    @abstractmethod
    def losses(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return ℓ of each row (rows,) in float64, of ``scores`` (rows, outputs)."""

    @abstractmethod
    def metrics(self, scores: np.ndarray, targets: np.ndarray, weight: np.ndarray | None) -> dict[str, float | None]:
        """Return ``accuracy``, ``auc``, ``rmse`` and ``r2`` (None where one does not apply) in float64.

        ``scores`` are (rows, outputs); each row counts ``weight`` (None: 1).
        """

    def tallies(self, scores: np.ndarray, targets: np.ndarray, weight: np.ndarray | None) -> np.ndarray | None:
        """Return sums (k,) over rows, float64, that `metrics_of` needs; None: only `metrics` of all rows will do."""
        return None

    def metrics_of(self, tallies: np.ndarray) -> dict[str, float | None]:
        """Return the `metrics` of all rows whose `tallies`, added up, are given."""
        raise NotImplementedError(f"the metrics of {self.name} need all rows' scores together")

    @abstractmethod
    def predictions(self, scores: np.ndarray, classes: list[float] | None) -> dict[str, np.ndarray]:
        """Return what is predicted from ``scores`` (rows, outputs), by name; each (rows,) or (rows, classes)."""

    @abstractmethod
    def loss_and_gradient(self, layers: Layers, X: np.ndarray | Csr, y: np.ndarray, weight: np.ndarray | None,
                          rows: np.ndarray, parameters: np.ndarray, gradient: np.ndarray) -> float:
        """Add the gradient of the summed, weighted loss of ``rows`` to ``gradient`` and return that sum."""

    def batch_loss_and_gradient(self, layers: Layers, parts: Iterable[Rows], parameters: np.ndarray,
                                gradient: np.ndarray) -> float:
        """As `loss_and_gradient`, for rows that lie in several places; ``parts`` may be valid one at a time."""
        total = 0.0
        for X, y, rows, weight in parts:
            total += self.loss_and_gradient(layers, X, y, weight, rows, parameters, gradient)
            progressed()
        return total

    @abstractmethod
    def fixed_point_gradient(self, layers: Layers, X: np.ndarray | Csr, y: np.ndarray, weight: np.ndarray | None,
                             rows: np.ndarray, parameters: np.ndarray, shift: np.ndarray, scale: np.ndarray,
                             per_unit: float, per_loss_unit: float, out: np.ndarray) -> None:
        """Add the gradient of ``rows``, their loss and their masses to ``out`` (size + 3,) int64 in fixed point.

        Every row's term is computed by itself, always by the same instructions, so that the sum depends on nothing but
        the rows and the parameters; see `dml_hpc.kernels.glm.fixed_point_gradient`. The gradient is by the parameters
        of rows standardised by ``shift`` (features,) and ``scale`` (features + 1,); ``parameters`` are those for
        stored rows. Sparse rows are not shifted: ``shift`` is 0 for them.
        """

    @abstractmethod
    def scores(self, layers: Layers, X: np.ndarray | Csr, parameters: np.ndarray, out: np.ndarray) -> None:
        """Write the scores of every row of X to ``out`` (rows, outputs)."""

    def sequential_sgd(self, layers: Layers, X: np.ndarray | Csr, y: np.ndarray, weight: np.ndarray | None,
                       rows: np.ndarray, shift: np.ndarray, scale: np.ndarray, state: Sequential,
                       step_size: float) -> float:
        """Take one SGD step for each of ``rows`` in turn; return the summed, weighted loss met on the way.

        A step touches the row's own features alone; see `dml_hpc.kernels.glm_sparse.sequential_sgd`.
        """
        raise NotImplementedError(f"{self.name} has no steps of one example")
