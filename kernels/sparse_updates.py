"""Steps that touch only the elements that have a gradient; the penalties of the others are paid when they are due.

Between two of its gradients a weight only shrinks: step t, of size η_t, takes |w| to
max(0, (1 − η_t·l2)·|w| − η_t·l1/h), h its metric (1 for SGD, √G + ε for AdaGrad). With the product
P_t = Π (1 − η_i·l2) and the toll T_t = Σ η_i·l1/P_i over all steps so far, a weight last paid at step k is worth

    |w_t| = max(0, P_t·(|w_k|/P_k − (T_t − T_k)/h))

however many steps lie between (for l1 alone: the cumulative penalty of Tsuruoka, Tsujii and Ananiadou, ACL 2009).

Throughout, ``weights`` (count,) are elements ``start`` … of a vector that ``edges`` cut into runs as
`dml_hpc.kernels.updates.take_step` has them; ``squares`` (count,) is AdaGrad's G, empty for SGD; ``paid`` (count, 2)
float64 holds (P, T) of each weight's last payment, empty without penalties; ``indices`` are unique int64 numbers
of elements of the vector, in any order. ``product``, ``toll`` and ``epsilon`` are float64.
"""

from __future__ import annotations

import math

from numba import njit

from dml_hpc.kernels.updates import clipped, soft


@njit(cache=True, nogil=True, error_model="numpy")
def _worth(w, metric, old_product, old_toll, product, toll):
    """Return what a weight is worth that was last paid at the old product and toll."""
    if old_product == product and old_toll == toll:
        return float(w)
    size = abs(w) * (product / old_product) - product * (toll - old_toll) / metric
    size = 0.0 if size <= 0 else size
    return size if w > 0 else -size


@njit(cache=True, nogil=True, error_model="numpy")
def _run_of(i, edges, run):
    """Return the run that element ``i`` lies in, sought from ``run``, that of an element nearby."""
    while i >= edges[run + 1]:
        run += 1
    while i < edges[run]:
        run -= 1
    return run


@njit(cache=True, nogil=True, error_model="numpy")
def pay_all(weights, squares, epsilon, paid, start, edges, product, toll):
    """Bring every penalised weight up to date."""
    metric = 1.0
    for run in range(1, len(edges) - 1, 2):
        for j in range(edges[run] - start, edges[run + 1] - start):
            if len(squares) > 0:
                metric = math.sqrt(float(squares[j])) + epsilon
            weights[j] = _worth(weights[j], metric, paid[j, 0], paid[j, 1], product, toll)
            paid[j, 0], paid[j, 1] = product, toll


@njit(cache=True, nogil=True, error_model="numpy")
def pay_at(weights, squares, epsilon, paid, start, edges, indices, product, toll):
    """Bring the weights at ``indices`` up to date."""
    run, metric = 0, 1.0
    for i in indices:
        run = _run_of(i, edges, run)
        if run % 2 == 1:
            j = i - start
            if len(squares) > 0:
                metric = math.sqrt(float(squares[j])) + epsilon
            weights[j] = _worth(weights[j], metric, paid[j, 0], paid[j, 1], product, toll)
            paid[j, 0], paid[j, 1] = product, toll


@njit(cache=True, nogil=True, error_model="numpy")
def step_at(weights, squares, epsilon, paid, start, edges, indices, product, toll, values, unit, clip, step_size, l1,
            l2, next_product, next_toll):
    """Bring the weights at ``indices`` up to date, then step by their gradient unit·``values`` (len(indices),).

    ``squares`` tells AdaGrad from SGD. ``next_product`` and ``next_toll`` are those after this step. ``step_size``,
    ``clip``, ``l1`` and ``l2`` have the weights' dtype, ``unit`` that in which the gradient is computed.
    """
    run, metric = 0, 1.0
    none = l1 - l1
    for k in range(len(indices)):
        i = indices[k]
        run = _run_of(i, edges, run)
        j = i - start
        w = weights[j]
        run_l1 = run_l2 = none
        if run % 2 == 1:
            if len(squares) > 0:
                metric = math.sqrt(float(squares[j])) + epsilon
            w = weights.dtype.type(_worth(w, metric, paid[j, 0], paid[j, 1], product, toll))
            paid[j, 0], paid[j, 1] = next_product, next_toll
            run_l1, run_l2 = l1, l2
        g = clipped(weights.dtype.type(values[k] * unit), clip) + run_l2 * w
        step = step_size
        if len(squares) > 0:
            squares[j] += g * g
            step = step_size / (math.sqrt(squares[j]) + weights.dtype.type(epsilon))
        weights[j] = soft(w - step * g, step * run_l1)
