"""What the theory of averaging says of a run, beside what was measured.

Zinkevich, Weimer, Smola and Li, *Parallelized Stochastic Gradient Descent*, NIPS 2010, section 3: a step of one example
brings the distributions of two models closer by the factor 1 − ηλ when η is below 1/(sup ‖x‖²·sup ℓ'' + λ); so each
machine forgets where it began, and what is left is the noise of a constant step size. That noise averaging k machines
divides by k; the bias it leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.trainers.algorithm import Algorithm
from dml_hpc.trainers.averaging import Averaging

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

WORTH = 1e-3
"""Twice the machines are said to help when they lower the training loss by more than this share of it."""


def explain(comm: Intracomm, algorithm: Algorithm, loss_of: Callable[[np.ndarray], float],
            loss: float) -> dict[str, Any] | None:
    """Collective: return what can be said of an averaging run, None for other algorithms.

    ``loss_of(parameters)`` (collective) returns the mean loss of all rows under parameters by standardised features,
    ``loss`` is that of the average. Keys: ``step_size`` and ``step_size_bound`` (with the mean of ‖x‖² in place of
    its supremum); ``contraction`` 1/(1 + ηλ), as steps are proximal (the paper's are 1 − ηλ); ``start_left``, what is
    left of the start after the machine's examples;
    ``examples_needed`` until the start weighs less than the noise, (ln k − ln ηλ)/(2ηλ); ``variance`` the mean squared
    distance of the machines' models from their average, ``variance_of_average`` the k-th part; ``loss_of_one`` machine
    and ``loss_of_half`` of them; ``gain_of_twice``, by which twice the machines would lower the loss if it falls as
    a + b/k; ``more_machines_help``. None where it is not known.
    """
    if not isinstance(algorithm, Averaging):
        return None
    problem, size = algorithm.problem, algorithm.step_size
    machines, examples = algorithm.plan.count, algorithm.most_examples()
    shrink = size * problem.l2
    found: dict[str, Any] = {
        "machines": machines, "examples_a_machine": examples, "step_size": size, "step_size_bound": problem.safe_step,
        "contraction": 1 / (1 + shrink), "start_left": (1 + shrink) ** -float(examples),
        "examples_needed":
            max(1, math.ceil((math.log(machines) - math.log(shrink)) / (2 * shrink))) if shrink > 0 else None,
        "variance": None, "variance_of_average": None, "loss_of_one": None, "loss_of_half": None, "gain_of_twice": None,
        "more_machines_help": None}
    spread = algorithm.spread
    if spread is not None:
        one, half = loss_of(spread.first), loss_of(spread.half)
        gain = (half - loss) / 2
        found.update(variance=spread.variance, variance_of_average=spread.variance / machines, loss_of_one=one,
                     loss_of_half=half, gain_of_twice=gain, more_machines_help=gain > WORTH * loss)
    return found


def told(theory: dict[str, Any]) -> list[str]:
    """Return what a person is told of `explain`."""
    size, bound = theory["step_size"], theory["step_size_bound"]
    known = "no bound is known" if bound is None else f"{'below' if size < bound else 'ABOVE'} the bound {bound:.3g}"
    lines = [f"step size {size:.3g} ({known}); each example keeps {theory['contraction']:.8g} of what came before, so "
             + ("the start is forgotten only by the data (--l2 0)" if theory["contraction"] == 1 else
                f"{theory['start_left']:.2g} of the start is left after {theory['examples_a_machine']:,} examples "
                f"({theory['examples_needed']:,} are needed before averaging pays in full)")]
    if theory["variance"] is not None:
        lines.append(f"machines differ by {theory['variance']:.3g} (mean squared distance), their average of "
                     f"{theory['machines']} by {theory['variance_of_average']:.3g}; loss of one "
                     f"{theory['loss_of_one']:.5f}, of half of them {theory['loss_of_half']:.5f}: "
                     "twice the machines would "
                     + (f"gain about {theory['gain_of_twice']:.2g}" if theory["more_machines_help"] else "hardly help"))
    return lines
