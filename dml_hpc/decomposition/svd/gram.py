"""Truncated SVD by the summed Gram matrix: XᵀX = Σ over row blocks of BᵀB, then a symmetric eigenproblem.

For tall matrices of up to some thousands of columns: one pass over X at the speed of BLAS and one all-reduce
of d × d numbers, whatever the number of rows (Golub and Van Loan, *Matrix Computations*, 4th ed., section
8.6). Squaring X costs accuracy at the small end: triplets below about 1e-7 σ₁ lose their digits, which the
residuals of the second pass, taken from X itself, show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.reducer import Reducer
from dml_hpc.data.csr import Csr
from dml_hpc.data.dataset import Dataset
from dml_hpc.errors import JobError, UserError
from dml_hpc.layout import split
from dml_hpc.mpi import agreed, on_root
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.console import Console, Progress

MOST_FEATURES = 20_000
"""A Gram matrix of so many columns takes 3.2 GB on every rank, twice while it is summed."""
BLOCK_BYTES = 8 << 20
LEAST_BLOCK_ROWS = 512
"""With fewer rows in a block, adding its d × d product to the sum would cost as much as computing it."""


@dataclass(frozen=True)
class SvdResult:
    """The k largest singular triplets of X (rows, features); the same, to the bit, on every rank.

    ``singular_values`` (k,) float64, descending. ``V`` (features, k) float64, orthonormal columns; in each
    the entry of largest magnitude (the first such) is positive. ``relative_residuals`` (k,) float64 are
    ‖Xᵀu − σv‖/σ₁ with u = Xv/σ, computed from X; NaN where σ is zero to rounding and there is no u.
    ‖Xv − σu‖ is zero by the choice of u, so X has a singular value within ``relative_residuals[i]``·σ₁ of
    ``singular_values[i]``. ``time_split`` alone is each rank's own: seconds reading, computing, communicating
    and waiting for slower ranks. ``allreduce`` names the reducer that summed XᵀX.
    """

    singular_values: np.ndarray
    V: np.ndarray
    relative_residuals: np.ndarray
    time_split: dict[str, float]
    allreduce: str
    method: str = "gram"
    passes_over_data: int = 2


def truncated_svd(comm: Intracomm, dataset: Dataset, k: int, open_reducer: Callable[..., Reducer],
                  console: Console) -> SvdResult:
    """Collective: return the ``k`` largest singular triplets of the data set's X.

    Every rank reads its own contiguous share of the rows (`layout.split`; possibly none) twice, in float64
    blocks of bounded size: once for XᵀX, once for σ = ‖Xv‖ and the residuals. Memory: three arrays of
    features² float64 on every rank at most, some six on rank 0, which alone solves the eigenproblem.

    Raises `AgreedError` on every rank: no rows, ``k`` outside 1 … min(rows, features), more than
    `MOST_FEATURES` features, an entry of X that is not finite or whose square is not (its place is named).
    """
    clock = Clock()
    with agreed(comm):
        _check(dataset, k)
    rank_rows = split(dataset.rows, comm.size, comm.rank)
    bar = console.bar(2 * (rank_rows[1] - rank_rows[0]), "svd")
    V, summed_by = _leading_eigenvectors(comm, dataset, rank_rows, k, open_reducer, clock, bar)
    sigma, residuals = _certify(comm, dataset, rank_rows, V, open_reducer, clock, bar)
    bar.close()
    # ‖Xv‖ tells apart small values that their squares, as eigenvalues, had in another order.
    order = np.argsort(-sigma, kind="stable")
    return SvdResult(sigma[order], np.ascontiguousarray(V[:, order]), residuals[order], clock.seconds,
                     summed_by)


def _check(dataset: Dataset, k: int) -> None:
    rows, features = dataset.rows, dataset.features
    if rows == 0:
        raise UserError(f"{dataset.path} has no rows; there is nothing to factorise")
    if features > MOST_FEATURES:
        raise UserError(f"{dataset.path} has {features} features, Gram takes at most {MOST_FEATURES} "
                        f"(its matrix needs {8e-9 * features**2:.1f} GB on every rank); choose columns first")
    if not 1 <= k <= min(rows, features):
        raise UserError(f"-k {k} is outside 1 … {min(rows, features)}, the smaller side of {dataset.path} "
                        f"({rows} × {features}); choose another")


def _leading_eigenvectors(comm: Intracomm, dataset: Dataset, rank_rows: tuple[int, int], k: int,
                          open_reducer: Callable[..., Reducer], clock: Clock,
                          bar: Progress) -> tuple[np.ndarray, str]:
    """Collective: return V (features, k), eigenvectors of XᵀX's k largest eigenvalues, descending, and what summed."""
    d = dataset.features
    with open_reducer(comm, d * d, "float64") as reducer:
        gram = reducer.buffer.reshape(d, d)
        gram[:] = 0
        with clock.agreed(comm):
            product = np.empty((d, d))
            for first, block in _blocks(dataset, *rank_rows, clock, bar):
                with clock.phase("compute"), np.errstate(over="ignore", invalid="ignore"):
                    np.matmul(block.T, block, out=product)  # NumPy takes dsyrk for this: half the work
                    gram += product
                    # A column's sum of squares hides no NaN and no infinity, and costs nothing extra.
                    finite = np.isfinite(np.trace(product))
                if not finite:
                    raise UserError(_not_finite(dataset, first, block))
            del product
        with clock.phase("communicate"):
            reducer.allreduce()
        V = np.empty((d, k))
        with clock.agreed(comm):
            # One rank decides: eigenvectors of close eigenvalues may differ from one CPU type to the next.
            if comm.rank == 0:
                with clock.phase("compute"):
                    V[:] = _eigenvectors(reducer.total.reshape(d, d), k)
        with clock.phase("communicate"):
            comm.Bcast(V)
    return V, reducer.name


def _eigenvectors(gram: np.ndarray, k: int) -> np.ndarray:
    if not np.isfinite(np.trace(gram)):
        raise UserError("the sum of X's squares overflows float64; scale its columns down first")
    try:
        vectors = np.linalg.eigh(gram)[1][:, :-k - 1:-1]
    except np.linalg.LinAlgError as error:
        raise JobError(f"the eigenproblem of XᵀX was not solved: {error}") from None
    largest = vectors[np.argmax(np.abs(vectors), axis=0), np.arange(k)]
    return vectors * np.where(largest < 0, -1.0, 1.0)


def _certify(comm: Intracomm, dataset: Dataset, rank_rows: tuple[int, int], V: np.ndarray,
             open_reducer: Callable[..., Reducer], clock: Clock, bar: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Collective: return σ = ‖Xv‖ and ‖Xᵀu − σv‖/σ₁ (u = Xv/σ), both (k,), of the columns v of ``V``.

    Both come from X, not from XᵀX, so that they hold however much the squaring lost. ``V`` is (features, k).
    """
    d, k = V.shape
    with open_reducer(comm, d * k + k, "float64") as reducer:
        back, squares = reducer.buffer[:d * k].reshape(d, k), reducer.buffer[d * k:]  # XᵀXV and ‖Xv‖²
        reducer.buffer[:] = 0
        with clock.agreed(comm):
            for _, block in _blocks(dataset, *rank_rows, clock, bar):
                with clock.phase("compute"):
                    image = block @ V
                    back += block.T @ image
                    squares += np.einsum("ij,ij->j", image, image)
        with clock.phase("communicate"):
            reducer.allreduce()

        def on_rank_0() -> tuple[np.ndarray, np.ndarray]:
            back, squares = reducer.total[:d * k].reshape(d, k), reducer.total[d * k:]
            sigma = np.sqrt(squares)
            residuals = np.full(k, np.nan)
            # The usual numerical rank: below it Xv is rounding and u would be noise of length one.
            told = sigma > max(dataset.rows, d) * np.finfo(float).eps * sigma.max()
            difference = back[:, told] / sigma[told] - V[:, told] * sigma[told]
            residuals[told] = np.sqrt(np.einsum("ij,ij->j", difference, difference)) / sigma.max()
            return sigma, residuals

        return on_root(comm, on_rank_0)


def _blocks(dataset: Dataset, start: int, stop: int, clock: Clock,
            bar: Progress) -> Iterator[tuple[int, np.ndarray]]:
    """Yield rows ``start`` … ``stop − 1`` as (number of the first row, float64 block (count, features)).

    All blocks lie in one buffer, filled anew each time, of at most `BLOCK_BYTES` or `LEAST_BLOCK_ROWS`.
    """
    d = dataset.features
    most = min(stop - start, max(LEAST_BLOCK_ROWS, BLOCK_BYTES // (8 * d)))
    buffer = np.empty((most, d))
    for first in range(start, stop, most or 1):
        last = min(first + most, stop)
        block = buffer[:last - first]
        with clock.phase("read"):
            for piece in dataset.pieces(first, last, most):
                X = piece.X.dense() if isinstance(piece.X, Csr) else piece.X
                block[piece.first - first:piece.first - first + len(X)] = X
        yield first, block
        progressed()
        bar.advance(last - first)


def _not_finite(dataset: Dataset, first: int, block: np.ndarray) -> str:
    bad = np.argwhere(~np.isfinite(block))
    found = "not a finite number"
    if not len(bad):
        bad, found = np.argwhere(np.abs(block) == np.abs(block).max()), "too large to be squared in float64"
    row, column = first + int(bad[0, 0]), int(bad[0, 1])
    shard = int(np.searchsorted(dataset.offsets, row, side="right")) - 1
    names = dataset.manifest.feature_names
    return (f"{dataset.paths[shard]}: X[{row - int(dataset.offsets[shard])}, {column}] "
            f"('{names[column] if names else column}') is {block[tuple(bad[0])]}, {found}; "
            "mend or drop that row and import the data again")
