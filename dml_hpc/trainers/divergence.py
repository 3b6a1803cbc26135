"""What to say when a loss goes wrong: where the first bad value is, and which step size would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.data.reading import Reader
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import agreed
from dml_hpc.trainers.algorithm import Algorithm, Suspects
from dml_hpc.trainers.problem import Problem

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Bad(NamedTuple):
    """A row with a bad value: ``what`` says which and where, ``bad_data`` whether the data are to blame."""

    what: str
    bad_data: bool


def bad_row(problem: Problem, reader: Reader, suspects: Suspects) -> Bad | None:
    """Return the first of this rank's rows in a step that holds NaN or infinity, else the one with the worst score.

    That is the first that is not finite, or the largest. Without ``suspects.parameters`` scores are not looked at.
    """
    dataset, worst, found = reader.dataset, -1.0, None
    numbers = np.sort(reader.rows_of(suspects.epoch, suspects.step))
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1) if len(numbers) else []
    for run in runs:
        for piece in dataset.pieces(int(run[0]), int(run[-1]) + 1, mapped=False):
            place = _not_finite(piece.X, piece.y)
            if place is not None:
                path, row, X, label, _ = dataset.row(piece.first + place)
                values = X.data if isinstance(X, Csr) else X
                bad = np.flatnonzero(~np.isfinite(values))
                if not len(bad):
                    return Bad(f"the label of row {row:,} of {path} is {label}", True)
                column = int(X.indices[bad[0]] if isinstance(X, Csr) else bad[0])
                return Bad(f"feature {column} of row {row:,} of {path} is {values[bad[0]]}", True)
            if len(suspects.parameters) and worst < np.inf:
                scores = np.empty((len(piece.y), problem.layers.outputs), problem.dtype)
                X = piece.X.astype(dataset.computable(problem.dtype), copy=False)
                problem.objective.scores(problem.layers, X, suspects.parameters, scores)
                sizes = np.nan_to_num(np.abs(scores).max(axis=1), nan=np.inf, posinf=np.inf)
                at = int(sizes.argmax())
                if sizes[at] > worst:
                    worst = float(sizes[at])
                    path, row, *_ = dataset.row(piece.first + at)
                    found = Bad(f"the score of row {row:,} of {path} is {scores[at].flat[0]:.3g}", False)
    return found


def _not_finite(X: np.ndarray | Csr, y: np.ndarray) -> int | None:
    """Return the first row that holds NaN or infinity, None: there is none."""
    if isinstance(X, Csr):
        packed = X.packed()
        bad = np.flatnonzero(~np.isfinite(packed.data))
        rows = np.searchsorted(packed.indptr, bad, side="right") - 1
    else:
        rows = np.flatnonzero(~np.isfinite(X).all(axis=1))
    rows = np.concatenate([rows, np.flatnonzero(~np.isfinite(y))])
    return int(rows.min()) if len(rows) else None


def advice(algorithm: Algorithm, found: Bad | None) -> str:
    """Return what to do about it: mend the data, or a step size that should converge."""
    problem, step_size = algorithm.problem, algorithm.step_size
    if found is not None and found.bad_data:
        return "mend the data (`dml-hpc data verify` finds all such values)"
    if algorithm.searches:
        return f"labels or features are too large for {problem.dtype}: divide them, or use --dtype float64"
    safe = problem.safe_step
    better = step_size / 10 if safe is None else min(step_size / 10, safe)
    return f"the step size {step_size:.3g} is too large for this data: try --step-size {better:.1g}"


def diverged(comm: Intracomm, algorithm: Algorithm, step: int, how: str) -> AgreedError:
    """Collective: return the error for a loss that ``how`` ("became nan", …) at a step, with the first bad value."""
    with agreed(comm):
        found = bad_row(algorithm.problem, algorithm.reader, algorithm.suspects(step))
    everywhere = comm.allgather(found)
    # Bad data explain bad scores on other ranks.
    ranks = sorted((rank for rank, bad in enumerate(everywhere) if bad is not None),
                   key=lambda rank: not everywhere[rank].bad_data)
    first = everywhere[ranks[0]] if ranks else None
    where = f"; on rank {ranks[0]}: {first.what}" if first is not None else ""
    return AgreedError(f"the loss {how} at {algorithm.unit} {step + 1}{where}; "
                       f"{advice(algorithm, first)}; no model is saved", 0, 1)
