"""What alternating least squares learns, and its kernels, compiled before ranks wait for one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dml_hpc.decomposition.mf.penalties import fixed_penalties
from dml_hpc.kernels.gram import add_gram
from dml_hpc.kernels.normal_equations import padded, room, solve, solve_cg
from dml_hpc.kernels.rating_lists import count_rows, mark, pack, place_entries, renumber
from dml_hpc.kernels.rating_sgd import lanes_of, predict
from dml_hpc.kernels.row_squares import add_squares, weigh_rows

CG_STEPS = 3


@dataclass(frozen=True)
class Settings:
    """What is learnt: ``k`` factors, ``biases``, penalty ``l2`` (explicit: a rating; implicit: a row).

    ``l2`` None: explicit ratings tell, see `dml_hpc.decomposition.mf.penalties`.
    ``alpha`` is what a rating of 1 adds to the confidence 1 of a pair that has none; None: ratings are explicit.
    ``solver`` is "cholesky" or "cg". ``threads`` rows are solved for at a time.
    """

    k: int
    l2: float | None
    biases: bool = True
    alpha: float | None = None
    solver: str = "cholesky"
    seed: int = 0
    threads: int = 1


def compile_kernels(settings: Settings, weighted: bool) -> None:
    """Have the kernels compiled, or read from their cache, by running them on no ratings."""
    width = padded(settings.k)
    numbers, values, squares = np.empty(0, np.int32), np.empty(0, np.float32), np.zeros(width**2, np.float32)
    implicit = settings.alpha is not None
    biases = np.zeros(0, np.float32) if settings.biases and not implicit else None
    fixed = (np.zeros(1, np.int64), numbers, values, values if weighted else None, values, biases,
             squares if implicit else None, values, biases, np.zeros((0, 2)), width, 0.0, 1.0,
             fixed_penalties(width, 0, implicit), 0.0)
    if settings.solver == "cg":
        solve_cg(*fixed, CG_STEPS, 0, 0, room(width))
    else:
        solve(*fixed, 0, 0, room(width))
    if implicit:
        add_gram(values, width, 1, 1.0, squares, np.zeros(width**2, np.int64))
    if settings.l2 is None:
        weigh_rows(np.zeros(1, np.int64), values, values)
        add_squares(values, values, values, 1, width, 1.0, 1.0, np.zeros(4, np.int64))
    weights = values if weighted else None
    starts = np.zeros(0, np.int64)
    count_rows(numbers, starts)
    place_entries(numbers, numbers, values, weights, 0, np.int32(0), starts, numbers, values, weights)
    mark(numbers, np.empty(0, np.uint8))
    renumber(numbers, numbers)
    pack(values, width, starts, values)
    predict(numbers, numbers, values, values, biases, biases, *lanes_of(width), np.float32(0), np.float32(1),
            values)
