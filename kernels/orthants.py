"""What OWL-QN does to vectors (Andrew and Gao, *Scalable training of L1-regularized log-linear models*, ICML 2007).

Minimised is f(x) + Σ tax_j·|x_j|, tax ≥ 0. All arrays are (count,) of one dtype; ``gradient`` is that of f.
"""

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True, error_model="numpy")
def pseudo_gradient(x, gradient, tax, out):
    """Write the subgradient of least magnitude, whose negative is the steepest descent (equation 4)."""
    for j in range(len(x)):
        g, t = gradient[j], tax[j]
        if x[j] > 0:
            out[j] = g + t
        elif x[j] < 0:
            out[j] = g - t
        else:
            out[j] = g - (t if g > t else -t if g < -t else g) if t > 0 else g


@njit(cache=True, nogil=True, error_model="numpy")
def choose_orthant(x, pseudo, tax, direction, orthant):
    """Write tax·ξ to ``orthant``, ξ the signs that a step may have, and zero ``direction`` where it climbs.

    ξ is the sign of x or, where x is 0, of the steepest descent; untaxed elements are free.
    """
    zero = tax.dtype.type(0)
    for j in range(len(x)):
        t = tax[j]
        towards = x[j] if x[j] != 0 else -pseudo[j]
        orthant[j] = t if towards > 0 else -t if towards < 0 else zero
        if t > 0 and direction[j] * pseudo[j] >= 0:
            direction[j] = zero


@njit(cache=True, nogil=True, error_model="numpy")
def step_inside(x, step, direction, tax, orthant, out):
    """Write x + step·direction to ``out``, 0 where it would leave the orthant."""
    zero = tax.dtype.type(0)
    for j in range(len(x)):
        moved = x[j] + step * direction[j]
        out[j] = zero if tax[j] > 0 and moved * orthant[j] <= 0 else moved
