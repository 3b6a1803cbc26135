"""``randomized``: block Krylov iteration from a random start, as block Lanczos on AᵀA with restarts.

The Krylov space of b random vectors holds the leading singular vectors after few steps (Musco and Musco, *Randomized
block Krylov methods for stronger and faster approximate singular value decomposition*, NIPS 2015; Halko, Martinsson and
Tropp, SIAM Review 53, 2011, for one step). A step reads X once: AᵀA times a block, see `Matrix.gram_image`. The
basis is orthogonalised in full; when it is full it is restarted from its best Ritz vectors (Wu and Simon,
*Thick-restart Lanczos method*, SIAM J. Matrix Anal. Appl. 22, 2000), so memory is bounded and as many steps are taken
as the accuracy needs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dml_hpc.decomposition.matrix import Matrix
from dml_hpc.decomposition.svd.course import Course, kept_rows, put_rows
from dml_hpc.decomposition.svd.orthonormal import orthonormal, random_block, without
from dml_hpc.store.state import State

MOST_WIDTH = 48
"""Of a block: so many equal singular values are found for sure, and BLAS is near its best."""
EXTRA = 4
"""Vectors beyond the wanted ones: convergence depends on how far σ_k lies above those that are left out."""


def width_of(k: int, columns: int) -> int:
    """Return how many vectors a block has for ``k`` triplets of a matrix with so many columns."""
    return min(-(-(k + EXTRA) // 4) * 4, MOST_WIDTH, columns)


def basis_size(k: int, columns: int) -> int:
    """Return how many vectors the basis holds at most."""
    return min(columns, k + EXTRA + max(6 * width_of(k, columns), k))


class Ritz(NamedTuple):
    """Approximate eigenvectors of AᵀA, best first: this rank's rows ``V`` (thin, r), and ``residuals`` (k,).

    These are estimates of ‖Aᵀu − σv‖/σ₁, u = Av/σ.
    """

    V: np.ndarray
    residuals: np.ndarray


def block_krylov(matrix: Matrix, k: int, accuracy: float, start: np.ndarray | None, most_passes: int, seed: int,
                 course: Course) -> Ritz:
    """Collective: return min(k + `EXTRA`, n) or fewer Ritz vectors whose first ``k`` are as accurate as asked.

    ``start`` (thin, ·) spans what the iteration starts from, None: that was kept, as ``course`` knows, which is told of
    every pass but the last. ``most_passes`` bounds how often X is read.
    """
    comm, size = matrix.comm, basis_size(k, matrix.shape[1])
    width = width_of(k, matrix.shape[1])
    wanted = min(k + EXTRA, size)
    basis = np.empty((matrix.thin[1] - matrix.thin[0], size + width))
    H = np.zeros((size + width,) * 2)
    kept = course.taken("krylov")
    if kept is not None:
        done, attempts, last = (kept.values[name] for name in ("done", "attempts", "last"))
        basis[:, :done], block = kept_rows(kept, matrix, "basis"), kept_rows(kept, matrix, "block")
        H[:done, :done] = kept.vector("H").reshape(done, done)
    else:
        assert start is not None
        block, done, attempts = orthonormal(matrix, start)[0][:, :size], 0, 0
        last = matrix.passes + most_passes

    def state() -> State:
        found = State({"done": done, "attempts": attempts, "last": last})
        put_rows(found, matrix, "basis", basis[:, :done])
        put_rows(found, matrix, "block", block)
        found.put_shared("H", H[:done, :done].ravel(), comm.rank, comm.size)
        return found

    while True:
        stop = done + block.shape[1]
        basis[:, done:stop] = block
        Z = matrix.gram_image(block)
        Q = basis[:, :stop]
        inside = matrix.inner(Q, Z)
        H[:stop, done:stop], H[done:stop, :stop] = inside, inside.T
        with matrix.clock.phase("compute"):
            F = Z - Q @ inside
        block, B = F[:, :0], None
        if stop < matrix.shape[1]:
            block, B = orthonormal(matrix, F, Q)
        with matrix.clock.phase("compute"):
            found = _ritz(H[:stop, :stop], B, done, k) if comm.rank == 0 else None
        values, vectors, residuals, exhausted = comm.bcast(found)  # all ranks decide alike
        exhausted = exhausted or not block.shape[1]
        converged = stop >= wanted and residuals.max(initial=0) <= accuracy / 2
        with matrix.clock.phase("compute"):
            if exhausted and stop < wanted:
                # The start spans too little, or A has no more: look where nobody has looked.
                attempts += 1
                fresh = random_block(matrix, width, seed + attempts)
                block = orthonormal(matrix, without(matrix, Q, fresh), Q)[0][:, :matrix.shape[1] - stop]
            elif exhausted or converged or matrix.passes >= last:
                return Ritz(Q @ vectors[:, :wanted], residuals)
            if stop + block.shape[1] > size:
                best = min(wanted + width // 2, stop)
                basis[:, :best] = Q @ vectors[:, :best]
                H[:best, :best] = np.diag(values[:best])
                stop = best
            done = stop
        course.after_pass("krylov", state)


def _ritz(H: np.ndarray, B: np.ndarray | None, done: int,
          k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Return the eigenvalues and vectors of H (s, s), best first, residuals (k or s,), and whether all is found.

    AᵀA times the basis is the basis times H, and for its columns from ``done`` on F besides, B = QᵀF for some Q.
    """
    values, vectors = np.linalg.eigh((H + H.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    residuals = np.zeros(min(k, len(values)))
    if B is None or not len(B):
        return values, vectors, residuals, True
    norms = np.linalg.norm(B @ vectors[done:, :len(residuals)], axis=0)
    scale = np.sqrt(np.maximum(values[:len(residuals)], 0) * max(values[0], 0))
    residuals = np.divide(norms, scale, out=residuals, where=scale > 0)
    # Below σ₁·√ε what AᵀA says of σ is rounding.
    residuals[values[:len(residuals)] <= values[0] * np.finfo(float).eps] = 0
    return values, vectors, residuals, float(np.linalg.norm(B)) <= 1e-15 * max(float(values[0]), 0.0) * len(values)
